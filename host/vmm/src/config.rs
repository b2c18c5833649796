//! From a [`VmmConfig`] to owned, checked descriptors.

use crate::cage::Cage;
use crate::devices::blk::MAX_THREADS;
use crate::error::Error;
use bulkhead_vmm_api::{MAX_INTERFACES, VmmConfig, queue_pairs};
use rustix::fs::FileType;
use rustix::net::{SocketType, sockopt};
use std::collections::HashSet;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// The most virtual CPUs.
pub const MAX_VCPUS: u8 = 32;
/// The least guest memory in MiB.
pub const MIN_MEMORY_MIB: u64 = 64;
/// The most guest memory in MiB: 1 TiB, far below any processor's physical address width.
pub const MAX_MEMORY_MIB: u64 = 1024 * 1024;
/// The most disk slots of both kinds together.
pub const MAX_SLOTS: u64 = 64;
/// The longest kernel command line in bytes; Linux on x86-64 takes 2047.
pub const MAX_CMDLINE: usize = 2047;

/// The machine's size and everything it was given, owned.
#[derive(Debug)]
pub struct Resources {
    /// Number of virtual CPUs.
    pub vcpus: u8,
    /// Guest memory in MiB.
    pub memory_mib: u64,
    /// Kernel command line.
    pub cmdline: String,
    /// `/dev/kvm`.
    pub kvm: OwnedFd,
    /// Kernel image.
    pub kernel: File,
    /// Initramfs.
    pub initrd: File,
    /// Listening control socket.
    pub control: OwnedFd,
    /// Listening socket for connections into the guest.
    pub vsock: OwnedFd,
    /// Number of read-only disk slots.
    pub read_only_slots: u8,
    /// Number of read-write disk slots.
    pub read_write_slots: u8,
    /// Number of network interfaces.
    pub network_interfaces: u8,
    /// Whether there is a device for shared volumes.
    pub shared_volumes: bool,
    /// `/dev/vhost-net` for each pair of queues of each interface, or none.
    pub vhost_net: Vec<OwnedFd>,
    /// What the process becomes.
    pub cage: Cage,
}

impl Resources {
    /// Checks the configuration and takes its descriptors.
    ///
    /// # Errors
    /// [`Error::Config`] and [`Error::Descriptor`].
    pub fn take(config: &VmmConfig) -> Result<Self, Error> {
        check_numbers(config)?;
        let mut seen = HashSet::new();
        let mut take = |name, fd| take(&mut seen, name, fd);
        let kvm = take("kvm_fd", config.kvm_fd)?;
        let kernel = take("kernel_fd", config.kernel_fd)?;
        let initrd = take("initrd_fd", config.initrd_fd)?;
        let control = take("control_fd", config.control_fd)?;
        let vsock = take("vsock_fd", config.vsock_fd)?;
        let vhost_net = config.vhost_net_fds.iter();
        let vhost_net = vhost_net
            .map(|fd| take("vhost_net_fds", *fd))
            .collect::<Result<Vec<_>, _>>()?;
        let namespace = config.network_namespace_fd;
        let namespace = namespace
            .map(|fd| take("network_namespace_fd", fd))
            .transpose()?;
        check_regular("kernel_fd", config.kernel_fd, kernel.as_fd())?;
        check_regular("initrd_fd", config.initrd_fd, initrd.as_fd())?;
        check_listener(
            "control_fd",
            config.control_fd,
            control.as_fd(),
            SocketType::SEQPACKET,
            "a listening SOCK_SEQPACKET socket",
        )?;
        check_listener(
            "vsock_fd",
            config.vsock_fd,
            vsock.as_fd(),
            SocketType::STREAM,
            "a listening SOCK_STREAM socket",
        )?;
        Ok(Self {
            vcpus: config.vcpus,
            memory_mib: config.memory_mib,
            cmdline: config.cmdline.clone(),
            kvm,
            kernel: kernel.into(),
            initrd: initrd.into(),
            control,
            vsock,
            read_only_slots: config.read_only_slots,
            read_write_slots: config.read_write_slots,
            network_interfaces: config.network_interfaces,
            shared_volumes: config.shared_volumes,
            vhost_net,
            cage: Cage {
                uid: config.uid,
                gid: config.gid,
                network: namespace,
                // Each vCPU and each pair of network queues has a thread; the disks have one and their
                // engine's.
                threads: u64::from(config.vcpus) + network_queues(config) as u64 + 1 + MAX_THREADS,
            },
        })
    }
}

/// Pairs of queues of all network interfaces.
fn network_queues(config: &VmmConfig) -> usize {
    usize::from(config.network_interfaces) * queue_pairs(config.vcpus)
}

fn slots(config: &VmmConfig) -> u64 {
    u64::from(config.read_only_slots) + u64::from(config.read_write_slots)
}

fn check_numbers(config: &VmmConfig) -> Result<(), Error> {
    let refuse = |text: String| Err(Error::Config(text));
    if !(1..=MAX_VCPUS).contains(&config.vcpus) {
        return refuse(format!(
            "{} vCPUs, but a machine has 1 to {MAX_VCPUS}",
            config.vcpus
        ));
    }
    if !(MIN_MEMORY_MIB..=MAX_MEMORY_MIB).contains(&config.memory_mib) {
        return refuse(format!(
            "{} MiB of memory, but a machine has {MIN_MEMORY_MIB} to {MAX_MEMORY_MIB}",
            config.memory_mib
        ));
    }
    let slots = slots(config);
    if slots > MAX_SLOTS {
        return refuse(format!(
            "{slots} disk slots, but a machine has at most {MAX_SLOTS}"
        ));
    }
    if config.network_interfaces > MAX_INTERFACES {
        return refuse(format!(
            "{} network interfaces, but a machine has at most {MAX_INTERFACES}",
            config.network_interfaces
        ));
    }
    let vhost = config.vhost_net_fds.len();
    let pairs = network_queues(config);
    if vhost != 0 && vhost != pairs {
        return refuse(format!(
            "{vhost} descriptors of vhost-net for {pairs} pairs of queues"
        ));
    }
    // To the kernel -1 means that nothing shall change.
    let ids = [config.uid, config.gid];
    if ids.contains(&0) || ids.contains(&u32::MAX) {
        return refuse("a VMM runs neither as root nor as user or group -1".to_owned());
    }
    if config.cmdline.len() > MAX_CMDLINE || config.cmdline.contains('\0') {
        return refuse(format!(
            "the command line is longer than {MAX_CMDLINE} bytes or holds a zero byte"
        ));
    }
    Ok(())
}

/// Takes ownership of descriptor number `fd`, once.
fn take(seen: &mut HashSet<RawFd>, name: &'static str, fd: RawFd) -> Result<OwnedFd, Error> {
    let wrong = |expected| Error::Descriptor { name, fd, expected };
    if fd <= 2 || !seen.insert(fd) {
        return Err(wrong("a descriptor of its own beyond the standard streams"));
    }
    // SAFETY: F_GETFD only asks whether the number is open.
    if unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
        return Err(wrong("open"));
    }
    // SAFETY: the number is open, it was handed to this process for this purpose by whoever started
    // it, and `seen` makes sure that nobody else takes it.
    let owned = unsafe { OwnedFd::from_raw_fd(fd) };
    rustix::io::fcntl_setfd(&owned, rustix::io::FdFlags::CLOEXEC)
        .map_err(Error::host("set close-on-exec"))?;
    Ok(owned)
}

fn check_regular(name: &'static str, fd: RawFd, file: BorrowedFd<'_>) -> Result<(), Error> {
    let regular = rustix::fs::fstat(file)
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile);
    if regular {
        Ok(())
    } else {
        Err(Error::Descriptor {
            name,
            fd,
            expected: "a regular file",
        })
    }
}

fn check_listener(
    name: &'static str,
    fd: RawFd,
    socket: BorrowedFd<'_>,
    kind: SocketType,
    expected: &'static str,
) -> Result<(), Error> {
    let listens = sockopt::socket_acceptconn(socket) == Ok(true);
    if listens && sockopt::socket_type(socket) == Ok(kind) {
        Ok(())
    } else {
        Err(Error::Descriptor { name, fd, expected })
    }
}
