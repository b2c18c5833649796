//! What the machine itself costs: Bulkhead's VMM beside QEMU's `microvm`, idle, with the same kernel and guest,
//! and QEMU's two virtio transports beside one another.

use super::entry::{Entries, now};
use super::figures::{Figures, Samples, table};
use super::memory::resident;
use super::vms::{Guest, Kind, Machine, Parts, Transport, rounds};
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

const RUNS: usize = 5;
/// Disk slots: none, and with vsock, rng and balloon as many devices as `microvm` has room for.
const DISKS: [u8; 2] = [0, 20];
/// How much memory a guest touches and frees, in MiB, and how long it is waited for.
const FREED: u64 = 128;
const BACK_WITHIN: Duration = Duration::from_secs(10);
/// What KVM counts for a VM in debugfs.
const COUNTS: [&str; 4] = ["exits", "io_exits", "mmio_exits", "irq_injections"];

#[derive(Default)]
struct Row {
    entry: Samples,
    boot: Samples,
    kernel: Figures,
    counts: [Figures; COUNTS.len()],
    memory: Figures,
    own: Figures,
    private: Figures,
    back: Figures,
    back_in: Samples,
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
    let runs = rounds(RUNS);
    for round in 0..=runs {
        for (index, (kind, transport)) in machines.iter().enumerate() {
            for disks in DISKS {
                let parts = Parts {
                    disks,
                    transport: *transport,
                    ..Parts::default()
                };
                let entry = first_entry(*kind, parts)?;
                let mut guest = Guest::boot(*kind, parts)?;
                if round > 0 {
                    let row = rows.entry((index, disks)).or_default();
                    row.entry.add(entry);
                    measure(&mut guest, row)?;
                    if disks == 0 {
                        give_back(&mut guest, row)?;
                    }
                    devices = guest.devices().unwrap_or(devices);
                }
            }
        }
    }
    let head = [
        "1 vCPU, 256 MiB; median (least to most)",
        "process start to first entry into the guest, ms",
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
        line.push(row.entry.text());
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
    let title = format!("The machine, idle, {runs} runs in turn");
    let machine = table(&title, &lines);
    let head = [
        "median (least to most)",
        "watched until 90 % of it was back, or for 10 s, ms",
        "back by then, %",
    ];
    let mut lines = vec![head.map(str::to_owned).to_vec()];
    for ((index, _), row) in rows.iter().filter(|((_, disks), _)| *disks == 0) {
        let (kind, transport) = machines.get(*index).context("a machine")?;
        lines.push(vec![
            format!("{}, {transport:?}", kind.name()),
            row.back_in.text(),
            row.back.text(1.0),
        ]);
    }
    let title =
        format!("{FREED} MiB that a guest of 256 MiB touches and frees, {runs} runs in turn");
    Ok(format!(
        "{machine}\nExits to Bulkhead's VMM by device: {devices}\n\n{}",
        table(&title, &lines)
    ))
}

/// From the start of the process until KVM enters its guest for the first time.
fn first_entry(kind: Kind, parts: Parts<'_>) -> Result<Duration> {
    let mut entries = Entries::new()?;
    let machine = Machine::start(kind, parts)?;
    let began = now().saturating_sub(machine.started().elapsed());
    Ok(entries.first()?.saturating_sub(began))
}

/// Has the guest touch memory and free it, and watches it come back to the host.
fn give_back(guest: &mut Guest, row: &mut Row) -> Result<()> {
    let process = guest.process();
    let resident = || -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{process}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().next());
        Ok(kib.context("No VmRSS")?.parse()?)
    };
    let before = resident()?;
    guest.ask(&format!("touch {FREED}"))?;
    let freed = Instant::now();
    let now = loop {
        let now = resident()?;
        if now <= before + (FREED << 10) / 10 || freed.elapsed() > BACK_WITHIN {
            break now;
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    row.back_in.add(freed.elapsed());
    let kept = now.saturating_sub(before) as f64 / (FREED << 10) as f64;
    row.back.add((1.0 - kept) * 100.0);
    Ok(())
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
