//! The agent as PID 1 of a real guest: QEMU's microvm with the guest kernel, vsock and disks.
//!
//! BULKHEAD_GUEST_KERNEL and BULKHEAD_AGENT name the kernel (ELF) and the static agent. Without
//! them, KVM, vhost-vsock, QEMU, mkfs.erofs and mkfs.ext4 the test says so and does nothing, unless
//! BULKHEAD_LAB=1 makes that an error.
#![allow(missing_docs)]

#[path = "../engine/image.rs"]
mod image;
mod machine;

use bulkhead_agent_api::agent::{
    Announcement, ConfigureRequest, ContainerRequest, CreateContainerRequest, Empty, Event,
    EventsRequest, File, Stdio,
};
use bulkhead_agent_api::agent_ttrpc::AgentClient;
use bulkhead_agent_api::{ANNOUNCE_PORT, CONTROL_PORT, STREAM_PORT};
use machine::{CID, Machine};
use protobuf::Message;
use serde_json::json;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_vsock::{VMADDR_CID_ANY, VsockAddr, VsockListener, VsockStream};
use ttrpc::r#async::Client;
use ttrpc::context::{Context, with_timeout};

const SECOND: i64 = 1_000_000_000;

#[tokio::test]
async fn a_pod_from_announcement_to_power_off() {
    if let Some(why) = machine::unsuitable() {
        let must = std::env::var_os("BULKHEAD_LAB").is_some_and(|value| value == "1");
        assert!(!must, "This must be a suitable machine, but {why}");
        let line = format!("skipped: {why}\n");
        std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes()).unwrap();
        return;
    }
    let mut listener = VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, ANNOUNCE_PORT)).unwrap();
    let mut machine = Machine::start();
    let announcement =
        tokio::time::timeout(Duration::from_secs(60), announced(&mut listener)).await;
    let announcement =
        announcement.unwrap_or_else(|_| panic!("No announcement\n{}", machine.console()));
    assert_eq!(announcement.version, 1);
    let time = announcement.ready_ns - announcement.init_started_ns;
    eprintln!(
        "kernel {}: agent ready after {} us",
        announcement.kernel_release,
        time / 1000
    );

    let client = Client::connect(&format!("vsock://{CID}:{CONTROL_PORT}"))
        .await
        .unwrap();
    let agent = AgentClient::new(client);
    disks_come_late(&agent, &mut machine).await;
    containers(&agent).await;

    let begin = Instant::now();
    agent.shutdown(within(30), &Empty::new()).await.unwrap();
    machine.ended(Duration::from_secs(30));
    eprintln!("shut down in {:?}", begin.elapsed());
    machine.check_scratch();
    let console = machine.console();
    assert!(
        !console.contains("panic") && !console.contains("WARNING"),
        "{console}"
    );
}

async fn announced(listener: &mut VsockListener) -> Announcement {
    let (mut stream, _) = listener.accept().await.unwrap();
    let length = stream.read_u32_le().await.unwrap();
    let mut body = vec![0; length as usize];
    stream.read_exact(&mut body).await.unwrap();
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
    Announcement::parse_from_bytes(&body).unwrap()
}

fn within(seconds: i64) -> Context {
    with_timeout(seconds * SECOND)
}

/// A disk is empty, then bound: the agent wakes by itself; then it has a file system, which grows.
async fn disks_come_late(agent: &AgentClient, machine: &mut Machine) {
    let mut request = ConfigureRequest::new();
    request.hostname = "pod-1".to_owned();
    request.scratch_disk = "scratch".to_owned();
    request.time_ns = 1_800_000_000 * SECOND as u64;
    request.shm_size = 1 << 20;
    request
        .sysctls
        .insert("net.ipv4.ip_forward".to_owned(), "1".to_owned());
    let mut hosts = File::new();
    (hosts.name, hosts.content) = ("hosts".to_owned(), b"127.0.0.1 localhost\n".to_vec());
    request.files.push(hosts);

    let error = agent
        .configure(within(2), &request)
        .await
        .unwrap_err()
        .to_string();
    // The client's own clock may be the faster one.
    let expected = error.contains("Disk scratch") || error.contains("deadline");
    assert!(expected, "{error}");
    let waiting = tokio::spawn({
        let (agent, request) = (agent.clone(), request.clone());
        async move { agent.configure(within(60), &request).await }
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!waiting.is_finished());
    let begin = Instant::now();
    machine.grow_scratch();
    let error = waiting.await.unwrap().unwrap_err().to_string();
    assert!(begin.elapsed() < Duration::from_secs(10));
    eprintln!("woke {:?} after the disk was bound", begin.elapsed());
    assert!(
        error.contains("Cannot mount the scratch disk scratch"),
        "{error}"
    );

    machine.fill_scratch();
    for _ in 0..2 {
        agent
            .configure(within(60), &request)
            .await
            .unwrap_or_else(|error| {
                panic!("{error}\n{}", machine.console());
            });
    }
    request
        .sysctls
        .insert("no.such.thing".to_owned(), "1".to_owned());
    let error = agent
        .configure(within(60), &request)
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("no.such.thing"), "{error}");
}

fn create(id: &str, script: &str, stdio: Stdio) -> CreateContainerRequest {
    let mut request = CreateContainerRequest::new();
    request.container_id = id.to_owned();
    request.image_disk = "image-0".to_owned();
    request.stdio = Some(stdio).into();
    request.user = "root".to_owned();
    let spec = json!({
        "ociVersion": "1.2.0",
        "process": {"user": {"uid": 0, "gid": 0}, "args": ["sh", "-c", script], "env": ["PATH=/bin"], "cwd": "/"},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
            {"destination": "/dev/shm", "type": "bind", "source": "/dev/shm", "options": ["rbind", "rw"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]},
            {"destination": "/etc/hosts", "type": "bind", "source": "/run/bulkhead/pod/hosts", "options": ["bind"]},
            {"destination": "/cache", "type": "bind", "source": "/run/bulkhead/scratch/volumes/cache", "options": ["rbind"]}
        ],
        "linux": {
            "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "cgroup"}],
            "resources": {"memory": {"limit": 134_217_728}},
            "maskedPaths": ["/proc/kcore", "/proc/keys"],
            "readonlyPaths": ["/proc/sys"]
        }
    });
    request.spec = spec.to_string().into_bytes();
    request
}

async fn containers(agent: &AgentClient) {
    let script = "hostname; cat /etc/hosts /proc/sys/net/ipv4/ip_forward; date +%Y; df -m /dev/shm | tail -1 | tr -s ' ' | cut -d' ' -f2; \
                  echo kept >> /cache/file; cat /cache/file; touch /data/new; ls /data; \
                  test $(df -m / | tail -1 | tr -s ' ' | cut -d' ' -f2) -gt 300; echo $?; ls -d /run /images 2>/dev/null";
    let text = run(agent, "first", script, 11).await;
    let expected = "pod-1\n127.0.0.1 localhost\n1\n2027\n1\nkept\ninside\nnew\nno-interpreter\nnot-executable\nsecret\n0\n";
    assert_eq!(text, expected);
    assert_eq!(
        run(agent, "second", "cat /cache/file; ls /data | wc -l", 12).await,
        "kept\n4\n"
    );

    let begin = Instant::now();
    let request = create(
        "fast",
        "dd if=/dev/zero bs=1M count=256 2>/dev/null",
        stdout(13),
    );
    agent.create_container(within(60), &request).await.unwrap();
    eprintln!("created in {:?}", begin.elapsed());
    let mut stream = stream(13).await;
    let begin = Instant::now();
    agent
        .start_container(within(60), &container("fast"))
        .await
        .unwrap();
    eprintln!("started in {:?}", begin.elapsed());
    let (mut total, mut chunk) = (0, vec![0; 1 << 18]);
    loop {
        match stream.read(&mut chunk).await.unwrap() {
            0 => break,
            n => total += n,
        }
    }
    assert_eq!(total, 256 << 20);
    eprintln!(
        "stdout: {} MB/s",
        total as u128 / 1000 / begin.elapsed().as_millis()
    );
    agent
        .remove_container(within(60), &container("fast"))
        .await
        .unwrap();

    // Left to the shutdown.
    agent
        .create_container(within(60), &create("left", "sleep 1000", Stdio::new()))
        .await
        .unwrap();
    agent
        .start_container(within(60), &container("left"))
        .await
        .unwrap();
}

/// Runs a container to its end and removes it.
async fn run(agent: &AgentClient, id: &str, script: &str, stdout_id: u64) -> String {
    agent
        .create_container(within(60), &create(id, script, stdout(stdout_id)))
        .await
        .unwrap();
    agent
        .start_container(within(60), &container(id))
        .await
        .unwrap();
    let mut text = String::new();
    stream(stdout_id)
        .await
        .read_to_string(&mut text)
        .await
        .unwrap();
    let mut events = agent
        .events(with_timeout(0), &EventsRequest::new())
        .await
        .unwrap();
    let is_it = |event: &Event| event.exit.container_id == id;
    loop {
        let event = events.recv().await.unwrap().unwrap();
        if is_it(&event) {
            assert_eq!(event.exit.stdout_bytes, text.len() as u64);
            break;
        }
    }
    agent
        .remove_container(within(60), &container(id))
        .await
        .unwrap();
    text
}

fn stdout(id: u64) -> Stdio {
    let mut stdio = Stdio::new();
    stdio.stdout = id;
    stdio
}

fn container(id: &str) -> ContainerRequest {
    let mut request = ContainerRequest::new();
    request.container_id = id.to_owned();
    request
}

async fn stream(id: u64) -> VsockStream {
    let mut stream = VsockStream::connect(VsockAddr::new(CID, STREAM_PORT))
        .await
        .unwrap();
    stream.write_all(&id.to_le_bytes()).await.unwrap();
    stream
}
