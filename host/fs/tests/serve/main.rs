//! The real program in its cage, with volumes put in as the daemon would, and a driver that asks it.
//! Needs to be root.

#![allow(
    unsafe_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod driver;
mod hostile;
mod limits;

use driver::Driver;
use rustix::fs::{CWD, FileType, Mode, mkdirat, mknodat};
use rustix::mount::{
    MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
    mount, mount_change, move_mount, open_tree, unmount,
};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const MKNOD: u32 = 8;
const OPEN: u32 = 14;
const READ: u32 = 15;
const WRITE: u32 = 16;
const INIT: u32 = 26;
const ROOT: u64 = 1;
const RDONLY: u32 = 0;
const RDWR: u32 = 2;
const EPERM: i32 = 1;
const ENOENT: i32 = 2;
const EBADF: i32 = 9;
const EROFS: i32 = 30;
const ESTALE: i32 = 116;

struct Served {
    child: Child,
    driver: Driver,
    directory: tempfile::TempDir,
}

impl Served {
    fn start() -> Self {
        Self::start_as(1)
    }

    fn start_as(epoch: u16) -> Self {
        Self::start_with(epoch, 1024)
    }

    fn start_with(epoch: u16, descriptors: u64) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        rustix::io::fcntl_setfd(&listener, rustix::io::FdFlags::empty()).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_bulkhead-fs"))
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let fd = listener.as_raw_fd();
        let config = format!(
            r#"{{"listener_fd":{fd},"descriptors":{descriptors},"threads":2,"epoch":{epoch}}}"#
        );
        child
            .stdin
            .take()
            .unwrap()
            .write_all(config.as_bytes())
            .unwrap();
        drop(listener);
        // It answers once it is in its cage.
        let mut driver = Driver::new(UnixStream::connect(&path).unwrap());
        let mut body = Vec::new();
        for number in [7_u32, 38, 0x2_0000, 0] {
            body.extend(number.to_le_bytes());
        }
        body.extend([0; 48]);
        driver.ask(INIT, 0, &body).unwrap();
        Self {
            child,
            driver,
            directory,
        }
    }

    /// Puts a directory of the host below the root, from a thread that has entered the namespace.
    fn mount(&self, source: &Path, name: &str, read_only: bool) {
        let volume = detached(source);
        if read_only {
            set_read_only(volume.as_fd(), true);
        }
        self.attach(&volume, name);
    }

    fn attach(&self, volume: &OwnedFd, name: &str) {
        self.inside(|| {
            // A second mount of the same file system, which can be written to.
            let root = detached(Path::new("/"));
            set_read_only(root.as_fd(), false);
            mkdirat(&root, name, Mode::from_raw_mode(0o700)).unwrap();
            let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
            move_mount(volume, "", CWD, format!("/{name}"), flags).unwrap();
        });
    }

    fn unmount(&self, name: &str) {
        self.inside(|| unmount(format!("/{name}"), UnmountFlags::DETACH).unwrap());
    }

    fn inside(&self, act: impl FnOnce() + Send) {
        let namespace = File::open(format!("/proc/{}/ns/mnt", self.child.id())).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // SAFETY: descriptors are not unshared.
                unsafe { unshare_unsafe(UnshareFlags::FS) }.unwrap();
                let kind = Some(LinkNameSpaceType::Mount);
                move_into_link_name_space(namespace.as_fd(), kind).unwrap();
                act();
            });
        });
    }

    fn look_up(&mut self, parent: u64, name: &str) -> Result<u64, i32> {
        let reply = self.driver.ask(LOOKUP, parent, &named(&[], name))?;
        Ok(u64::from_le_bytes(reply[..8].try_into().unwrap()))
    }

    fn open(&mut self, node: u64, flags: u32) -> Result<u64, i32> {
        let mut body = flags.to_le_bytes().to_vec();
        body.extend([0; 4]);
        let reply = self.driver.ask(OPEN, node, &body)?;
        Ok(u64::from_le_bytes(reply[..8].try_into().unwrap()))
    }

    fn read(&mut self, node: u64, handle: u64) -> Result<Vec<u8>, i32> {
        let mut body = handle.to_le_bytes().to_vec();
        body.extend(0_u64.to_le_bytes());
        body.extend(4096_u32.to_le_bytes());
        body.extend([0; 20]);
        self.driver.ask(READ, node, &body)
    }

    fn make_node(&mut self, parent: u64, name: &str, mode: u32, device: u32) -> Result<(), i32> {
        self.driver
            .ask(MKNOD, parent, &named(&[mode, device, 0, 0], name))
            .map(drop)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn named(numbers: &[u32], name: &str) -> Vec<u8> {
    let mut body: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
    body.extend(name.as_bytes());
    body.push(0);
    body
}

fn detached(source: &Path) -> OwnedFd {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    open_tree(CWD, source, flags).unwrap()
}

fn set_read_only(volume: BorrowedFd<'_>, read_only: bool) {
    let flag = u64::from(MountAttrFlags::MOUNT_ATTR_RDONLY.bits());
    let (set, clear) = if read_only { (flag, 0) } else { (0, flag) };
    set_attributes(volume, [set, clear, 0, 0]);
}

/// mount_setattr(2): attributes to set and to clear, propagation, user namespace.
fn set_attributes(volume: BorrowedFd<'_>, attributes: [u64; 4]) {
    // SAFETY: the path is an empty string, the attributes are four numbers as the kernel expects them,
    // both outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            volume.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            attributes.as_ptr(),
            size_of_val(&attributes),
        )
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn it_is_caged() {
    let served = Served::start();
    let process = format!("/proc/{}", served.child.id());
    let status = fs::read_to_string(format!("{process}/status")).unwrap();
    // CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, FSETID, SETGID, SETUID, SETFCAP.
    let kept = format!("{:016x}", 0xdf_u64 | 1 << 31);
    for line in [
        format!("CapPrm:\t{kept}"),
        format!("CapEff:\t{kept}"),
        format!("CapBnd:\t{kept}"),
        "CapAmb:\t0000000000000000".to_owned(),
        "NoNewPrivs:\t1".to_owned(),
        "Seccomp:\t2".to_owned(),
    ] {
        assert!(status.lines().any(|have| have == line), "{line}\n{status}");
    }
    for namespace in ["mnt", "net", "ipc", "uts"] {
        let theirs = fs::read_link(format!("{process}/ns/{namespace}")).unwrap();
        let ours = fs::read_link(format!("/proc/self/ns/{namespace}")).unwrap();
        assert_ne!(theirs, ours);
    }
    let mounts = fs::read_to_string(format!("{process}/mountinfo")).unwrap();
    assert_eq!(mounts.lines().count(), 1, "{mounts}");
    assert!(mounts.contains(" / / ro,nosuid,nodev,noexec"), "{mounts}");
    assert_eq!(fs::read_dir(format!("{process}/root")).unwrap().count(), 0);
}

#[test]
fn a_volume_comes_and_goes_while_it_serves() {
    let mut served = Served::start();
    assert_eq!(served.look_up(ROOT, "0"), Err(ENOENT));
    let source = served.directory.path().join("volume");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("file"), "first").unwrap();
    served.mount(&source, "0", false);
    let volume = served.look_up(ROOT, "0").unwrap();
    let file = served.look_up(volume, "file").unwrap();
    let handle = served.open(file, RDWR).unwrap();
    assert_eq!(served.read(file, handle).unwrap(), b"first");
    // What the host writes is there at once.
    fs::write(source.join("file"), "second").unwrap();
    assert_eq!(served.read(file, handle).unwrap(), b"second");
    served.unmount("0");
    let empty = served.look_up(ROOT, "0").unwrap();
    assert_eq!(served.look_up(empty, "file"), Err(ENOENT));
}

#[test]
fn the_hosts_kernel_refuses_to_write_to_a_read_only_volume() {
    let mut served = Served::start();
    let source = served.directory.path().join("volume");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("file"), "content").unwrap();
    served.mount(&source, "0", true);
    let volume = served.look_up(ROOT, "0").unwrap();
    let file = served.look_up(volume, "file").unwrap();
    assert_eq!(served.open(file, RDWR), Err(EROFS));
    assert!(served.open(file, RDONLY).is_ok());
    let fifo = libc::S_IFIFO | 0o600;
    assert_eq!(served.make_node(volume, "new", fifo, 0), Err(EROFS));
}

#[test]
fn no_device_is_made_and_nothing_at_the_root() {
    let mut served = Served::start();
    let source = served.directory.path().join("volume");
    fs::create_dir(&source).unwrap();
    served.mount(&source, "0", false);
    let volume = served.look_up(ROOT, "0").unwrap();
    for kind in [libc::S_IFCHR, libc::S_IFBLK] {
        let result = served.make_node(volume, "device", kind | 0o600, 0x103);
        assert_eq!(result, Err(EPERM));
    }
    // The same call makes what is no device.
    served
        .make_node(volume, "fifo", libc::S_IFIFO | 0o600, 0)
        .unwrap();
    let result = served.make_node(ROOT, "fifo", libc::S_IFIFO | 0o600, 0);
    assert_eq!(result, Err(EROFS));
    // What lies beside the volume on the host is not above it here.
    let above = served.look_up(volume, "..").unwrap();
    assert_eq!(served.look_up(above, "socket"), Err(ENOENT));
    // And whoever may make devices here can: the refusal is the cage's.
    let device = rustix::fs::makedev(1, 3);
    let mode = Mode::from_raw_mode(0o600);
    mknodat(
        CWD,
        source.join("device"),
        FileType::CharacterDevice,
        mode,
        device,
    )
    .unwrap();
}

#[test]
fn a_mount_that_appears_on_the_host_later_is_in_the_volume() {
    let mut served = Served::start();
    let source = served.directory.path().join("volume");
    fs::create_dir(&source).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // The host of this test is a namespace of its own.
            let own = UnshareFlags::FS | UnshareFlags::NEWNS;
            // SAFETY: descriptors are not unshared.
            unsafe { unshare_unsafe(own) }.unwrap();
            let all = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
            mount_change("/", all).unwrap();
            mount("none", &source, "tmpfs", MountFlags::empty(), None).unwrap();
            mount_change(&source, MountPropagationFlags::SHARED).unwrap();
            for name in ["slave", "private"] {
                let volume = detached(&source);
                let propagation = match name {
                    "slave" => libc::MS_SLAVE,
                    _ => libc::MS_PRIVATE,
                };
                set_attributes(volume.as_fd(), [0, 0, propagation, 0]);
                served.attach(&volume, name);
            }
            let later = source.join("later");
            fs::create_dir(&later).unwrap();
            mount("none", &later, "tmpfs", MountFlags::empty(), None).unwrap();
            fs::write(later.join("file"), "").unwrap();
            for (name, found) in [("slave", true), ("private", false)] {
                let volume = served.look_up(ROOT, name).unwrap();
                let later = served.look_up(volume, "later").unwrap();
                assert_eq!(served.look_up(later, "file").is_ok(), found, "{name}");
            }
        });
    });
}

#[test]
fn the_next_process_takes_no_number_of_the_last_for_another_file() {
    const VOLUME: &str = "0123456789ab-0";
    let mut first = Served::start_as(1);
    let source = first.directory.path().join("volume");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("file"), "of the first").unwrap();
    fs::write(source.join("other"), "of the second").unwrap();
    first.mount(&source, VOLUME, false);
    let volume = first.look_up(ROOT, VOLUME).unwrap();
    let file = first.look_up(volume, "file").unwrap();
    let handle = first.open(file, RDWR).unwrap();
    first.child.kill().unwrap();
    first.child.wait().unwrap();

    let mut second = Served::start_as(2);
    assert_eq!(second.look_up(volume, "file"), Err(ESTALE));
    second.mount(&source, VOLUME, false);
    // The volume is what it was, although nobody has looked it up here.
    let other = second.look_up(volume, "other").unwrap();
    let others = second.open(other, RDONLY).unwrap();
    // Both are the first that their process gave, and neither is the other.
    assert_eq!(second.open(file, RDONLY), Err(ESTALE));
    assert_eq!(second.read(file, handle), Err(ESTALE));
    assert_eq!(second.read(other, handle), Err(EBADF));
    assert_eq!(second.read(other, others).unwrap(), b"of the second");
    assert_eq!(second.look_up(ROOT, VOLUME), Ok(volume));
    let again = second.look_up(volume, "file").unwrap();
    assert_ne!(again, file);
    let handle = second.open(again, RDWR).unwrap();
    assert_eq!(second.read(again, handle).unwrap(), b"of the first");
}

#[test]
fn a_write_by_a_user_takes_the_set_user_id_bit_away() {
    use std::os::unix::fs::PermissionsExt;
    let mut served = Served::start();
    let source = served.directory.path().join("volume");
    fs::create_dir(&source).unwrap();
    let path = source.join("file");
    let mode = || fs::metadata(&path).unwrap().permissions().mode() & 0o7777;
    let set = || {
        fs::write(&path, "program").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o4755)).unwrap();
    };
    set();
    served.mount(&source, "0", false);
    let volume = served.look_up(ROOT, "0").unwrap();
    let file = served.look_up(volume, "file").unwrap();
    // Each of the threads that serve has capabilities of its own.
    for _ in 0..20 {
        set();
        let flags = (libc::O_RDWR | libc::O_TRUNC).cast_unsigned();
        let kill = named(&[flags, 1], "")[..8].to_vec();
        let reply = served.driver.ask(OPEN, file, &kill).unwrap();
        assert_eq!(mode(), 0o755);
        let handle = u64::from_le_bytes(reply[..8].try_into().unwrap());
        for (flag, after) in [(0_u32, 0o4755), (4, 0o755)] {
            set();
            let mut body = handle.to_le_bytes().to_vec();
            body.extend(0_u64.to_le_bytes());
            for number in [1_u32, flag] {
                body.extend(number.to_le_bytes());
            }
            body.extend([0; 16]);
            body.push(b'x');
            served.driver.ask(WRITE, file, &body).unwrap();
            assert_eq!(mode(), after);
        }
    }
}
