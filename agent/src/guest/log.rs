//! Log lines to the kernel's log, which shows them on the console with its own.
//!
//! `bulkhead.log=LEVEL` on the kernel command line (error, warn, info, debug, trace) says how much;
//! warn is the default.

use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::Write as _;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// The longest line; the kernel cuts records at about this length.
const MAX_LINE: usize = 900;

struct Kmsg {
    file: File,
    level: Level,
}

/// Starts to log, if there is a log.
pub(super) fn start() {
    let Ok(file) = File::options().write(true).open("/dev/kmsg") else {
        return;
    };
    let words = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let level = level(&words);
    // Nobody has set one before.
    let _ = tracing::subscriber::set_global_default(Kmsg { file, level });
}

/// What the kernel command line asks for.
fn level(words: &str) -> Level {
    words
        .split_whitespace()
        .filter_map(|word| word.strip_prefix("bulkhead.log="))
        .find_map(|level| level.parse().ok())
        .unwrap_or(Level::WARN)
}

impl Subscriber for Kmsg {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= self.level
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        // syslog(3): err, warning, info, debug.
        let priority = match *event.metadata().level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            _ => 7,
        };
        let mut line = Line(format!("<{priority}>bulkhead-agent: "));
        event.record(&mut line);
        let text: String = line
            .0
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .take(MAX_LINE)
            .collect();
        // Where else could a failure to log be told?
        let _ = (&self.file).write_all(text.as_bytes());
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a string cannot fail.
        let _ = match field.name() {
            "message" => write!(self.0, "{value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
    }
}

#[cfg(test)]
#[path = "log/tests.rs"]
mod tests;
