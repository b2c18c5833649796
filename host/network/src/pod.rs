//! A pod's network from its beginning to its end.
//!
//! The order is that of what must not be lost: namespace, intent on disk, ADD, result on disk. DEL takes all
//! of it away again, in a task that goes on until it has succeeded; the pod does not wait for more than the
//! first attempt, and that not for ever. What is on disk decides after a restart, so a daemon that was killed
//! at any of these steps leaves nothing behind.

use crate::cni::{Attachment, Cache, Cni, CniResult, NetworkList, RuntimeSettings, config};
use crate::filter;
use crate::interface::{self, Interface};
use crate::redirect::{Which, redirect};
use crate::{NetworkError, Result, netns, tap};
use bulkhead_netlink::Socket;
use bulkhead_netlink::link::{self, Counters};
use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// The name of the pod's first interface, which Kubernetes expects.
const FIRST: &str = "eth0";
/// Before DEL is tried again; doubled each time, up to a minute.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LAST_PAUSE: Duration = Duration::from_secs(60);

/// Where things are.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Directories of CNI configurations.
    pub config_directories: Vec<PathBuf>,
    /// Directories of plugins' programs.
    pub plugin_directories: Vec<PathBuf>,
    /// How long one execution of one plugin may take.
    pub plugin_limit: Duration,
    /// How long a pod that ends waits for the first attempt of DEL.
    pub delete_wait: Duration,
    /// Where network namespaces are bound; gone after a reboot.
    pub namespaces: PathBuf,
    /// Where attachments are remembered; there after a reboot.
    pub attachments: PathBuf,
}

/// A pod that wants a network.
#[derive(Debug, Clone, Default)]
pub struct PodRequest {
    /// The pod sandbox's id.
    pub id: String,
    /// Kubernetes' namespace.
    pub namespace: String,
    /// Kubernetes' name.
    pub name: String,
    /// Kubernetes' uid.
    pub uid: String,
    /// What plugins may ask for.
    pub runtime: RuntimeSettings,
}

/// A pod's network.
#[derive(Debug)]
pub struct PodNetwork {
    /// The namespace.
    pub namespace: OwnedFd,
    /// What the VM is to have.
    pub interfaces: Vec<Interface>,
    /// The addresses of the first interface, in the plugins' order.
    pub ips: Vec<IpAddr>,
    /// What the plugins say of name servers.
    pub dns: crate::cni::Dns,
}

/// The networks of the node's pods; clones share it.
#[derive(Debug, Clone)]
pub struct Networks {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    settings: Settings,
    cni: Cni,
    cache: Cache,
    /// Pods whose network is being taken away, and how many attempts have failed.
    leaving: Mutex<HashMap<String, watch::Receiver<u32>>>,
}

async fn blocking<T: Send + 'static>(
    function: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let joined = tokio::task::spawn_blocking(function).await;
    joined.unwrap_or_else(|error| Err(NetworkError::io("run a task")(std::io::Error::other(error))))
}

impl Networks {
    /// Makes the directories. Blocks.
    ///
    /// # Errors
    /// They cannot be made.
    pub fn open(settings: Settings) -> Result<Self> {
        let directory = &settings.namespaces;
        fs::create_dir_all(directory)
            .map_err(NetworkError::io(format!("make {}", directory.display())))?;
        let inner = Inner {
            cni: Cni {
                plugin_directories: settings.plugin_directories.clone(),
                limit: settings.plugin_limit,
            },
            cache: Cache::open(&settings.attachments)?,
            leaving: Mutex::default(),
            settings,
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    fn namespace(&self, pod: &str) -> PathBuf {
        self.inner.settings.namespaces.join(pod)
    }

    async fn list(&self) -> Result<NetworkList> {
        let directories = self.inner.settings.config_directories.clone();
        blocking(move || config::find(&directories)).await
    }

    /// Whether a pod could have a network now.
    ///
    /// # Errors
    /// Why not.
    pub async fn status(&self) -> Result<()> {
        self.inner.cni.status(&self.list().await?).await
    }

    /// Makes a pod's network; plugins are killed when `cancelled` is finished first. When it fails,
    /// [`Networks::detach`] is the caller's to call. It must not be dropped half way.
    ///
    /// # Errors
    /// There is no configuration, a plugin failed, or the result is nothing for a VM.
    pub async fn attach(
        &self,
        request: PodRequest,
        cancelled: impl Future<Output = ()>,
    ) -> Result<PodNetwork> {
        let list = self.list().await?;
        let mut attachment = Attachment {
            netns: self.namespace(&request.id),
            interface: FIRST.to_owned(),
            args: arguments(&request)?,
            pod: request.id.clone(),
            runtime: request.runtime,
            list: list.to_object(),
            result: None,
        };
        let (cache, intent) = (self.inner.cache.clone(), attachment.clone());
        blocking(move || {
            cache.put(&intent)?;
            netns::create(&intent.netns)
        })
        .await?;
        let added = tokio::select! {
            added = self.inner.cni.add(&list, &attachment) => added?,
            () = cancelled => return Err(NetworkError::Cancelled { pod: request.id }),
        };
        let result = CniResult::parse(&added).unwrap_or_default();
        attachment.result = Some(added);
        let cache = self.inner.cache.clone();
        blocking(move || {
            cache.put(&attachment)?;
            let (namespace, interfaces) = read(&attachment.pod, &attachment.netns)?;
            Ok(PodNetwork {
                namespace,
                interfaces,
                ips: result.addresses(FIRST).collect(),
                dns: result.dns,
            })
        })
        .await
    }

    /// Joins the pod's interfaces to taps, of `queues` queues each, and returns their descriptors in the
    /// interfaces' order. With `spoofing` everything may leave the VM.
    ///
    /// # Errors
    /// The system's.
    pub async fn taps(
        &self,
        pod: &str,
        network: &PodNetwork,
        queues: u16,
        spoofing: bool,
    ) -> Result<Vec<Vec<OwnedFd>>> {
        let doing = format!("join the network of pod sandbox {pod} to its VM");
        let duplicate = network.namespace.try_clone();
        let interfaces = network.interfaces.clone();
        blocking(move || {
            let joined = duplicate.and_then(|namespace| {
                netns::within(namespace, move || {
                    let all = interfaces.iter().enumerate();
                    all.map(|(number, one)| join(number, one, queues, spoofing))
                        .collect()
                })
            });
            joined.map_err(NetworkError::io(doing))
        })
        .await
    }

    /// Asks the plugins whether a pod's network is still as they made it.
    ///
    /// # Errors
    /// The plugin's that says no.
    pub async fn check(&self, pod: &str) -> Result<()> {
        match self.attachment(pod).await? {
            Some((list, attachment)) => self.inner.cni.check(&list, &attachment).await,
            None => Ok(()),
        }
    }

    /// What went through the pod's interfaces, by their names, as the pod sees it.
    ///
    /// # Errors
    /// The namespace is gone.
    pub async fn counters(&self, pod: &str) -> Result<Vec<(String, Counters)>> {
        let (path, doing) = (
            self.namespace(pod),
            format!("read the counters of pod sandbox {pod}"),
        );
        blocking(move || {
            let namespace = netns::open(&path)?;
            let links = netns::within(namespace, || link::all(&mut Socket::open()?));
            let links = links.map_err(NetworkError::io(doing))?;
            let own = links
                .into_iter()
                .filter(|one| one.is_up() && !one.is_loopback() && one.kind != "tun");
            Ok(own.map(|one| (one.name, one.counters)).collect())
        })
        .await
    }

    /// Takes a pod's network away. Returns when that has been done or has failed once, or when it takes too
    /// long; it goes on until it has succeeded. Succeeds if there is none.
    pub async fn detach(&self, pod: &str) {
        let mut attempts = self.start_detaching(pod);
        let finished = attempts.wait_for(|attempts| *attempts > 0);
        // An error means that it is done.
        let _ = tokio::time::timeout(self.inner.settings.delete_wait, finished).await;
    }

    fn start_detaching(&self, pod: &str) -> watch::Receiver<u32> {
        let mut leaving = self
            .inner
            .leaving
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(attempts) = leaving.get(pod) {
            return attempts.clone();
        }
        let (sender, attempts) = watch::channel(0);
        leaving.insert(pod.to_owned(), attempts.clone());
        tokio::spawn(self.clone().keep_detaching(pod.to_owned(), sender));
        attempts
    }

    async fn keep_detaching(self, pod: String, attempts: watch::Sender<u32>) {
        let mut pause = FIRST_PAUSE;
        while let Err(error) = self.try_detach(&pod).await {
            attempts.send_modify(|attempts| *attempts += 1);
            let error = chain(&error);
            let attachment = self.attachment(&pod).await.ok().flatten();
            let name = attachment.map(|(_, attachment)| name_of(&attachment.args));
            tracing::warn!(
                pod,
                name,
                error,
                "The pod's network could not be removed; it is tried again"
            );
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LAST_PAUSE);
        }
        let mut leaving = self
            .inner
            .leaving
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        leaving.remove(&pod);
    }

    async fn try_detach(&self, pod: &str) -> Result<()> {
        if let Some((list, attachment)) = self.attachment(pod).await? {
            self.inner.cni.delete(&list, &attachment).await?;
        }
        let (path, cache, pod) = (
            self.namespace(pod),
            self.inner.cache.clone(),
            pod.to_owned(),
        );
        blocking(move || {
            netns::remove(&path)?;
            cache.remove(&pod)
        })
        .await
    }

    async fn attachment(&self, pod: &str) -> Result<Option<(NetworkList, Attachment)>> {
        let (cache, pod) = (self.inner.cache.clone(), pod.to_owned());
        blocking(move || {
            let Some(attachment) = cache.get(&pod)? else {
                return Ok(None);
            };
            let list = NetworkList::from_object(attachment.list.clone());
            let list = list.map_err(|problem| NetworkError::Configuration {
                path: PathBuf::from(format!("that pod sandbox {pod} was added with")),
                problem,
            })?;
            Ok(Some((list, attachment)))
        })
        .await
    }

    /// After a start: takes away what belongs to none of the pods that live, in the background, and lets the
    /// plugins do the same with what they know.
    ///
    /// # Errors
    /// The directories cannot be read.
    pub async fn recover(&self, living: BTreeSet<String>) -> Result<()> {
        let (cache, namespaces) = (
            self.inner.cache.clone(),
            self.inner.settings.namespaces.clone(),
        );
        let mut known = blocking(move || {
            let mut known: BTreeSet<String> = cache.pods()?.into_iter().collect();
            let failed = || NetworkError::io(format!("read {}", namespaces.display()));
            for entry in fs::read_dir(&namespaces).map_err(failed())? {
                known.extend(entry.map_err(failed())?.file_name().into_string());
            }
            Ok(known)
        })
        .await?;
        known.retain(|pod| !living.contains(pod));
        let waits: Vec<_> = known.iter().map(|pod| self.start_detaching(pod)).collect();
        let this = self.clone();
        tokio::spawn(async move {
            for mut wait in waits {
                let _ = wait.wait_for(|attempts| *attempts > 0).await;
            }
            this.collect(living).await;
        });
        Ok(())
    }

    async fn collect(&self, living: BTreeSet<String>) {
        // Pods that have come meanwhile are not lost: they are remembered before they are added.
        let cache = self.inner.cache.clone();
        let now = blocking(move || cache.pods()).await.unwrap_or_default();
        let valid: BTreeSet<_> = living.into_iter().chain(now).collect();
        let valid: Vec<_> = valid
            .into_iter()
            .map(|pod| (pod, FIRST.to_owned()))
            .collect();
        let collected = match self.list().await {
            Ok(list) => self.inner.cni.collect(&list, &valid).await,
            // There will be no pods either.
            Err(_) => Ok(()),
        };
        if let Err(error) = collected {
            tracing::warn!(error = chain(&error), "A CNI plugin could not clean up");
        }
    }
}

fn arguments(request: &PodRequest) -> Result<String> {
    let pairs = [
        (
            "config.metadata.namespace",
            "K8S_POD_NAMESPACE",
            &request.namespace,
        ),
        ("config.metadata.name", "K8S_POD_NAME", &request.name),
        ("config.metadata.uid", "K8S_POD_UID", &request.uid),
        ("id", "K8S_POD_INFRA_CONTAINER_ID", &request.id),
    ];
    let mut arguments = "IgnoreUnknown=1".to_owned();
    for (field, key, value) in pairs {
        if value.contains([';', '\0']) {
            return Err(NetworkError::Field {
                field,
                problem: format!("{value:?} has a character that no CNI plugin can be given"),
            });
        }
        arguments.push_str(&format!(";{key}={value}"));
    }
    Ok(arguments)
}

/// Kubernetes' namespace and name, as people know a pod, out of what [`arguments`] has made.
fn name_of(arguments: &str) -> String {
    let value = |key: &str| {
        let mut pairs = arguments.split(';').filter_map(|pair| pair.split_once('='));
        let found = pairs.find(|(name, _)| *name == key);
        found.map(|(_, value)| value).unwrap_or_default()
    };
    format!("{}/{}", value("K8S_POD_NAMESPACE"), value("K8S_POD_NAME"))
}

fn read(pod: &str, path: &Path) -> Result<(OwnedFd, Vec<Interface>)> {
    let unusable = |problem: String| NetworkError::Interfaces {
        pod: pod.to_owned(),
        problem,
    };
    let failed = || NetworkError::io(format!("read the network of pod sandbox {pod}"));
    let namespace = netns::open(path)?;
    let entered = namespace.try_clone().map_err(failed())?;
    let contents = netns::within(entered, interface::read).map_err(failed())?;
    let interfaces = interface::of_pod(&contents, FIRST).map_err(unusable)?;
    Ok((namespace, interfaces))
}

/// In the pod's namespace: makes a tap and redirects both ways.
fn join(
    number: usize,
    one: &Interface,
    queues: u16,
    spoofing: bool,
) -> std::io::Result<Vec<OwnedFd>> {
    let name = format!("bulkhead{number}");
    let files = tap::open(&name, queues)?;
    // The tap has no addresses, and must not make itself any.
    match fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1") {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut socket = Socket::open()?;
    let tap = link::by_name(&mut socket, &name)?;
    let up = link::Change {
        up: Some(true),
        mtu: Some(one.mtu),
        ..Default::default()
    };
    link::set(&mut socket, tap.index, &up)?;
    let ips: Vec<_> = one.ips().collect();
    let program = filter::program(one.mac, &ips);
    let which = if spoofing {
        Which::All
    } else {
        Which::Passed(&program)
    };
    redirect(&mut socket, tap.index, one.index, &which)?;
    redirect(&mut socket, one.index, tap.index, &Which::All)?;
    Ok(files)
}

fn chain(error: &NetworkError) -> String {
    let mut text = error.to_string();
    let mut next = std::error::Error::source(error);
    while let Some(source) = next {
        text.push_str(&format!(": {source}"));
        next = source.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{PodRequest, arguments, name_of};

    #[test]
    fn a_pods_name_is_found_in_its_arguments() {
        let request = PodRequest {
            id: "4b1d".into(),
            namespace: "shop".into(),
            name: "till-0=x".into(),
            ..Default::default()
        };
        assert_eq!(name_of(&arguments(&request).unwrap()), "shop/till-0=x");
        assert_eq!(name_of("IgnoreUnknown=1"), "/");
    }
}
