//! vsock: one stream between the guest and the host, each way, beside the sequential reading of a disk by the
//! same guest; Bulkhead's VMM beside QEMU with vhost-vsock.

use super::figures::{Figures, table};
use super::vms::{Guest, Kind, Parts, rounds};
use anyhow::{Context, Result, ensure};
use std::io::{BufRead, BufReader, Read, Write};
use std::time::Instant;

const RUNS: usize = 5;
/// How much goes each way, and how large the disk is.
const BYTES: usize = 96 << 20;

#[derive(Default)]
struct Row {
    /// Bytes a second.
    from_guest: Figures,
    to_guest: Figures,
    disk: Figures,
}

/// Measures and prints.
///
/// # Errors
/// A VM did not come up.
pub fn run() -> Result<String> {
    let disk = tempfile::NamedTempFile::with_prefix("bulkhead-bench-")?;
    std::fs::write(disk.path(), vec![7; BYTES])?;
    let mut rows = Kind::BOTH.map(|kind| (kind, Row::default()));
    // The first run of each fills caches and is not counted.
    let runs = rounds(RUNS);
    for round in 0..=runs {
        for (kind, row) in &mut rows {
            let parts = Parts {
                disk: Some(disk.path()),
                ..Parts::default()
            };
            let mut guest = Guest::boot(*kind, parts)?;
            let figures = [from_guest(&guest)?, to_guest(&guest)?, disk_of(&mut guest)?];
            if round > 0 {
                row.from_guest.add(figures[0]);
                row.to_guest.add(figures[1]);
                row.disk.add(figures[2]);
            }
        }
    }
    let head = [
        "median (least to most)",
        "guest to host, MB/s",
        "host to guest, MB/s",
        "virtio-blk, sequential reads of 1 MiB, MB/s",
        "vsock / virtio-blk",
    ];
    let rows = rows.iter().map(|(kind, row)| {
        let disk = row.disk.median();
        vec![
            kind.name().to_owned(),
            row.from_guest.text(1e6),
            row.to_guest.text(1e6),
            row.disk.text(1e6),
            format!(
                "{:.2} and {:.2}",
                row.from_guest.median() / disk,
                row.to_guest.median() / disk
            ),
        ]
    });
    let rows: Vec<_> = [head.map(str::to_owned).to_vec()]
        .into_iter()
        .chain(rows)
        .collect();
    let title = format!(
        "vsock, 1 vCPU, one stream of {} MiB, {runs} runs in turn",
        BYTES >> 20
    );
    Ok(table(&title, &rows))
}

fn from_guest(guest: &Guest) -> Result<f64> {
    let mut stream = guest.connect(5003)?;
    let began = Instant::now();
    writeln!(stream, "{BYTES}")?;
    let (mut bytes, mut total) = (vec![0; 256 * 1024], 0);
    while let count @ 1.. = stream.read(&mut bytes)? {
        total += count;
    }
    ensure!(total == BYTES, "The guest sent {total} bytes");
    Ok(total as f64 / began.elapsed().as_secs_f64())
}

fn to_guest(guest: &Guest) -> Result<f64> {
    let mut stream = guest.connect(5004)?;
    let began = Instant::now();
    let bytes = vec![9; 256 * 1024];
    for _ in 0..BYTES / bytes.len() {
        stream.write_all(&bytes)?;
    }
    stream.finish()?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    ensure!(
        line.trim() == BYTES.to_string(),
        "The guest got {line} bytes"
    );
    Ok(BYTES as f64 / began.elapsed().as_secs_f64())
}

fn disk_of(guest: &mut Guest) -> Result<f64> {
    while guest.ask("sectors ro0")? != (BYTES / 512).to_string() {}
    let answer = guest.ask("sequential ro0")?;
    let (bytes, microseconds) = answer.split_once(' ').context("No figures")?;
    Ok(bytes.parse::<f64>()? / microseconds.parse::<f64>()? * 1e6)
}
