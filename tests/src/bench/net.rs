//! The network interface: TCP between the guest and the host over one tap, Bulkhead's VMM beside QEMU's.

use super::figures::{Figures, table};
use super::vms::{Guest, HOST, Kind, Parts, rounds};
use anyhow::{Result, ensure};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

const RUNS: usize = 5;
/// How long each stream runs.
pub(super) const LENGTH: Duration = Duration::from_millis(1500);

#[derive(Default)]
struct Row {
    /// Bytes a second.
    from_guest: Figures,
    to_guest: Figures,
    /// Requests a second.
    requests: Figures,
}

/// Measures and prints.
///
/// # Errors
/// A VM did not come up.
pub fn run() -> Result<String> {
    let kinds = [false, true].map(|vhost| Kind::BOTH.map(|kind| (kind, vhost)));
    let mut rows: Vec<_> = kinds
        .into_iter()
        .flatten()
        .map(|kind| (kind, Row::default()))
        .collect();
    // The first run of each fills caches and is not counted.
    let runs = rounds(RUNS);
    for round in 0..=runs {
        for ((kind, vhost), row) in &mut rows {
            let parts = Parts {
                network: Some(*vhost),
                ..Parts::default()
            };
            let mut guest = Guest::boot(*kind, parts)?;
            let figures = measure(&mut guest)?;
            if round > 0 {
                row.from_guest.add(figures[0]);
                row.to_guest.add(figures[1]);
                row.requests.add(figures[2]);
            }
        }
    }
    let head = [
        "median (least to most)",
        "guest to host, MB/s",
        "host to guest, MB/s",
        "1-byte requests and responses, thousands a second",
    ];
    let rows = rows.iter().map(|((kind, vhost), row)| {
        let vhost = if *vhost { "vhost-net" } else { "no vhost" };
        vec![
            format!("{}, {vhost}", kind.name()),
            row.from_guest.text(1e6),
            row.to_guest.text(1e6),
            row.requests.text(1e3),
        ]
    });
    let rows: Vec<_> = [head.map(str::to_owned).to_vec()]
        .into_iter()
        .chain(rows)
        .collect();
    let title = format!("Network, 1 vCPU, one TCP connection over a tap, {runs} runs in turn");
    Ok(table(&title, &rows))
}

fn measure(guest: &mut Guest) -> Result<[f64; 3]> {
    let listener = TcpListener::bind((HOST, 0))?;
    let address = listener.local_addr()?;

    guest.tell(&format!("pour {address} {}", LENGTH.as_millis()))?;
    let (mut stream, _) = listener.accept()?;
    let (began, mut total) = (Instant::now(), 0);
    let mut bytes = vec![0; 256 * 1024];
    while let count @ 1.. = stream.read(&mut bytes)? {
        total += count;
    }
    let from_guest = total as f64 / began.elapsed().as_secs_f64();
    ensure!(guest.answer()? == "ok", "The guest did not finish");

    guest.tell(&format!("drain {address}"))?;
    let (mut stream, _) = listener.accept()?;
    let (began, mut total) = (Instant::now(), 0);
    while began.elapsed() < LENGTH {
        stream.write_all(&bytes)?;
        total += bytes.len();
    }
    drop(stream);
    ensure!(guest.answer()? == total.to_string(), "Bytes were lost");
    let to_guest = total as f64 / began.elapsed().as_secs_f64();

    guest.tell(&format!("respond {address}"))?;
    let (stream, _) = listener.accept()?;
    let requests = requests(stream)?;
    ensure!(guest.answer()? == "ok", "The guest did not finish");
    Ok([from_guest, to_guest, requests])
}

/// How many requests a second are answered, one at a time.
pub(super) fn requests(mut stream: TcpStream) -> Result<f64> {
    stream.set_nodelay(true)?;
    let (began, mut count) = (Instant::now(), 0);
    let mut byte = [0];
    while began.elapsed() < LENGTH {
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte)?;
        count += 1;
    }
    Ok(f64::from(count) / began.elapsed().as_secs_f64())
}
