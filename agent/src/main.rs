//! PID 1 of the guest. The same program, under another name, is what a container's process starts
//! as: see [`bulkhead_agent::init`].

use bulkhead_agent::{guest, init};
use std::process::ExitCode;

fn main() -> ExitCode {
    if init::is_requested() {
        return init::run();
    }
    if std::process::id() != 1 {
        eprintln!("bulkhead-agent is PID 1 of a guest and does nothing elsewhere");
        return ExitCode::from(2);
    }
    guest::run()
}
