//! `bulkhead`: the daemon that serves the CRI, and the command line that talks to it.

mod check;
mod cli;
mod config;
mod cri;
mod heap;
mod node;
mod serve;
mod streams;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    heap::prepare();
    let command = cli::Cli::parse();
    match command.run() {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            // The one place where a chain of causes is printed.
            let chain: Vec<String> = error.chain().map(ToString::to_string).collect();
            eprintln!("bulkhead: {}", chain.join(": "));
            ExitCode::from(cli::FAILED)
        }
    }
}
