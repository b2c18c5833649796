//! `bulkhead pull`, and the pull that precedes a `run`.

use super::{Client, refused};
use anyhow::Result;
use bulkhead_node_api::v1::{PullProgress, PullRequest};
use clap::Args;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// How long a pull may be silent before it says what it does.
const PATIENCE: Duration = Duration::from_secs(2);

#[derive(Args)]
pub(super) struct PullArgs {
    /// The image, by tag or digest
    pub(super) image: String,
}

/// Pulls an image and shows how far it is, if it takes longer than two seconds.
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
    let mut line = ProgressLine::new(image);
    while let Some(step) = steps.message().await.map_err(refused)? {
        line.show(&step);
    }
    line.finish();
    Ok(())
}

struct ProgressLine {
    image: String,
    began: Instant,
    shown: Option<Instant>,
    terminal: bool,
}

impl ProgressLine {
    fn new(image: &str) -> Self {
        let terminal = std::io::stderr().is_terminal();
        Self {
            image: image.to_owned(),
            began: Instant::now(),
            shown: None,
            terminal,
        }
    }

    fn show(&mut self, step: &PullProgress) {
        // On a terminal the line is rewritten often, in a file a new one comes now and then.
        let pause = if self.terminal {
            Duration::from_millis(200)
        } else {
            PATIENCE
        };
        let since = self.shown.unwrap_or(self.began).elapsed();
        if self.began.elapsed() < PATIENCE || since < pause {
            return;
        }
        self.shown = Some(Instant::now());
        let bytes = match step.total {
            0 => String::new(),
            total => format!(" {} of {} MiB", step.done >> 20, total >> 20),
        };
        let text = format!("{}: {}{bytes}", self.image, step.phase);
        match self.terminal {
            true => eprint!("\r\x1b[K{text}"),
            false => eprintln!("{text}"),
        }
        // Progress that cannot be shown is no reason to stop.
        let _ = std::io::stderr().flush();
    }

    fn finish(&self) {
        if self.shown.is_some() && self.terminal {
            eprint!("\r\x1b[K");
        }
    }
}
