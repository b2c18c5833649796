//! `bulkhead logs`.

use super::{Client, target};
use anyhow::{Context, Result, bail};
use clap::Args;
use std::fs::File;
use std::io::{BufRead, BufReader, Write, stderr, stdout};

#[derive(Args)]
pub(super) struct LogsArgs {
    /// Print each line's time
    #[arg(short, long)]
    timestamps: bool,
    /// A container's id, or a pod's id or name
    target: String,
}

pub(super) async fn run(client: &Client, args: LogsArgs) -> Result<u8> {
    let mut runtime = client.runtime().await?;
    let container = target::container(&mut runtime, &args.target).await?;
    let Some(path) = target::log_path(&mut runtime, &container.id).await? else {
        bail!(
            "Container {} has no log; it was created without one",
            container.id
        );
    };
    let file =
        File::open(&path).with_context(|| format!("Cannot open the log {}", path.display()))?;
    print(BufReader::new(file), args.timestamps)
        .with_context(|| format!("Cannot print the log {}", path.display()))?;
    Ok(0)
}

fn print(log: impl BufRead, timestamps: bool) -> std::io::Result<()> {
    for line in log.split(b'\n') {
        let line = line?;
        let Some(parsed) = parse(&line) else {
            continue;
        };
        let mut bytes = Vec::new();
        if timestamps {
            bytes.extend_from_slice(parsed.time);
            bytes.push(b' ');
        }
        bytes.extend_from_slice(parsed.content);
        if parsed.complete {
            bytes.push(b'\n');
        }
        match parsed.stderr {
            true => stderr().write_all(&bytes)?,
            false => stdout().write_all(&bytes)?,
        }
    }
    stdout().flush()
}

struct Line<'a> {
    time: &'a [u8],
    stderr: bool,
    complete: bool,
    content: &'a [u8],
}

/// `TIME STREAM TAG CONTENT`; `None` for a line that is not so, such as one still being written.
fn parse(line: &[u8]) -> Option<Line<'_>> {
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let (time, stream, tag, content) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    Some(Line {
        time,
        stderr: stream == b"stderr",
        complete: tag == b"F",
        content,
    })
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn lines_have_four_parts() {
        let line = parse(b"2026-01-01T00:00:00Z stderr P a b").unwrap();
        assert!(line.stderr && !line.complete);
        assert_eq!(line.content, b"a b");
        assert!(
            parse(b"2026-01-01T00:00:00Z stdout F ")
                .unwrap()
                .content
                .is_empty()
        );
        assert!(parse(b"2026-01-01T00:00:00Z stdout").is_none());
    }
}
