//! What the machine itself costs: Bulkhead's VMM beside QEMU's `microvm`, idle, with the same kernel and guest,
//! and QEMU's two virtio transports beside one another.

use super::figures::{Figures, Samples, table};
use super::memory::resident;
use super::vms::{Guest, Kind, Parts, Transport};
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::fs;

const RUNS: usize = 5;
/// Disk slots: none, and with vsock and rng as many devices as `microvm` has room for.
const DISKS: [u8; 2] = [0, 20];
/// What KVM counts for a VM in debugfs.
const COUNTS: [&str; 4] = ["exits", "io_exits", "mmio_exits", "irq_injections"];

#[derive(Default)]
struct Row {
    boot: Samples,
    kernel: Figures,
    counts: [Figures; COUNTS.len()],
    memory: Figures,
    own: Figures,
    private: Figures,
}

/// Measures and prints.
///
/// # Errors
/// A VM did not come up.
pub fn run() -> Result<String> {
    let mut rows = BTreeMap::<(usize, u8), Row>::new();
    let machines = [
        (Kind::Bulkhead, Transport::Mmio),
        (Kind::Qemu, Transport::Mmio),
        (Kind::Qemu, Transport::Pci),
    ];
    let mut devices = String::new();
    // The first run of each fills caches and is not counted.
    for round in 0..=RUNS {
        for (index, (kind, transport)) in machines.iter().enumerate() {
            for disks in DISKS {
                let parts = Parts {
                    disks,
                    transport: *transport,
                    ..Parts::default()
                };
                let mut guest = Guest::boot(*kind, parts)?;
                if round > 0 {
                    let row = rows.entry((index, disks)).or_default();
                    measure(&mut guest, row)?;
                    devices = guest.devices().unwrap_or(devices);
                }
            }
        }
    }
    let head = [
        "1 vCPU, 256 MiB; median (least to most)",
        "process start to guest ready, ms",
        "kernel, by the guest's clock, s",
        "exits",
        "of them port I/O",
        "of them MMIO",
        "interrupts",
        "guest's MemFree, MiB",
        "VMM's own memory, KiB",
        "of it private, KiB",
    ];
    let mut lines = vec![head.map(str::to_owned).to_vec()];
    for ((index, disks), row) in &rows {
        let (kind, transport) = machines.get(*index).context("a machine")?;
        let mut line = vec![format!("{}, {transport:?}, {disks} disks", kind.name())];
        line.push(row.boot.text());
        line.push(row.kernel.text(1.0));
        line.extend(
            row.counts
                .iter()
                .map(|count| format!("{:.0}", count.median())),
        );
        line.push(format!("{:.1}", row.memory.median() / 1024.0));
        line.push(format!("{:.0}", row.own.median()));
        line.push(format!("{:.0}", row.private.median()));
        lines.push(line);
    }
    let title = format!("The machine, idle, {RUNS} runs in turn");
    Ok(format!(
        "{}\nExits to Bulkhead's VMM by device: {devices}\n",
        table(&title, &lines)
    ))
}

fn measure(guest: &mut Guest, row: &mut Row) -> Result<()> {
    row.boot.add(guest.booted_in);
    let process = guest.process();
    // Before anything is asked of the guest, which causes exits.
    for (figures, count) in row.counts.iter_mut().zip(counts(process)) {
        figures.add(count);
    }
    let [_, own] = resident(&fs::read_to_string(format!("/proc/{process}/smaps"))?);
    row.own.add(own.resident as f64);
    row.private.add(own.private as f64);
    row.kernel.add(guest.uptime);
    let free = guest.ask("free")?;
    let kib = free.split_whitespace().nth(1).context("No MemFree")?;
    row.memory.add(kib.parse()?);
    Ok(())
}

fn counts(process: u32) -> [f64; COUNTS.len()] {
    let prefix = format!("{process}-");
    let folders = fs::read_dir("/sys/kernel/debug/kvm").into_iter().flatten();
    let folder = folders
        .flatten()
        .find(|entry| entry.file_name().to_string_lossy().starts_with(&prefix));
    COUNTS.map(|name| {
        let path = folder.as_ref().map(|folder| folder.path().join(name));
        let text = path.and_then(|path| fs::read_to_string(path).ok());
        text.and_then(|text| text.trim().parse().ok())
            .unwrap_or(f64::NAN)
    })
}
