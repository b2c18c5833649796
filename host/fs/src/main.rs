//! `bulkhead-fs`: serves the shared volumes of one pod to its VMM, over vhost-user.
//!
//! The file system is the `virtiofsd` library's; this program is its cage. The daemon starts it with a
//! listening socket and a [`config::Config`] on standard input. It enters namespaces of its own, with an
//! empty root that it cannot write to ([`cage`]), keeps the capabilities that concern files and no other,
//! confines its system calls ([`seccomp`]), and serves one connection. It never mounts anything: the
//! daemon puts volumes below its root, read-only ones as read-only mounts, so that it is the host's kernel
//! that refuses a write, not this program.
//!
//! It ends when the connection ends. Whatever goes wrong here is an end as well: the daemon starts
//! another one, and meanwhile the VMM answers the guest with EIO. What the guest was given by one process
//! is no other file for the next ([`epoch`]).

mod cage;
mod config;
mod epoch;
mod error;
mod gauge;
mod seccomp;
mod serve;

use error::Error;
use std::process::ExitCode;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bulkhead-fs: {}", error::chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Error> {
    let (config, listener) = config::read(std::io::stdin().lock())?;
    let caged = cage::enter(config.descriptors)?;
    let file_system = serve::file_system(caged, &config)?;
    seccomp::confine()?;
    serve::serve(file_system, listener, config.threads)
}
