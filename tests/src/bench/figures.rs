//! Medians with their spread, and tables of them.

use std::time::Duration;

/// Durations of one thing in several runs.
#[derive(Debug, Clone, Default)]
pub struct Samples {
    all: Vec<Duration>,
}

impl Samples {
    /// Adds a run.
    pub fn add(&mut self, duration: Duration) {
        self.all.push(duration);
    }

    /// `median (least to most)` in milliseconds.
    #[must_use]
    pub fn text(&self) -> String {
        let mut sorted = self.all.clone();
        sorted.sort_unstable();
        let ms = |duration: Option<&Duration>| duration.map_or(0.0, Duration::as_secs_f64) * 1e3;
        let (least, most) = (ms(sorted.first()), ms(sorted.last()));
        format!(
            "{:.1} ({least:.1} to {most:.1})",
            ms(sorted.get(sorted.len() / 2))
        )
    }
}

/// A Markdown table; the first row is its head.
#[must_use]
pub fn table(title: &str, rows: &[Vec<String>]) -> String {
    let mut text = format!("## {title}\n\n");
    for (index, row) in rows.iter().enumerate() {
        text.push_str(&format!("| {} |\n", row.join(" | ")));
        if index == 0 {
            text.push_str(&format!("|{}\n", "---|".repeat(row.len())));
        }
    }
    text
}

/// Values of one thing in several runs.
#[derive(Debug, Clone, Default)]
pub(super) struct Figures {
    all: Vec<f64>,
}

impl Figures {
    pub(super) fn add(&mut self, value: f64) {
        self.all.push(value);
    }

    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.all.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        sorted
    }

    pub(super) fn median(&self) -> f64 {
        let sorted = self.sorted();
        sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
    }

    /// `median (least to most)` in multiples of a unit; nothing if nothing was measured.
    pub(super) fn text(&self, unit: f64) -> String {
        let sorted = self.sorted();
        if sorted.is_empty() {
            return String::new();
        }
        let of = |value: Option<&f64>| value.map_or(f64::NAN, |value| value / unit);
        format!(
            "{:.2} ({:.2} to {:.2})",
            self.median() / unit,
            of(sorted.first()),
            of(sorted.last())
        )
    }
}
