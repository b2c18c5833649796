//! A disk: reads of 4 KiB anywhere, one and 32 at once, and 1 MiB after the other both ways; Bulkhead's VMM beside
//! QEMU's virtio-blk on both of its transports. Past the guest's page cache, through the host's.

use super::figures::{Figures, table};
use super::vms::{Backend, Guest, Kind, Parts, Transport, rounds};
use anyhow::{Context, Result, ensure};
use std::path::Path;

const RUNS: usize = 5;
/// How large a disk is.
const BYTES: usize = 96 << 20;
/// How long each of the random measurements takes, in milliseconds.
const LENGTH: u64 = 1500;
/// The machines.
const MACHINES: [(&str, Kind, Transport, Backend); 4] = [
    ("Bulkhead", Kind::Bulkhead, Transport::Mmio, Backend::Alike),
    (
        "QEMU microvm, aio=threads",
        Kind::Qemu,
        Transport::Mmio,
        Backend::Usual,
    ),
    (
        "QEMU microvm, iothread, aio=io_uring",
        Kind::Qemu,
        Transport::Mmio,
        Backend::Alike,
    ),
    (
        "QEMU microvm, PCI, iothread, aio=io_uring",
        Kind::Qemu,
        Transport::Pci,
        Backend::Alike,
    ),
];

/// What is measured, and the unit that it is printed in.
const COLUMNS: [(&str, f64); 4] = [
    ("4 KiB random reads, depth 1, thousands a second", 1e3),
    ("the same, depth 32", 1e3),
    ("sequential reads of 1 MiB, MB/s", 1e6),
    ("sequential writes of 1 MiB and a flush, MB/s", 1e6),
];

/// Measures and prints.
///
/// # Errors
/// A VM did not come up.
pub fn run() -> Result<String> {
    let files = [7, 8].map(filled);
    let [read, written] = files;
    let (read, written) = (read?, written?);
    let mut rows: [[Figures; COLUMNS.len()]; MACHINES.len()] = Default::default();
    // The first run of each fills caches and is not counted.
    let runs = rounds(RUNS);
    for round in 0..=runs {
        for ((_, kind, transport, backend), row) in MACHINES.into_iter().zip(&mut rows) {
            let figures = measure(kind, transport, backend, [read.path(), written.path()])?;
            if round > 0 {
                row.iter_mut()
                    .zip(figures)
                    .for_each(|(row, figure)| row.add(figure));
            }
        }
    }
    let head = ["median (least to most)"].into_iter();
    let head = head.chain(COLUMNS.map(|(name, _)| name));
    let mut lines = vec![head.map(str::to_owned).collect()];
    for ((name, ..), row) in MACHINES.iter().zip(&rows) {
        let figures = row.iter().zip(COLUMNS);
        let texts = figures.map(|(figures, (_, unit))| figures.text(unit));
        lines.push([(*name).to_owned()].into_iter().chain(texts).collect());
    }
    let title = format!(
        "Disks, 1 vCPU, files of {} MiB in the host's page cache, {runs} runs in turn",
        BYTES >> 20
    );
    Ok(table(&title, &lines))
}

fn filled(byte: u8) -> Result<tempfile::NamedTempFile> {
    let file = tempfile::NamedTempFile::with_prefix("bulkhead-bench-")?;
    std::fs::write(file.path(), vec![byte; BYTES])?;
    Ok(file)
}

fn measure(
    kind: Kind,
    transport: Transport,
    backend: Backend,
    [read, written]: [&Path; 2],
) -> Result<[f64; COLUMNS.len()]> {
    let parts = Parts {
        disk: Some(read),
        writable: Some(written),
        transport,
        backend,
        ..Parts::default()
    };
    let mut guest = Guest::boot(kind, parts)?;
    for serial in ["ro0", "rw0"] {
        let sectors = guest.ask(&format!("sectors {serial}"))?;
        ensure!(
            sectors == (BYTES / 512).to_string(),
            "{serial} has {sectors} sectors"
        );
    }
    Ok([
        a_second(&guest.ask(&format!("random ro0 1 {LENGTH}"))?)?,
        a_second(&guest.ask(&format!("random ro0 32 {LENGTH}"))?)?,
        a_second(&guest.ask("sequential ro0")?)?,
        a_second(&guest.ask("write rw0")?)?,
    ])
}

/// From a number and its microseconds.
pub(super) fn a_second(answer: &str) -> Result<f64> {
    let (number, microseconds) = answer.split_once(' ').context("No figures")?;
    Ok(number.parse::<f64>()? / microseconds.parse::<f64>()? * 1e6)
}
