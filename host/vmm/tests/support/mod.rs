//! Plays the daemon: starts `bulkhead-vmm` with descriptors only, talks to it, and reports its end.

#![allow(
    unreachable_pub,
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use bulkhead_vmm_api::wire;
use bulkhead_vmm_api::{ExitReason, GuestConnection, Reply, Request, VmmConfig, VmmStatus};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long anything may take; the lab is slow.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What a VM is made of.
#[derive(Clone)]
pub struct Shape {
    pub vcpus: u8,
    pub memory_mib: u64,
    pub cmdline: String,
    pub read_only_slots: u8,
    pub read_write_slots: u8,
    pub kernel: PathBuf,
    pub initrd: PathBuf,
    pub network_interfaces: u8,
    /// Whether the host's kernel moves the packets.
    pub vhost_net: bool,
}

impl Shape {
    /// `BULKHEAD_EXTRA_CMDLINE` adds to the kernel's command line. One vCPU, 128 MiB, two slots of each kind, and the images that the environment names.
    pub fn new(images: &Images) -> Self {
        Self {
            vcpus: 1,
            memory_mib: 128,
            cmdline: format!(
                "{} {}",
                bulkhead_vmm_api::GUEST_CMDLINE,
                std::env::var("BULKHEAD_EXTRA_CMDLINE").unwrap_or_default()
            ),
            read_only_slots: 2,
            read_write_slots: 2,
            kernel: images.kernel.clone(),
            initrd: images.initrd.clone(),
            network_interfaces: 0,
            vhost_net: false,
        }
    }
}

/// The images that tests with a guest need.
#[derive(Clone)]
pub struct Images {
    pub kernel: PathBuf,
    pub initrd: PathBuf,
}

impl Images {
    /// `BULKHEAD_GUEST_KERNEL` is a kernel, `BULKHEAD_TEST_INIT` the test's init; without them the
    /// tests that need them do nothing.
    pub fn find() -> Option<Self> {
        let kernel = PathBuf::from(std::env::var_os("BULKHEAD_GUEST_KERNEL")?);
        let init = std::fs::read(std::env::var_os("BULKHEAD_TEST_INIT")?).unwrap();
        let initrd = std::env::temp_dir().join(format!("vmm-test-{}.cpio", std::process::id()));
        if !initrd.exists() {
            std::fs::write(&initrd, cpio(&init)).unwrap();
        }
        Some(Self { kernel, initrd })
    }
}

/// An initramfs with nothing but `/init` and the directories that it needs.
pub fn cpio(init: &[u8]) -> Vec<u8> {
    let mut archive = Vec::new();
    let mut entry = |name: &str, mode: u32, data: &[u8]| {
        let fields = [0, mode, 0, 0, 1, 0, data.len() as u32, 0, 0, 5, 1];
        archive.extend_from_slice(b"070701");
        for field in fields {
            archive.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        archive.extend_from_slice(format!("{:08x}{:08x}{name}\0", name.len() + 1, 0).as_bytes());
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend_from_slice(data);
        archive.resize(archive.len().next_multiple_of(4), 0);
    };
    for name in ["dev", "proc", "sys"] {
        entry(name, 0o040_755, &[]);
    }
    // The device number 5:1 is the console's; other entries do not have one.
    entry("dev/console", 0o020_600, &[]);
    entry("init", 0o100_755, init);
    entry("TRAILER!!!", 0, &[]);
    archive
}

/// A running VMM.
pub struct Vm {
    pub child: Child,
    pub control: OwnedFd,
    pub feed: OwnedFd,
    vsock: PathBuf,
    control_path: PathBuf,
    folder: PathBuf,
    pub started: Instant,
}

impl Vm {
    /// Starts a VM, the feed being asked for before it runs.
    pub fn start(shape: &Shape) -> Self {
        let folder = std::env::temp_dir().join(format!(
            "vmm-{}-{}",
            std::process::id(),
            rustix::time::clock_gettime(rustix::time::ClockId::Monotonic).tv_nsec
        ));
        std::fs::create_dir_all(&folder).unwrap();
        let (control_path, vsock) = (folder.join("control"), folder.join("vsock"));
        let control_listener = listener(&control_path, SocketType::SEQPACKET);
        let vsock_listener = listener(&vsock, SocketType::STREAM);
        let control = client(&control_path);
        let feed = client(&control_path);
        wire::send(&feed, &Request::AcceptGuestConnections, &[]).unwrap();
        let kvm = File::options()
            .read(true)
            .write(true)
            .open("/dev/kvm")
            .unwrap();
        let kernel = File::open(&shape.kernel).unwrap();
        let initrd = File::open(&shape.initrd).unwrap();
        let mut fds: Vec<OwnedFd> = vec![
            kvm.into(),
            kernel.into(),
            initrd.into(),
            control_listener,
            vsock_listener,
        ];
        if shape.vhost_net {
            let pairs = bulkhead_vmm_api::queue_pairs(shape.vcpus);
            let count = pairs * usize::from(shape.network_interfaces);
            fds.extend((0..count).map(|_| vhost_net()));
        }
        let started = Instant::now();
        let child = spawn(
            |fds| VmmConfig {
                vcpus: shape.vcpus,
                memory_mib: shape.memory_mib,
                cmdline: shape.cmdline.clone(),
                kvm_fd: fds[0],
                kernel_fd: fds[1],
                initrd_fd: fds[2],
                control_fd: fds[3],
                vsock_fd: fds[4],
                read_only_slots: shape.read_only_slots,
                read_write_slots: shape.read_write_slots,
                network_interfaces: shape.network_interfaces,
                shared_volumes: false,
                vhost_net_fds: fds[5..].to_vec(),
                uid: user(),
                gid: user(),
                network_namespace_fd: None,
            },
            fds,
        );
        Self {
            child,
            control,
            feed,
            vsock,
            control_path,
            folder,
            started,
        }
    }

    /// Waits until the guest has announced itself; answers what it said.
    pub fn ready(&mut self) -> String {
        let reply: Reply = self.receive_on_feed().0;
        assert_eq!(reply, Reply::Done);
        let (connection, mut stream) = self.dialled();
        assert_eq!(connection.port, 1024);
        let mut line = String::new();
        stream.read_to_string(&mut line).unwrap();
        line
    }

    /// Waits for a connection that the guest opens.
    pub fn dialled(&mut self) -> (GuestConnection, UnixStream) {
        let (connection, mut fds) = self.receive_on_feed();
        assert_eq!(fds.len(), 1);
        let stream = UnixStream::from(fds.remove(0));
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        (connection, stream)
    }

    fn receive_on_feed<T: serde::de::DeserializeOwned>(&mut self) -> (T, Vec<OwnedFd>) {
        wait_readable(&self.feed, &mut self.child);
        wire::receive(&self.feed)
            .unwrap()
            .expect("the feed was closed")
    }

    /// One request and its answer.
    pub fn ask(&mut self, request: &Request, files: &[&File]) -> Reply {
        let fds: Vec<_> = files.iter().map(|file| file.as_fd()).collect();
        wire::send(&self.control, request, &fds).unwrap();
        self.answer()
    }

    /// The next answer.
    pub fn answer(&mut self) -> Reply {
        wait_readable(&self.control, &mut self.child);
        match wire::receive(&self.control) {
            Ok(Some((reply, _))) => reply,
            other => panic!(
                "the control connection ended: {:?}, {:?}",
                other.map(drop),
                finish(&mut self.child)
            ),
        }
    }

    /// Another control connection.
    pub fn another_control(&self) -> OwnedFd {
        client(&self.control_path)
    }

    pub fn status(&mut self) -> VmmStatus {
        match self.ask(&Request::Status, &[]) {
            Reply::Status(status) => status,
            other => panic!("{other:?}"),
        }
    }

    pub fn console(&mut self) -> String {
        match self.ask(&Request::Console { max_bytes: 60_000 }, &[]) {
            Reply::Console { text } => text,
            other => panic!("{other:?}"),
        }
    }

    /// A connection to a port of the guest; `None` when it is refused.
    pub fn connect(&self, port: u32) -> Option<UnixStream> {
        let mut stream = UnixStream::connect(&self.vsock).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        // A machine whose guest has no vsock driver yet closes at once, perhaps before this.
        writeln!(stream, "CONNECT {port}").ok()?;
        let mut line = Vec::new();
        let mut byte = [0];
        while byte != *b"\n" {
            if stream.read(&mut byte).unwrap_or(0) == 0 {
                return None;
            }
            line.push(byte[0]);
        }
        assert!(line.starts_with(b"OK "), "{line:?}");
        Some(stream)
    }

    /// A connection on which commands are given.
    pub fn shell(&self) -> Shell {
        Shell(BufReader::new(
            self.connect(5000).expect("the guest listens"),
        ))
    }

    /// Resident memory in KiB: the VMM's own, and the guest's.
    ///
    /// Guest memory is what is left out of core dumps (`dd`) or mapped from the images.
    pub fn own_memory_kib(&self) -> (u64, u64) {
        let smaps = std::fs::read_to_string(format!("/proc/{}/smaps", self.child.id())).unwrap();
        let (mut own, mut guest, mut size, mut image) = (0, 0, 0, false);
        for line in smaps.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                ["Rss:", kib, _] => size = kib.parse::<u64>().unwrap(),
                ["VmFlags:", ref flags @ ..] if image || flags.contains(&"dd") => guest += size,
                ["VmFlags:", ..] => own += size,
                [_, _, _, _, _, ref path @ ..] => {
                    let path = path.first().copied().unwrap_or_default();
                    image = path.ends_with("vmlinux") || path.ends_with(".cpio");
                }
                _ => {}
            }
        }
        (own, guest)
    }

    /// How many descriptors the VMM has open.
    pub fn open_files(&self) -> usize {
        let path = format!("/proc/{}/fd", self.child.id());
        std::fs::read_dir(path).unwrap().count()
    }

    /// How often the guest was left, by kind; nothing where debugfs is not mounted.
    pub fn exits(&self) -> String {
        let prefix = format!("{}-", self.child.id());
        let folders = std::fs::read_dir("/sys/kernel/debug/kvm")
            .into_iter()
            .flatten();
        let Some(folder) = folders
            .flatten()
            .find(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
        else {
            return String::new();
        };
        ["exits", "io_exits", "mmio_exits", "irq_injections"]
            .map(|name| {
                let text = std::fs::read_to_string(folder.path().join(name)).unwrap_or_default();
                format!("{name} {}", text.trim())
            })
            .join(", ")
    }

    /// Waits for the end and answers its reason and what was printed.
    pub fn end(mut self) -> (Option<ExitReason>, String) {
        let result = finish(&mut self.child);
        let _ = std::fs::remove_dir_all(&self.folder);
        result
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        if std::thread::panicking() && self.child.try_wait().is_ok_and(|end| end.is_none()) {
            let Ok(control) = try_client(&self.control_path) else {
                return;
            };
            let _ = rustix::net::sockopt::set_socket_timeout(
                &control,
                rustix::net::sockopt::Timeout::Recv,
                Some(Duration::from_secs(2)),
            );
            let _ = wire::send(&control, &Request::Console { max_bytes: 8000 }, &[]);
            if let Ok(Some((Reply::Console { text }, _))) = wire::receive(&control) {
                eprintln!("--- console ---\n{text}\n---");
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// A new tap device as the daemon makes it, in this many queues.
pub fn tap(name: &str, queues: usize) -> Vec<File> {
    // IFF_TAP, IFF_NO_PI, IFF_VNET_HDR, and IFF_MULTI_QUEUE.
    let flags = 0x5002_u16 | if queues > 1 { 0x100 } else { 0 };
    (0..queues)
        .map(|_| {
            let tap = File::options()
                .read(true)
                .write(true)
                .open("/dev/net/tun")
                .unwrap();
            let mut request = [0_u8; 40];
            request[..name.len()].copy_from_slice(name.as_bytes());
            request[16..18].copy_from_slice(&flags.to_le_bytes());
            // SAFETY: TUNSETIFF on a `struct ifreq` of 40 bytes.
            let result = unsafe { libc::ioctl(tap.as_raw_fd(), 0x4004_54ca, request.as_mut_ptr()) };
            assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
            tap
        })
        .collect()
}

/// A freshly opened `/dev/vhost-net`, whose module is loaded if need be.
fn vhost_net() -> OwnedFd {
    let path = "/dev/vhost-net";
    if !Path::new(path).exists() {
        let status = Command::new("modprobe").arg("vhost_net").status();
        assert!(status.unwrap().success(), "vhost_net cannot be loaded");
    }
    let options = File::options().read(true).write(true).open(path);
    options.unwrap().into()
}

/// Gives an interface of the host an address and brings it up.
pub fn configure(name: &str, address: &str) {
    for arguments in [
        format!("addr add {address} dev {name}"),
        format!("link set {name} up"),
    ] {
        let status = Command::new("ip").args(arguments.split(' ')).status();
        assert!(status.unwrap().success());
    }
}

/// Waits until something is so.
pub fn eventually(what: &str, is: impl Fn() -> bool) {
    let start = Instant::now();
    while !is() {
        assert!(
            start.elapsed() < PATIENCE,
            "not within {PATIENCE:?}: {what}"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Commands for the test's init.
pub struct Shell(BufReader<UnixStream>);

impl Shell {
    pub fn tell(&mut self, command: &str) {
        writeln!(self.0.get_mut(), "{command}").unwrap();
    }

    pub fn ask(&mut self, command: &str) -> String {
        self.tell(command);
        self.answer()
    }

    pub fn answer(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Asks until the answer is this one.
    pub fn wait(&mut self, command: &str, answer: &str) {
        let start = Instant::now();
        loop {
            let got = self.ask(command);
            if got == answer {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "{command}: {got}, not {answer}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// A user that no other VMM of the tests is.
pub fn user() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let process = std::process::id();
    0x7000_0000 + (process & 0xffff) * 0x100 + NEXT.fetch_add(1, Ordering::Relaxed) % 0x100
}

/// Starts the VMM with these descriptors, which `config` gets the numbers of.
pub fn spawn(config: impl FnOnce(&[i32]) -> VmmConfig, fds: Vec<OwnedFd>) -> Child {
    // Numbers far from those that this process uses itself.
    let numbers: Vec<i32> = (0..fds.len()).map(|index| 100 + index as i32).collect();
    let json = serde_json::to_vec(&config(&numbers)).unwrap();
    spawn_raw(&json, fds)
}

/// Starts the VMM with this standard input, and these descriptors as number 100 and up.
pub fn spawn_raw(json: &[u8], fds: Vec<OwnedFd>) -> Child {
    let pairs: Vec<(i32, i32)> = (100..)
        .zip(&fds)
        .map(|(to, fd)| (fd.as_raw_fd(), to))
        .collect();
    let mut command = Command::new(vmm_path());
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    // SAFETY: dup2 may be called between fork and exec; it also clears close-on-exec.
    unsafe {
        command.pre_exec(move || {
            for (from, to) in &pairs {
                if libc::dup2(*from, *to) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
    let mut child = command.spawn().unwrap();
    // A VMM that has heard enough does not read on.
    let _ = child.stdin.take().unwrap().write_all(json);
    child
}

fn vmm_path() -> PathBuf {
    match std::env::var_os("BULKHEAD_VMM") {
        Some(path) => path.into(),
        // Cargo says where it is to tests of this package.
        None => Path::new(option_env!("CARGO_BIN_EXE_bulkhead-vmm").unwrap_or_default()).to_owned(),
    }
}

/// Waits for a VMM's end within [`PATIENCE`].
pub fn finish(child: &mut Child) -> (Option<ExitReason>, String) {
    let start = Instant::now();
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None if start.elapsed() > PATIENCE => {
                child.kill().unwrap();
                panic!("the VMM did not end");
            }
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    let mut text = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    (status.code().and_then(ExitReason::from_status), text)
}

/// A listening socket.
pub fn listener(path: &Path, kind: SocketType) -> OwnedFd {
    let socket = socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap();
    bind(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
    listen(&socket, 64).unwrap();
    socket
}

fn client(path: &Path) -> OwnedFd {
    try_client(path).unwrap()
}

fn try_client(path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

fn wait_readable(fd: &OwnedFd, child: &mut Child) {
    use rustix::event::{PollFd, PollFlags, poll};
    let start = Instant::now();
    loop {
        let mut fds = [PollFd::new(fd, PollFlags::IN)];
        let tick = rustix::time::Timespec {
            tv_sec: 0,
            tv_nsec: 100_000_000,
        };
        if poll(&mut fds, Some(&tick)).unwrap() > 0 {
            return;
        }
        if let Some(status) = child.try_wait().unwrap() {
            let mut text = String::new();
            child
                .stderr
                .take()
                .unwrap()
                .read_to_string(&mut text)
                .unwrap();
            panic!("the VMM ended with {status}: {text}");
        }
        assert!(start.elapsed() < PATIENCE, "the VMM said nothing");
    }
}

/// Prints where the test harness does not keep it back: a skipped test must say why.
pub fn say(text: &str) {
    std::io::stderr().write_all(text.as_bytes()).unwrap();
}
