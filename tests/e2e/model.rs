//! Many clients at once on the same pods, at random, against a model of what the answers must be.
//!
//! Each pod's model is held by one client at a time, so that its answers can be known; the pods are
//! worked on all at once. BULKHEAD_MODEL_SEED repeats a run; of that with pods of processes,
//! BULKHEAD_MODEL_PODS and BULKHEAD_MODEL_STEPS change the size.

use crate::environment::{node_with_image, process_node_with_image, ready, ready_for, setting};
use bulkhead_cri::v1::{self, ContainerState as State};
use bulkhead_tests::Node;
use bulkhead_tests::pod::{self, container, exec};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tonic::Code;

const CLIENTS: u64 = 16;

/// What must be true of one pod name.
#[derive(Default)]
struct Model {
    name: String,
    pod: Option<ModelPod>,
}

struct ModelPod {
    id: String,
    ready: bool,
    config: v1::PodSandboxConfig,
    /// By name: the id and the state.
    containers: BTreeMap<String, (String, State)>,
}

/// Marsaglia's xorshift: the same numbers for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_at_random_get_the_answers_of_the_model() {
    if !ready() {
        return;
    }
    drive(node_with_image().await, 6, 14).await;
}

/// As many pods as fit on no test machine as VMs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_at_random_get_the_answers_of_the_model_of_fifty_pods() {
    let (pods, steps) = (
        setting("BULKHEAD_MODEL_PODS", 50),
        setting("BULKHEAD_MODEL_STEPS", 20),
    );
    if !ready_for(Duration::from_secs(120 + CLIENTS * steps)) {
        return;
    }
    drive(process_node_with_image().await, pods, steps).await;
}

async fn drive((node, image): (Node, String), count: u64, steps: u64) {
    let clock = std::time::UNIX_EPOCH.elapsed().unwrap().subsec_nanos();
    let seed = setting("BULKHEAD_MODEL_SEED", clock.into()).max(1);
    println!("BULKHEAD_MODEL_SEED={seed}");
    let node = Arc::new(node);
    let models: Arc<Vec<_>> = Arc::new(
        (0..count)
            .map(|number| {
                let name = format!("model-{number}");
                Mutex::new(Model { name, pod: None })
            })
            .collect(),
    );
    let mut events = node
        .runtime()
        .get_container_events(v1::GetEventsRequest {})
        .await
        .unwrap()
        .into_inner();
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..CLIENTS {
        let (node, image, models) = (node.clone(), image.clone(), models.clone());
        clients.spawn(async move {
            let mut random = Random(seed.wrapping_mul(2 * client + 1) | 1);
            for _ in 0..steps {
                let index = usize::try_from(random.below(count)).unwrap();
                let mut model = models[index].lock().await;
                model.step(&node, &image, &mut random).await;
            }
        });
    }
    clients.join_all().await;
    for model in models.iter() {
        model.lock().await.remove(&node).await;
    }
    let request = v1::ListContainersRequest::default();
    let left = node.runtime().list_containers(request).await.unwrap();
    assert!(left.into_inner().containers.is_empty());
    let node = Arc::into_inner(node).unwrap();
    node.finish().unwrap();
    let mut lives: HashMap<String, Vec<i32>> = HashMap::new();
    // The daemon has ended, and the stream with it.
    while let Ok(Some(event)) = events.message().await {
        let life = lives.entry(event.container_id).or_default();
        life.push(event.container_event_type);
    }
    assert!(!lives.is_empty());
    for (id, life) in lives {
        let in_order = life == [0, 1, 2, 3] || life == [0, 2, 3];
        assert!(in_order, "{id}: {life:?}");
    }
}

impl Model {
    async fn step(&mut self, node: &Node, image: &str, random: &mut Random) {
        self.check(node).await;
        let Some(pod) = self.pod.as_mut() else {
            return self.absent(node, random).await;
        };
        match random.below(8) {
            0 if pod.ready => pod.stop(node).await,
            0 | 1 if !pod.ready => self.remove(node).await,
            1 => self.double(node).await,
            _ => pod.step(node, image, random).await,
        }
    }

    fn config(&self, node: &Node, random: &mut Random) -> v1::PodSandboxConfig {
        let mut config = pod::config(node, &self.name);
        let value = random.below(1000).to_string();
        config.labels = [
            ("app".to_owned(), self.name.clone()),
            ("n".to_owned(), value),
        ]
        .into();
        config.annotations = [("a/b".to_owned(), "ä \n \"x\"".to_owned())].into();
        config.linux = Some(v1::LinuxPodSandboxConfig {
            resources: Some(v1::LinuxContainerResources {
                memory_limit_in_bytes: 32 << 20,
                ..Default::default()
            }),
            ..Default::default()
        });
        config
    }

    /// No such pod: it can be made, by one of two who want to at once.
    async fn absent(&mut self, node: &Node, random: &mut Random) {
        let config = self.config(node, random);
        let request = v1::RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: String::new(),
        };
        let (mut one, mut other) = (node.runtime(), node.runtime());
        let (one, other) = tokio::join!(
            one.run_pod_sandbox(request.clone()),
            other.run_pod_sandbox(request)
        );
        let (made, refused) = match (one, other) {
            (Ok(made), Err(error)) | (Err(error), Ok(made)) => (made, error),
            both => panic!("{}: not one of two: {both:?}", self.name),
        };
        assert_eq!(refused.code(), Code::AlreadyExists, "{refused}");
        self.pod = Some(ModelPod {
            id: made.into_inner().pod_sandbox_id,
            ready: true,
            config,
            containers: BTreeMap::new(),
        });
    }

    async fn double(&mut self, node: &Node) {
        let config = self.pod.as_ref().map(|pod| pod.config.clone());
        let request = v1::RunPodSandboxRequest {
            config,
            runtime_handler: String::new(),
        };
        let error = node.runtime().run_pod_sandbox(request).await.unwrap_err();
        assert_eq!(error.code(), Code::AlreadyExists, "{error}");
    }

    async fn remove(&mut self, node: &Node) {
        let Some(pod) = self.pod.take() else { return };
        let request = v1::RemovePodSandboxRequest {
            pod_sandbox_id: pod.id.clone(),
        };
        node.runtime().remove_pod_sandbox(request).await.unwrap();
        let request = v1::PodSandboxStatusRequest {
            pod_sandbox_id: pod.id,
            verbose: false,
        };
        let error = node
            .runtime()
            .pod_sandbox_status(request)
            .await
            .unwrap_err();
        assert_eq!(error.code(), Code::NotFound, "{error}");
    }

    /// What every list and status must say now.
    async fn check(&self, node: &Node) {
        let selector = [("app".to_owned(), self.name.clone())].into();
        let filter = v1::PodSandboxFilter {
            label_selector: selector,
            ..Default::default()
        };
        let request = v1::ListPodSandboxRequest {
            filter: Some(filter),
        };
        let list = node.runtime().list_pod_sandbox(request).await.unwrap();
        let list = list.into_inner().items;
        let ids: Vec<_> = list.iter().map(|pod| pod.id.as_str()).collect();
        let want: Vec<_> = self.pod.iter().map(|pod| pod.id.as_str()).collect();
        assert_eq!(ids, want, "{}", self.name);
        let (Some(pod), Some(listed)) = (&self.pod, list.first()) else {
            return;
        };
        let ready = listed.state() == v1::PodSandboxState::SandboxReady;
        assert_eq!(ready, pod.ready, "{}", self.name);
        assert_eq!(listed.labels, pod.config.labels);
        assert_eq!(listed.annotations, pod.config.annotations);
        assert_eq!(listed.metadata, pod.config.metadata);
        let filter = v1::ContainerFilter {
            // A beginning of the id is enough.
            pod_sandbox_id: pod.id[..20].to_owned(),
            ..Default::default()
        };
        let request = v1::ListContainersRequest {
            filter: Some(filter),
        };
        let list = node.runtime().list_containers(request).await.unwrap();
        let found: BTreeMap<_, _> = list
            .into_inner()
            .containers
            .into_iter()
            .map(|one| {
                (
                    one.metadata.clone().unwrap().name,
                    (one.id.clone(), one.state()),
                )
            })
            .collect();
        assert_eq!(found, pod.containers, "{}", self.name);
    }
}

impl ModelPod {
    async fn stop(&mut self, node: &Node) {
        let request = v1::StopPodSandboxRequest {
            pod_sandbox_id: self.id.clone(),
        };
        node.runtime().stop_pod_sandbox(request).await.unwrap();
        self.ready = false;
        for (_, state) in self.containers.values_mut() {
            *state = State::ContainerExited;
        }
    }

    /// Something with one of its containers.
    async fn step(&mut self, node: &Node, image: &str, random: &mut Random) {
        let name = format!("c{}", random.below(3));
        let Some((id, state)) = self.containers.get(&name).cloned() else {
            return self.create(node, image, name).await;
        };
        let mut runtime = node.runtime();
        match random.below(6) {
            0 => {
                let request = v1::RemoveContainerRequest { container_id: id };
                runtime.remove_container(request).await.unwrap();
                self.containers.remove(&name);
            }
            1 => {
                let request = v1::StopContainerRequest {
                    container_id: id,
                    timeout: 0,
                };
                runtime.stop_container(request).await.unwrap();
                self.containers.get_mut(&name).unwrap().1 = State::ContainerExited;
            }
            2 => self.create(node, image, name).await,
            3 => {
                let word = random.below(1_000_000).to_string();
                let result = exec(node, &id, &["echo", &word], 60).await;
                match state {
                    State::ContainerRunning => {
                        assert_eq!(result.unwrap().stdout, format!("{word}\n").as_bytes());
                    }
                    _ => assert_eq!(result.unwrap_err().code(), Code::FailedPrecondition),
                }
            }
            _ => {
                let request = v1::StartContainerRequest { container_id: id };
                let result = runtime.start_container(request).await;
                match state {
                    State::ContainerCreated => {
                        result.unwrap();
                        self.containers.get_mut(&name).unwrap().1 = State::ContainerRunning;
                    }
                    _ => assert_eq!(result.unwrap_err().code(), Code::FailedPrecondition),
                }
            }
        }
    }

    async fn create(&mut self, node: &Node, image: &str, name: String) {
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: self.id.clone(),
            config: Some(container(&name, image, &["sleep", "100000"])),
            sandbox_config: Some(self.config.clone()),
        };
        let made = node.runtime().create_container(request).await;
        match (self.ready, self.containers.contains_key(&name)) {
            (false, _) => assert_eq!(made.unwrap_err().code(), Code::FailedPrecondition),
            (true, true) => assert_eq!(made.unwrap_err().code(), Code::AlreadyExists),
            (true, false) => {
                let id = made.unwrap().into_inner().container_id;
                self.containers.insert(name, (id, State::ContainerCreated));
            }
        }
    }
}
