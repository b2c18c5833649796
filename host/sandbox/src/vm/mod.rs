//! A pod's virtual machine: one `bulkhead-vmm` process, its sockets, and its end.
//!
//! The daemon binds both listening sockets in the pod's directory and hands them over, so that a
//! daemon started later finds the VMM again by path. The VMM gets its configuration, and with it
//! permission to begin, only when it is in the pod's cgroup.

pub(crate) mod announce;
mod control;
pub mod kvm;
mod process;
mod socket;
mod users;
mod watched;

use crate::cgroup::PodCgroup;
use crate::config::RuntimeConfig;
use crate::place::Place;
use crate::record::VmmIdentity;
use crate::{Result, SandboxError};
use async_trait::async_trait;
use bulkhead_vmm_api::{
    DiskSlot, GUEST_CMDLINE, NetworkLimits, RateLimits, Reply, Request, VmmConfig, VmmStatus,
    queue_pairs,
};
use control::Control;
use process::Process;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use tokio::net::UnixStream;
use users::User;

pub(crate) use announce::Feed;
pub(crate) use process::{Inherited, open_pidfd, start_ticks};
pub(crate) use socket::PodDirectory;
pub(crate) use users::Users;
pub(crate) use watched::watch;

/// What a new VM is made of.
pub(crate) struct VmRequest<'a> {
    pub(crate) pod: &'a str,
    pub(crate) directory: &'a Path,
    pub(crate) program: &'a Path,
    pub(crate) runtime: &'a RuntimeConfig,
    pub(crate) cgroup: &'a PodCgroup,
    pub(crate) vcpus: u8,
    pub(crate) memory_mib: u64,
    pub(crate) users: &'a Users,
    /// The pod's network namespace; without one it has no network.
    pub(crate) network: Option<OwnedFd>,
    /// How many network interfaces it has.
    pub(crate) network_interfaces: u8,
}

/// A running VM.
pub(crate) struct Vm {
    pod: String,
    directory: PodDirectory,
    control: Control,
    process: Process,
    cgroup: PodCgroup,
    /// Of each disk that is bound.
    disk_limits: RateLimits,
    /// Kept as long as the process.
    _user: User,
}

impl Vm {
    /// Starts a VM. The feed brings the connections that the guest opens, its announcement first.
    pub(crate) async fn start(request: VmRequest<'_>) -> Result<(Self, Feed)> {
        let kvm = kvm::open()?;
        let user = request.users.take()?;
        let kernel = open_part("guest kernel", "kernel", &request.runtime.kernel)?;
        let initrd = open_part("initramfs", "initramfs", &request.runtime.initramfs)?;
        let directory = PodDirectory::open(request.directory)?;
        let control_listener = directory.listen_packets("control.sock")?;
        let vsock_listener = directory.listen_stream("vsock.sock")?;
        // Connected before the VMM exists, so no connection of the guest's can come too early.
        let mut feed_control = Control::connect(request.pod, &directory)?;
        feed_control.send(&Request::AcceptGuestConnections).await?;
        let control = Control::connect(request.pod, &directory)?;
        let vhost_net = match request.runtime.vhost_net {
            true => vhost_net(request.vcpus, request.network_interfaces)?,
            false => Vec::new(),
        };
        let mut files = process::Inherited::default();
        let config = VmmConfig {
            vcpus: request.vcpus,
            memory_mib: request.memory_mib,
            cmdline: GUEST_CMDLINE.to_owned(),
            kvm_fd: files.add(kvm),
            kernel_fd: files.add(kernel),
            initrd_fd: files.add(initrd),
            control_fd: files.add(control_listener),
            vsock_fd: files.add(vsock_listener),
            read_only_slots: request.runtime.read_only_slots,
            read_write_slots: request.runtime.read_write_slots,
            network_interfaces: request.network_interfaces,
            shared_volumes: true,
            vhost_net_fds: vhost_net.into_iter().map(|fd| files.add(fd)).collect(),
            uid: user.id(),
            gid: user.id(),
            network_namespace_fd: request.network.map(|network| files.add(network)),
        };
        let log = directory.create_file("vmm.log")?;
        let launched = process::spawn(request.program, files, log)?;
        let process = launched
            .begin(request.pod, &config, request.cgroup, request.directory)
            .await?;
        let vm = Self {
            pod: request.pod.to_owned(),
            directory,
            control,
            process,
            cgroup: request.cgroup.clone(),
            disk_limits: request.runtime.disk_limits(),
            _user: user,
        };
        Ok((vm, Feed::new(feed_control)))
    }

    /// Finds a VM that an earlier daemon started. Fails if its process is gone or its control
    /// socket does not answer.
    pub(crate) async fn adopt(
        pod: &str,
        path: &Path,
        identity: &VmmIdentity,
        runtime: &RuntimeConfig,
        cgroup: &PodCgroup,
        users: &Users,
    ) -> Result<Self> {
        let process = Process::adopt(pod, identity, path, cgroup)?;
        let directory = PodDirectory::open(path)?;
        let control = Control::connect(pod, &directory)?;
        let vm = Self {
            pod: pod.to_owned(),
            directory,
            control,
            process,
            cgroup: cgroup.clone(),
            disk_limits: runtime.disk_limits(),
            _user: users.keep(identity.user),
        };
        vm.status().await?;
        Ok(vm)
    }

    pub(crate) fn identity(&self) -> VmmIdentity {
        self.process.identity.clone()
    }

    pub(crate) async fn status(&self) -> Result<VmmStatus> {
        match self
            .control
            .request("tell its status", &Request::Status, &[])
            .await?
        {
            Reply::Status(status) => Ok(status),
            other => Err(self.control.unexpected("tell its status", &other)),
        }
    }

    /// The newest part of the serial console; empty if the VMM does not answer.
    pub(crate) async fn console(&self) -> String {
        let request = Request::Console { max_bytes: 4096 };
        match self
            .control
            .request("show its console", &request, &[])
            .await
        {
            Ok(Reply::Console { text }) => text,
            _ => String::new(),
        }
    }

    async fn done(&self, doing: &'static str, request: Request, fds: &[OwnedFd]) -> Result<()> {
        match self.control.request(doing, &request, fds).await? {
            Reply::Done => Ok(()),
            other => Err(self.control.unexpected(doing, &other)),
        }
    }
}

#[async_trait]
impl Place for Vm {
    async fn dial(&self, port: u32) -> Result<UnixStream> {
        tokio::select! {
            stream = self.directory.dial_guest("vsock.sock", port) => stream,
            cause = self.ended() => Err(SandboxError::PlaceEnded { pod: self.pod.clone(), cause }),
        }
    }

    async fn bind_disk(&self, slot: DiskSlot, disk: OwnedFd) -> Result<()> {
        let request = Request::BindDisk {
            slot,
            limits: self.disk_limits,
        };
        self.done("bind a disk", request, &[disk]).await
    }

    async fn unbind_disk(&self, slot: DiskSlot) -> Result<()> {
        self.done("unbind a disk", Request::UnbindDisk { slot }, &[])
            .await
    }

    async fn measure_disk(&self, slot: DiskSlot) -> Result<u64> {
        let doing = "measure a disk";
        let request = Request::MeasureDisk { slot };
        match self.control.request(doing, &request, &[]).await? {
            Reply::DiskSize { bytes } => Ok(bytes),
            other => Err(self.control.unexpected(doing, &other)),
        }
    }

    async fn bind_tap(
        &self,
        interface: u8,
        queues: Vec<OwnedFd>,
        limits: NetworkLimits,
    ) -> Result<()> {
        let request = Request::BindTap { interface, limits };
        self.done("bind a tap", request, &queues).await
    }

    async fn bind_file_daemon(&self, fds: Vec<OwnedFd>) -> Result<()> {
        self.done("take its file daemon", Request::BindFileDaemon, &fds)
            .await
    }

    async fn ended(&self) -> String {
        self.process.ended().await
    }

    async fn end(&self) {
        if let Err(error) = self.cgroup.destroy().await {
            tracing::warn!(pod = self.pod, %error, "The pod's cgroup could not be removed");
            self.process.kill();
        }
        self.process.ended().await;
    }
}

/// Opens vhost-net for each pair of queues of a VM with so many vCPUs and network interfaces.
fn vhost_net(vcpus: u8, interfaces: u8) -> Result<Vec<OwnedFd>> {
    let open = || match File::options()
        .read(true)
        .write(true)
        .open("/dev/vhost-net")
    {
        Ok(file) => Ok(file.into()),
        Err(error) => Err(SandboxError::NodeUnfit {
            problem: format!(
                "/dev/vhost-net cannot be opened ({error}); load the module vhost_net or take `vhost_net` out of the runtime handler"
            ),
        }),
    };
    let count = queue_pairs(vcpus) * usize::from(interfaces);
    (0..count).map(|_| open()).collect()
}

fn open_part(what: &str, option: &str, path: &PathBuf) -> Result<OwnedFd> {
    match File::open(path) {
        Ok(file) => Ok(file.into()),
        Err(error) => Err(SandboxError::NodeUnfit {
            problem: format!(
                "the {what} {} cannot be opened ({error}); install it or set `{option}` of the runtime handler",
                path.display()
            ),
        }),
    }
}
