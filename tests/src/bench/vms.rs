//! Bulkhead's VMM and QEMU's `microvm` with the same kernel and the guest of the VMM's own tests, which
//! measures on command.

use crate::artifacts::artifact;
use anyhow::{Context, Result, bail, ensure};
use bulkhead_vmm_api::{
    DiskSlot, GUEST_CMDLINE, NetworkLimits, RateLimits, Reply, Request, VOLUMES_TAG,
};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::Timespec;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use support::{Images, Shape, Vm, cpio};
use vsock::{VMADDR_CID_ANY, VsockListener, VsockStream};

/// How the VMM's own tests play the daemon.
#[allow(unsafe_code, missing_docs)]
#[path = "../../../host/vmm/tests/support/mod.rs"]
mod support;

/// The guest's context ID in QEMU; our VMM's is its own.
const CID: u32 = 3;
const ANNOUNCE_PORT: u32 = 1024;
/// How long QEMU's guest may take; the lab is slow.
const BOOTS_WITHIN: Timespec = Timespec {
    tv_sec: 60,
    tv_nsec: 0,
};
/// Where the guest takes commands.
const COMMANDS: u32 = 5000;
/// The tap's name and its host's address; the guest is 10.99.0.2.
pub(super) const TAP: &str = "bench0";
pub(super) const HOST: &str = "10.99.0.1";

/// How often everything is measured: `BULKHEAD_BENCH_ROUNDS`, or the usual number.
pub(super) fn rounds(usual: usize) -> usize {
    let rounds = std::env::var("BULKHEAD_BENCH_ROUNDS").ok();
    rounds
        .and_then(|rounds| rounds.parse().ok())
        .unwrap_or(usual)
}

/// Which VMM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Bulkhead,
    Qemu,
}

impl Kind {
    pub(super) const BOTH: [Self; 2] = [Self::Bulkhead, Self::Qemu];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Bulkhead => "Bulkhead",
            Self::Qemu => "QEMU microvm",
        }
    }
}

/// What a guest is given.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Parts<'a> {
    /// A network interface with a tap, and whether vhost-net moves its packets.
    pub(super) network: Option<bool>,
    /// The bridge whose port the tap is to be, which has [`HOST`] then.
    pub(super) bridge: Option<&'a str>,
    /// A read-only disk, `ro0`.
    pub(super) disk: Option<&'a Path>,
    /// A writable disk, `rw0`.
    pub(super) writable: Option<&'a Path>,
    /// How QEMU serves its disks.
    pub(super) backend: Backend,
    /// The vhost-user socket of a file daemon, for QEMU.
    pub(super) file_daemon: Option<&'a Path>,
    /// Empty disks besides.
    pub(super) disks: u8,
    /// Where QEMU puts its devices.
    pub(super) transport: Transport,
}

/// A virtio transport of QEMU's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Transport {
    #[default]
    Mmio,
    Pci,
}

/// How QEMU serves its disks. The host's page cache lies between, as it does with Bulkhead.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Backend {
    /// As it does when nothing is said: in its main thread, files by a pool of threads.
    #[default]
    Usual,
    /// As Bulkhead does: in a thread for disks, files by io_uring.
    Alike,
}

/// A connection to the guest.
pub(super) trait Stream: Read + Write + Send {
    /// Says that no more will be sent.
    fn finish(&self) -> std::io::Result<()>;
}

impl Stream for std::os::unix::net::UnixStream {
    fn finish(&self) -> std::io::Result<()> {
        self.shutdown(Shutdown::Write)
    }
}

impl Stream for VsockStream {
    fn finish(&self) -> std::io::Result<()> {
        self.shutdown(Shutdown::Write)
    }
}

/// A guest that is ready.
pub(super) struct Guest {
    machine: Machine,
    shell: BufReader<Box<dyn Stream>>,
    /// From the start of the process until the guest was ready.
    pub(super) booted_in: Duration,
    /// The guest's own clock then, in seconds.
    pub(super) uptime: f64,
}

/// A VMM that runs, whatever its guest does.
pub(super) enum Machine {
    Bulkhead(Box<Vm>),
    Qemu(Child, Instant),
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Self::Qemu(child, _) = self {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Guest {
    /// Boots a guest with 1 vCPU.
    pub(super) fn boot(kind: Kind, parts: Parts<'_>) -> Result<Self> {
        let (machine, said) = match kind {
            Kind::Bulkhead => bulkhead(parts)?,
            Kind::Qemu => qemu(parts)?,
        };
        let booted_in = machine.started().elapsed();
        let uptime = said.split_whitespace().nth(1).context("No uptime")?;
        let shell = BufReader::new(machine.connect(COMMANDS)?);
        let mut guest = Self {
            machine,
            shell,
            booted_in,
            uptime: uptime.parse()?,
        };
        if parts.network.is_some() {
            match parts.bridge {
                Some(bridge) => join(bridge)?,
                None => support::configure(TAP, &format!("{HOST}/24")),
            }
            ensure!(
                guest.ask("configure 2")? == "ok",
                "The guest has no network"
            );
            while guest.ask("carrier")? != "1" {}
        }
        Ok(guest)
    }

    /// The VMM's process.
    pub(super) fn process(&self) -> u32 {
        match &self.machine {
            Machine::Bulkhead(vm) => vm.child.id(),
            Machine::Qemu(child, _) => child.id(),
        }
    }

    /// How often the guest left for each device of Bulkhead's.
    pub(super) fn devices(&mut self) -> Option<String> {
        let Machine::Bulkhead(vm) = &mut self.machine else {
            return None;
        };
        let devices = vm.status().devices.into_iter();
        let each: Vec<String> = devices
            .map(|device| format!("{} {}", device.device, device.accesses))
            .collect();
        Some(each.join(", "))
    }

    /// Gives a command without waiting for its answer.
    pub(super) fn tell(&mut self, command: &str) -> Result<()> {
        Ok(writeln!(self.shell.get_mut(), "{command}")?)
    }

    /// The next answer.
    pub(super) fn answer(&mut self) -> Result<String> {
        let mut line = String::new();
        self.shell.read_line(&mut line)?;
        let line = line.trim().to_owned();
        ensure!(!line.starts_with("error"), "The guest answers {line}");
        Ok(line)
    }

    pub(super) fn ask(&mut self, command: &str) -> Result<String> {
        self.tell(command)?;
        self.answer()
    }

    /// A connection to a port of the guest.
    pub(super) fn connect(&self, port: u32) -> Result<Box<dyn Stream>> {
        self.machine.connect(port)
    }
}

fn join(bridge: &str) -> Result<()> {
    let words = ["link", "set", TAP, "master", bridge, "up"];
    let status = Command::new("ip").args(words).status()?;
    ensure!(status.success(), "The tap cannot be joined to {bridge}");
    Ok(())
}

impl Machine {
    /// Starts one and waits for nothing. Bulkhead's has its disks bound later.
    pub(super) fn start(kind: Kind, parts: Parts<'_>) -> Result<Self> {
        Ok(match kind {
            Kind::Bulkhead => Self::Bulkhead(start_bulkhead(parts)?),
            Kind::Qemu => {
                let mut command = qemu_command(parts)?;
                command.args(["-serial", "null"]);
                let started = Instant::now();
                Self::Qemu(command.spawn()?, started)
            }
        })
    }

    /// When its process was started.
    pub(super) fn started(&self) -> Instant {
        match self {
            Self::Bulkhead(vm) => vm.started,
            Self::Qemu(_, started) => *started,
        }
    }

    fn connect(&self, port: u32) -> Result<Box<dyn Stream>> {
        Ok(match self {
            Self::Bulkhead(vm) => Box::new(vm.connect(port).context("The guest refused")?),
            Self::Qemu(..) => {
                let stream = VsockStream::connect_with_cid_port(CID, port)?;
                stream.set_read_timeout(Some(support::PATIENCE))?;
                Box::new(stream)
            }
        })
    }
}

/// An initramfs that leaves room for `microvm`'s ACPI tables. QEMU puts it at the end of memory, in whole pages from its
/// beginning, where its firmware has put the tables before: it must end early in its last page.
pub(super) fn beside_acpi_tables(mut initramfs: Vec<u8>) -> Vec<u8> {
    let padded = (initramfs.len() - 1).next_multiple_of(4096) + 1;
    initramfs.resize(padded, 0);
    initramfs
}

/// What our VMM's tests want: a kernel, and an initramfs of the program that `scripts/bench` has built.
fn images() -> Result<Images> {
    let initrd = std::env::temp_dir().join("bulkhead-bench.cpio");
    let initramfs = cpio(&std::fs::read(artifact("bench/init"))?);
    std::fs::write(&initrd, beside_acpi_tables(initramfs))?;
    let kernel = artifact("vmlinux");
    Ok(Images { kernel, initrd })
}

/// Starts Bulkhead's VMM with what a machine has from its beginning.
fn start_bulkhead(parts: Parts<'_>) -> Result<Box<Vm>> {
    let mut shape = Shape::new(&images()?);
    shape.memory_mib = 256;
    shape.network_interfaces = u8::from(parts.network.is_some());
    shape.vhost_net = parts.network == Some(true);
    shape.read_only_slots = parts.disks + u8::from(parts.disk.is_some());
    shape.read_write_slots = u8::from(parts.writable.is_some());
    Ok(Box::new(Vm::start(&shape)))
}

fn bulkhead(parts: Parts<'_>) -> Result<(Machine, String)> {
    let mut vm = start_bulkhead(parts)?;
    let said = vm.ready();
    if parts.network.is_some() {
        let tap = support::tap(TAP, 1);
        let tap: Vec<&File> = tap.iter().collect();
        let limits = NetworkLimits::default();
        let reply = vm.ask(
            &Request::BindTap {
                interface: 0,
                limits,
            },
            &tap,
        );
        ensure!(reply == Reply::Done, "{reply:?}");
    }
    let mut bind = |slot, disk: &File| {
        let limits = RateLimits::default();
        let reply = vm.ask(&Request::BindDisk { slot, limits }, &[disk]);
        ensure!(reply == Reply::Done, "{reply:?}");
        Ok(())
    };
    if let Some(disk) = parts.disk {
        bind(DiskSlot::ReadOnly(0), &File::open(disk)?)?;
    }
    if let Some(disk) = parts.writable {
        let disk = File::options().read(true).write(true).open(disk)?;
        bind(DiskSlot::ReadWrite(0), &disk)?;
    }
    Ok((Machine::Bulkhead(vm), said))
}

fn qemu(parts: Parts<'_>) -> Result<(Machine, String)> {
    let listener = VsockListener::bind_with_cid_port(VMADDR_CID_ANY, ANNOUNCE_PORT)
        .context("Cannot listen on vsock; is vhost_vsock loaded?")?;
    let console = tempfile::NamedTempFile::with_prefix("bulkhead-console-")?;
    let mut command = qemu_command(parts)?;
    command.args(["-serial", &format!("file:{}", console.path().display())]);
    let started = Instant::now();
    let machine = Machine::Qemu(command.spawn()?, started);
    let mut announced = [PollFd::new(&listener, PollFlags::IN)];
    if poll(&mut announced, Some(&BOOTS_WITHIN))? == 0 {
        bail!(
            "QEMU's guest did not announce itself: {parts:?}; its console:\n{}",
            std::fs::read_to_string(console.path()).unwrap_or_default()
        );
    }
    let mut said = String::new();
    listener.accept()?.0.read_to_string(&mut said)?;
    Ok((machine, said))
}

/// QEMU's `microvm` with the devices that Bulkhead's machine has.
fn qemu_command(parts: Parts<'_>) -> Result<Command> {
    let images = images()?;
    let mut command = Command::new("qemu-system-x86_64");
    let (machine, on, cmdline) = match parts.transport {
        Transport::Mmio => ("", "device", GUEST_CMDLINE.to_owned()),
        Transport::Pci => (",pcie=on", "pci", GUEST_CMDLINE.replace("pci=off ", "")),
    };
    // The memory is left out of core dumps so that it can be told from QEMU's own.
    let machine = format!("microvm,rtc=off,pic=off,pit=off,dump-guest-core=off{machine}");
    command.args(["-M", &machine]);
    command.args("-accel kvm -cpu host -smp 1 -m 256M".split(' '));
    command.args("-nodefaults -no-user-config -display none -no-reboot".split(' '));
    command.arg("-kernel").arg(&images.kernel);
    command.arg("-initrd").arg(&images.initrd);
    command.args(["-append", &cmdline]);
    command.args(["-device", &format!("vhost-vsock-{on},guest-cid={CID}")]);
    command.args(["-device", &format!("virtio-rng-{on}")]);
    let balloon = format!("virtio-balloon-{on},free-page-reporting=on");
    command.args(["-device", &balloon]);
    for index in 0..parts.disks {
        let drive = format!("if=none,id=e{index},driver=null-co,size=0");
        command.args(["-drive", &drive]);
        let device = format!("virtio-blk-{on},drive=e{index},serial=e{index}");
        command.args(["-device", &device]);
    }
    if let Some(vhost) = parts.network {
        let vhost = if vhost { "on" } else { "off" };
        let netdev = format!("tap,id=n0,ifname={TAP},script=no,downscript=no,vhost={vhost}");
        command.args(["-netdev", &netdev]);
        command.args(["-device", &format!("virtio-net-{on},netdev=n0")]);
    }
    let (aio, thread) = match parts.backend {
        Backend::Usual => ("threads", ""),
        Backend::Alike => ("io_uring", ",iothread=disks"),
    };
    if parts.backend == Backend::Alike {
        command.args(["-object", "iothread,id=disks"]);
    }
    for (file, serial, readonly) in [(parts.disk, "ro0", "on"), (parts.writable, "rw0", "off")] {
        let Some(file) = file.map(Path::display) else {
            continue;
        };
        let drive = format!(
            "if=none,id={serial},format=raw,cache=writeback,aio={aio},readonly={readonly},file={file}"
        );
        command.args(["-drive", &drive]);
        let device = format!("virtio-blk-{on},drive={serial},serial={serial}{thread}");
        command.args(["-device", &device]);
    }
    if let Some(socket) = parts.file_daemon {
        command.args("-object memory-backend-memfd,id=lent,size=256M,share=on".split(' '));
        command.args("-machine memory-backend=lent".split(' '));
        let socket = format!("socket,id=files,path={}", socket.display());
        command.args(["-chardev", &socket]);
        // As many requests at once as with Bulkhead.
        let device = format!("vhost-user-fs-{on},chardev=files,queue-size=128,tag={VOLUMES_TAG}");
        command.args(["-device", &device]);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null());
    Ok(command)
}
