//! `bulkhead pull`, and the pull that precedes a `run`.

use super::{Client, refused};
use anyhow::Result;
use bulkhead_node_api::v1::{PullProgress, PullRequest};
use clap::Args;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// How long a pull may be silent before it says what it does.
const PATIENCE: Duration = Duration::from_secs(2);

#[derive(Args)]
pub(super) struct PullArgs {
    /// The image, by tag or digest
    pub(super) image: String,
}

/// Pulls an image and shows how far it is: on a terminal a bar for each layer, elsewhere a line now
/// and then if it takes longer than two seconds.
pub(super) async fn run(client: &Client, image: &str) -> Result<()> {
    let request = PullRequest {
        image: image.to_owned(),
    };
    let mut steps = client
        .node()
        .await?
        .pull(request)
        .await
        .map_err(refused)?
        .into_inner();
    let mut view = match std::io::stderr().is_terminal() {
        true => View::Bars(Bars::new(image, MultiProgress::new())),
        false => View::Lines(Lines::new(image)),
    };
    while let Some(step) = steps.message().await.map_err(refused)? {
        match &mut view {
            View::Bars(bars) => bars.show(&step),
            View::Lines(lines) => lines.show(&step),
        }
    }
    Ok(())
}

enum View {
    Bars(Bars),
    Lines(Lines),
}

/// A bar for each layer and a line for the image. They are gone when the pull is.
struct Bars {
    all: MultiProgress,
    image: ProgressBar,
    layers: Vec<ProgressBar>,
}

impl Bars {
    fn new(image: &str, all: MultiProgress) -> Self {
        let line = ProgressBar::new_spinner();
        line.set_prefix(image.to_owned());
        line.set_style(style("{prefix}: {msg}"));
        Self {
            all,
            image: line,
            layers: Vec::new(),
        }
    }

    fn show(&mut self, step: &PullProgress) {
        // An image that is here already is not worth a line.
        if self.layers.is_empty() && !step.layers.is_empty() {
            self.image = self.all.add(self.image.clone());
            for layer in &step.layers {
                let bar = self.all.add(ProgressBar::new(layer.total));
                bar.set_style(
                    style("{prefix} {wide_bar} {bytes:>10} of {total_bytes:10} {bytes_per_sec:12}")
                        .progress_chars("=> "),
                );
                bar.set_prefix(short(&layer.digest));
                self.layers.push(bar);
            }
        }
        for (bar, layer) in self.layers.iter().zip(&step.layers) {
            // A finished layer has no speed any more.
            if layer.done == layer.total && bar.position() < layer.total {
                bar.set_style(style("{prefix} {wide_bar} {total_bytes:>10}").progress_chars("=> "));
            }
            bar.set_position(layer.done);
        }
        self.image.set_message(step.phase.clone());
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        // Progress that cannot be shown is no reason to fail.
        let _ = self.all.clear();
    }
}

/// A template of ours, all of which are well-formed.
fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// As much of a digest as tells layers apart.
fn short(digest: &str) -> String {
    let hex = digest.split_once(':').map_or(digest, |(_, hex)| hex);
    hex.chars().take(12).collect()
}

/// One line now and then.
struct Lines {
    image: String,
    began: Instant,
    shown: Option<Instant>,
}

impl Lines {
    fn new(image: &str) -> Self {
        Self {
            image: image.to_owned(),
            began: Instant::now(),
            shown: None,
        }
    }

    fn show(&mut self, step: &PullProgress) {
        let since = self.shown.unwrap_or(self.began).elapsed();
        if since < PATIENCE {
            return;
        }
        self.shown = Some(Instant::now());
        let bytes = match step.total {
            0 => String::new(),
            total => format!(" {} of {} MiB", step.done >> 20, total >> 20),
        };
        eprintln!("{}: {}{bytes}", self.image, step.phase);
    }
}

#[cfg(test)]
mod tests {
    use super::Bars;
    use bulkhead_node_api::v1::{LayerProgress, PullProgress};
    use indicatif::{InMemoryTerm, MultiProgress, ProgressDrawTarget};

    fn step(phase: &str, done: [u64; 2]) -> PullProgress {
        let layer = |number: usize| LayerProgress {
            digest: format!("sha256:{number}{}", "0".repeat(63)),
            done: done[number],
            total: 4 << 20,
        };
        PullProgress {
            phase: phase.to_owned(),
            layers: vec![layer(0), layer(1)],
            ..PullProgress::default()
        }
    }

    #[test]
    fn a_bar_for_each_layer() {
        let terminal = InMemoryTerm::new(10, 80);
        let target = ProgressDrawTarget::term_like_with_hz(Box::new(terminal.clone()), 100);
        let mut bars = Bars::new("team/app", MultiProgress::with_draw_target(target));
        bars.show(&PullProgress::default());
        assert_eq!(terminal.contents(), "", "nothing is known yet");
        bars.show(&step("downloading", [0, 0]));
        // The terminal is drawn at most a hundred times in a second.
        std::thread::sleep(std::time::Duration::from_millis(30));
        bars.show(&step("downloading", [4 << 20, 1 << 20]));
        std::thread::sleep(std::time::Duration::from_millis(30));
        bars.show(&step("downloading", [4 << 20, 2 << 20]));
        let shown = terminal.contents();
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(lines.len(), 3, "{shown}");
        assert!(lines[0].contains("team/app: downloading"), "{shown}");
        assert!(
            lines[1].contains("000000000000 ====") && lines[1].contains("4.00 MiB"),
            "{shown}"
        );
        assert!(
            lines[2].contains("100000000000 =") && lines[2].contains("2.00 MiB of 4.00 MiB"),
            "{shown}"
        );
        bars.show(&step("unpacking", [4 << 20, 4 << 20]));
        drop(bars);
        assert_eq!(
            terminal.contents(),
            "",
            "the output of a program may follow"
        );
    }
}
