//! From the start of a VMM's process to its agent's announcement: Bulkhead's VMM beside QEMU's
//! `microvm`, with the same kernel, initramfs and command line.

use super::figures::{Samples, table};
use super::vms::beside_acpi_tables;
use crate::artifacts::artifact;
use crate::node::Node;
use crate::pod::{self, Pod};
use anyhow::{Context, Result, ensure};
use bulkhead_agent_api::agent::Announcement;
use bulkhead_agent_api::{ANNOUNCE_PORT, MAX_ANNOUNCEMENT};
use bulkhead_vmm_api::GUEST_CMDLINE;
use protobuf::Message;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use vsock::{VMADDR_CID_ANY, VsockListener};

const RUNS: usize = 7;
/// As the default of a pod that asks for nothing.
const MEMORY_MIB: u64 = 320;
/// How many disks the other microvm has; it has no place for the 24 that Bulkhead has slots for.
const DISKS: usize = 20;
/// How long a guest may take to announce itself.
const LIMIT: Timespec = Timespec {
    tv_sec: 60,
    tv_nsec: 0,
};

#[derive(Default)]
struct Rows {
    total: Samples,
    before_agent: Samples,
    kernel: Samples,
    agent: Samples,
}

impl Rows {
    fn add(&mut self, total: Duration, kernel: Duration, agent: Duration) {
        self.total.add(total);
        self.before_agent.add(total.saturating_sub(agent));
        self.kernel.add(kernel);
        self.agent.add(agent);
    }
}

/// Measures and prints.
///
/// # Errors
/// A VM did not come up.
pub async fn run(node: &Node) -> Result<String> {
    let (mut ours, mut bare, mut disks) = (Rows::default(), Rows::default(), Rows::default());
    // The first run of each fills caches and is not counted.
    for round in 0..=RUNS {
        let own = boot_ours(node, round).await?;
        let qemu = tokio::task::spawn_blocking(|| boot_qemu(0)).await??;
        let qemu_with_disks = tokio::task::spawn_blocking(|| boot_qemu(DISKS)).await??;
        if round > 0 {
            for (rows, (total, kernel, agent)) in [
                (&mut ours, own),
                (&mut bare, qemu),
                (&mut disks, qemu_with_disks),
            ] {
                rows.add(total, kernel, agent);
            }
        }
    }
    let row = |name: &str, rows: &Rows| {
        vec![
            name.to_owned(),
            rows.total.text(),
            rows.before_agent.text(),
            rows.kernel.text(),
            rows.agent.text(),
        ]
    };
    let head = [
        "ms, median (least to most)",
        "process start to announcement",
        "of it, until the agent's first instruction",
        "kernel, by the guest's clock",
        "agent",
    ];
    Ok(table(
        &format!("Boot, 1 vCPU, {MEMORY_MIB} MiB, {RUNS} runs in turn"),
        &[
            head.map(str::to_owned).to_vec(),
            row("Bulkhead, 24 disk slots", &ours),
            row("QEMU microvm, no disks", &bare),
            row(&format!("QEMU microvm, {DISKS} disks"), &disks),
        ],
    ))
}

async fn boot_ours(node: &Node, round: usize) -> Result<(Duration, Duration, Duration)> {
    let pod = Pod::run(node, &format!("boot-{round}")).await?;
    let info = pod::info(node, &pod.id).await?;
    pod.remove().await?;
    let phase = |name: &str| {
        let rows = info["phases"].as_array().into_iter().flatten();
        let found = rows
            .filter(|row| row["phase"] == name)
            .find_map(|row| row["seconds"].as_f64());
        found
            .map(Duration::from_secs_f64)
            .with_context(|| format!("No phase {name}"))
    };
    let agent = phase("agent ready")?;
    let kernel = info["guestBootNs"].as_u64().context("No guestBootNs")?;
    let total = phase("VMM start")? + phase("kernel")? + agent;
    Ok((total, Duration::from_nanos(kernel), agent))
}

/// Ends QEMU whatever happens.
struct Qemu(Child);

impl Drop for Qemu {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn boot_qemu(disks: usize) -> Result<(Duration, Duration, Duration)> {
    let listener = VsockListener::bind_with_cid_port(VMADDR_CID_ANY, ANNOUNCE_PORT)
        .context("Cannot listen on vsock; is vhost_vsock loaded?")?;
    let mut command = Command::new("qemu-system-x86_64");
    command.args([
        "-M",
        "microvm,rtc=off,pic=off,pit=off",
        "-accel",
        "kvm",
        "-cpu",
        "host",
    ]);
    command.args(["-smp", "1", "-m", &format!("{MEMORY_MIB}M")]);
    command.args([
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
    ]);
    command.args(["-serial", "null", "-append", GUEST_CMDLINE]);
    command.arg("-kernel").arg(artifact("vmlinux"));
    let initramfs = std::fs::read(artifact("initramfs"))?;
    let padded = tempfile::NamedTempFile::with_prefix("bulkhead-initramfs-")?;
    std::fs::write(padded.path(), beside_acpi_tables(initramfs))?;
    command.arg("-initrd").arg(padded.path());
    command.args([
        "-device",
        "vhost-vsock-device,guest-cid=3",
        "-device",
        "virtio-rng-device",
    ]);
    for index in 0..disks {
        command.args([
            "-drive",
            &format!("if=none,id=d{index},driver=null-co,size=0"),
        ]);
        command.args([
            "-device",
            &format!("virtio-blk-device,drive=d{index},serial=ro{index}"),
        ]);
    }
    let began = Instant::now();
    let mut qemu = Qemu(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?);
    let mut ready = [PollFd::new(&listener, PollFlags::IN)];
    let connected = poll(&mut ready, Some(&LIMIT))?;
    ensure!(
        connected > 0,
        "QEMU's guest with {disks} disks does not announce itself"
    );
    let (mut stream, _) = listener.accept()?;
    let total = began.elapsed();
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length);
    ensure!(length <= MAX_ANNOUNCEMENT, "The announcement is too long");
    let mut bytes = vec![0; usize::try_from(length)?];
    stream.read_exact(&mut bytes)?;
    let announced = Announcement::parse_from_bytes(&bytes)?;
    ensure!(qemu.0.try_wait()?.is_none(), "QEMU ended");
    let agent = announced.ready_ns.saturating_sub(announced.init_started_ns);
    let kernel = Duration::from_nanos(announced.init_started_ns);
    Ok((total, kernel, Duration::from_nanos(agent)))
}
