//! What a container is made of, and getting rid of it again.

use super::actor::log;
use super::launch::{Birth, Waiting, launch};
use super::stdio::Prepared;
use super::usage::{Counter, Usage};
use super::{CreateSpec, ExecSpec, Image, PidNamespace, Shared, devices};
use crate::blocking::blocking;
use crate::cgroup::Cgroup;
use crate::deadline::Deadline;
use crate::error::Context;
use crate::init::plan::{IdMaps, Place, Plan, Source, fds};
use crate::pod::Mirror;
use crate::seccomp::Filter;
use crate::spec;
use crate::streams::pump::InputEnd;
use crate::{Error, Result};
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// What is left of a container when its processes are gone.
#[derive(Default)]
pub(super) struct Resources {
    pub(super) cgroup: Option<Arc<Cgroup>>,
    pub(super) usage: Option<Arc<Usage>>,
    directory: Option<PathBuf>,
    /// That of its root and those of its mounts.
    images: Vec<Arc<Image>>,
    mirrors: Vec<Arc<Mirror>>,
    /// For the processes that come later.
    pub(super) joining: Joining,
}

/// What a process needs that joins a container later.
#[derive(Clone, Default)]
pub(super) struct Joining {
    seccomp: Option<Filter>,
    /// The mappings of its user namespace; empty when it has none.
    ids: IdMaps,
    cgroup_namespace: bool,
}

/// Makes a container and its waiting process. What was made is in `resources` also when this fails
/// or is given up half way.
pub(super) async fn create(
    shared: &Shared,
    request: &CreateSpec,
    target: Option<Arc<OwnedFd>>,
    deadline: Deadline,
    resources: &mut Resources,
) -> Result<Waiting> {
    let id = &request.id;
    let spec::Parsed {
        mut container,
        mut process,
        settings,
        mut device_rules,
        namespace_files,
        ids,
    } = spec::parse(&request.spec)?;
    process.user_name = spec::user(&request.user)?;
    process.strict_groups = request.strict_groups;
    process.terminal = request.stdio.terminal;
    resources.joining = Joining {
        seccomp: process.seccomp.clone(),
        ids: ids.clone(),
        cgroup_namespace: container.cgroup_namespace,
    };
    let stdio = Prepared::new(shared, &request.stdio)?;
    let namespaces = open_namespaces(&namespace_files)?;
    let pid_namespace = container
        .join_namespaces
        .iter()
        .zip(&namespaces)
        .find(|(kind, _)| **kind == libc::CLONE_NEWPID)
        .map(|(_, fd)| fd.as_fd());
    let shared_pid = match request.pid {
        PidNamespace::Spec => None,
        PidNamespace::Pod => Some(shared.namespaces.pid(shared).await?),
        PidNamespace::Of(_) => target,
    };
    if shared_pid.is_some() {
        if pid_namespace.is_some() {
            return Err(Error::Invalid(
                "The spec names a pid namespace and the request another".to_owned(),
            ));
        }
        container.new_namespaces &= !libc::CLONE_NEWPID;
    }
    let pid_namespace = shared_pid.as_ref().map(|fd| fd.as_fd()).or(pid_namespace);
    let mut users = Vec::new();
    for maps in &container.user_namespaces {
        users.push(shared.namespaces.user(shared, maps).await?);
    }
    for asked in &request.block_devices {
        let number = shared.backing.device(&asked.disk, deadline).await?;
        let (node, rule) = devices::of_disk(asked, number)?;
        container.devices.push(node);
        device_rules.push(rule);
    }
    if request.guest_devices {
        let all = devices::of_guest(Path::new("/dev"))?;
        let described: Vec<_> = container.devices.iter().map(|d| d.path.clone()).collect();
        let more = all.into_iter().filter(|d| !described.contains(&d.path));
        container.devices.extend(more);
    }

    let image = shared.backing.image(&request.image_disk, deadline).await?;
    container.image = image.path().to_owned();
    resources.images.push(image);
    for mount in &mut container.mounts {
        match &mut mount.what {
            Source::Image { disk, root, .. } => {
                let image = shared.backing.image(disk, deadline).await?;
                image.path().clone_into(root);
                resources.images.push(image);
            }
            Source::Shared { name, mirror, root } => {
                let (backing, volume) = (Arc::clone(&shared.backing), name.clone());
                *root = blocking(move || backing.shared_volume(&volume)).await?;
                if *mirror {
                    let backing = Arc::clone(&shared.backing);
                    let (volume, name) = (root.clone(), name.clone());
                    let mirror = blocking(move || backing.mirror(volume, &name)).await?;
                    mirror.path().clone_into(root);
                    resources.mirrors.push(mirror);
                }
            }
            Source::EmptyDir { volume, root, .. } => *root = shared.backing.empty_dir(volume)?,
            Source::Direct { volume, root, .. } => {
                *root = shared.backing.direct_volume(volume, deadline).await?;
            }
            Source::Bind { .. } | Source::New { .. } => {}
        }
    }
    let directory = shared.backing.scratch()?.join(id.as_str());
    container.upper = directory.join("upper");
    container.work = directory.join("work");
    container.mount_point.clone_from(&shared.paths.mount_point);
    let what = || format!("Cannot make the directory of container {id}");
    // Left over from an agent that was killed: its content belongs to nobody.
    delete(&directory).context(what)?;
    fs::create_dir_all(resources.directory.insert(directory.clone())).context(what)?;
    let project = shared.backing.project(&directory)?;
    fs::create_dir(&container.work).context(what)?;
    make_upper(&container.image, &container.upper, &ids).context(what)?;
    resources.usage = Some(match project {
        Some(project) => Arc::new(Usage::Project(project)),
        None => Arc::new(Usage::Counted(Counter::new(container.upper.clone()))),
    });
    container.state.id = id.to_string();
    container.state.bundle = directory_of(&container.upper);
    shared.prepare_cgroup().await?;
    let cgroup = Arc::new(Cgroup::create(
        &shared.paths.cgroup,
        id.as_str(),
        &settings,
    )?);
    resources.cgroup = Some(cgroup.clone());
    cgroup.restrict_devices(&device_rules)?;

    let new_namespaces = container.new_namespaces;
    let plan = Plan {
        place: Place::Make(Box::new(container)),
        ids,
        process,
    };
    let birth = Birth {
        namespaces: new_namespaces,
        pid_namespace,
        cgroup: cgroup.directory(),
        fds: namespaces
            .iter()
            .map(AsFd::as_fd)
            .chain(users.iter().map(|user| user.as_fd()))
            .zip(fds::NAMESPACES..)
            .collect(),
        input_end: InputEnd::HalfClose,
    };
    let waiting = launch(shared, &plan, stdio, birth);
    deadline
        .limit(
            || format!("Container {id} is still being prepared"),
            waiting,
        )
        .await?
}

/// Makes one more process in a container.
pub(super) async fn exec(
    shared: &Shared,
    request: &ExecSpec,
    cgroup: &Cgroup,
    container: &OwnedFd,
    joining: Joining,
) -> Result<Waiting> {
    let mut process = spec::parse_process(&request.process)?;
    process.seccomp = joining.seccomp;
    process.user_name = spec::user(&request.user)?;
    process.strict_groups = request.strict_groups;
    process.terminal = request.stdio.terminal;
    let stdio = Prepared::new(shared, &request.stdio)?;
    let plan = Plan {
        place: Place::Join {
            cgroup_namespace: joining.cgroup_namespace,
        },
        ids: joining.ids,
        process,
    };
    let number = shared.execs.fetch_add(1, Ordering::Relaxed);
    let own = Arc::new(cgroup.child(&format!("exec-{number}"))?);
    let birth = Birth {
        namespaces: 0,
        pid_namespace: Some(container.as_fd()),
        cgroup: own.directory(),
        fds: vec![(container.as_fd(), fds::CONTAINER)],
        input_end: InputEnd::AnyClose,
    };
    match launch(shared, &plan, stdio, birth).await {
        Ok(mut waiting) => {
            waiting.process.cgroup = Some(own);
            Ok(waiting)
        }
        Err(error) => {
            // Its process may not be gone yet. The container's end removes what this does not.
            log(release_cgroup(&own).await);
            Err(error)
        }
    }
}

/// The directory that another is in.
fn directory_of(path: &Path) -> PathBuf {
    path.parent().unwrap_or(path).to_owned()
}

fn open_namespaces(files: &[PathBuf]) -> Result<Vec<OwnedFd>> {
    // The descriptors of a plan are few; there are only so many kinds of namespaces.
    files
        .iter()
        .map(|path| {
            let file = fs::File::open(path);
            let file = file.map_err(|error| {
                Error::Invalid(format!("Cannot open namespace {}: {error}", path.display()))
            })?;
            Ok(file.into())
        })
        .collect()
}

/// The root directory of a container has the mode and owner of the image's.
fn make_upper(image: &Path, upper: &Path, ids: &IdMaps) -> io::Result<()> {
    use std::os::unix::fs::{MetadataExt, chown};
    fs::create_dir(upper)?;
    let metadata = fs::metadata(image)?;
    fs::set_permissions(upper, metadata.permissions())?;
    chown(upper, ids.uid(metadata.uid()), ids.gid(metadata.gid()))
}

impl Resources {
    /// Kills what still runs and removes everything. Goes on after a failure and tells the first.
    pub(super) async fn release(&mut self) -> Result<()> {
        let mut result = Ok(());
        if let Some(cgroup) = self.cgroup.take() {
            result = release_cgroup(&cgroup).await;
        }
        if let Some(directory) = self.directory.take() {
            let deleted = blocking(move || {
                delete(&directory).context(|| format!("Cannot delete {}", directory.display()))
            });
            result = result.and(deleted.await);
        }
        // The last container of an image unmounts it.
        self.images.clear();
        self.mirrors.clear();
        result
    }
}

async fn release_cgroup(cgroup: &Cgroup) -> Result<()> {
    cgroup.kill()?;
    cgroup.empty().await?;
    cgroup.remove()
}

fn delete(directory: &Path) -> io::Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
