//! `bulkhead-vmm`: reads a [`VmmConfig`] from its standard input and is the VM until it ends.
//!
//! The exit status is an [`ExitReason`]; standard error gets one sentence, and
//! the end of the console when the guest has failed.

use bulkhead_vmm::config::Resources;
use bulkhead_vmm::control::Control;
use bulkhead_vmm::error::chain;
use bulkhead_vmm::machine::Machine;
use bulkhead_vmm::verdict::{End, Verdict};
use bulkhead_vmm::{Error, cage, machine, seccomp, vcpu};
use bulkhead_vmm_api::{ExitReason, VmmConfig};
use std::io::Read;
use std::sync::{Arc, Barrier};

/// The longest configuration: it is mostly the command line.
const MAX_CONFIG: u64 = 64 * 1024;
/// How much of the console is printed when the guest has failed, in bytes.
const MAX_LAST_WORDS: usize = 3072;

fn main() {
    let main_ns = vcpu::monotonic_ns();
    end_on_panic();
    let end = run(main_ns).unwrap_or_else(|error| End {
        reason: error.reason(),
        sentence: format!("{}.", chain(&error)),
    });
    exit(&end);
}

fn run(main_ns: u64) -> Result<End, Error> {
    prepare_process();
    let config = read_config()?;
    let resources = Resources::take(&config)?;
    cage::enter(&resources.cage)?;
    let verdict = Arc::new(Verdict::new()?);
    let built = machine::build(resources, verdict)?;
    let machine = built.machine;
    let mut control = Control::new(Arc::clone(&machine), built.control, main_ns)?;
    control.serve_pending()?;
    if let Some(end) = machine.verdict.end() {
        return Ok(end);
    }
    // Nobody begins before everybody is confined.
    let threads = 1 + built.vcpus.len() + machine.device_threads();
    let confined = Arc::new(Barrier::new(threads));
    control.take_vcpus(vcpu::start(&machine, built.vcpus, &confined)?);
    machine::serve_devices(&machine, &confined)?;
    machine::serve_disks(&machine, built.disk_service, &confined)?;
    machine::serve_network(&machine, &confined)?;
    seccomp::confine_with(seccomp::Thread::Control, machine.uses_vhost())?;
    confined.wait();
    let mut end = control.serve()?;
    if end.reason.is_guests_fault() {
        let words = last_words(&machine);
        if !words.is_empty() {
            end.sentence = format!("{} Its console ends:\n{words}", end.sentence);
        }
    }
    Ok(end)
}

/// The end of the console, for whoever cannot ask for it any more. What a guest prints is not
/// trusted to be text.
fn last_words(machine: &Machine) -> String {
    let bytes = machine.serial.newest(MAX_LAST_WORDS);
    let text = String::from_utf8_lossy(&bytes);
    let printable = |letter: char| {
        if letter == '\n' || !letter.is_control() {
            letter
        } else {
            ' '
        }
    };
    text.chars()
        .map(printable)
        .collect::<String>()
        .trim()
        .to_owned()
}

fn read_config() -> Result<VmmConfig, Error> {
    let refuse = |text: String| Error::Config(text);
    let mut text = Vec::new();
    std::io::stdin()
        .take(MAX_CONFIG + 1)
        .read_to_end(&mut text)
        .map_err(|error| refuse(error.to_string()))?;
    if text.len() as u64 > MAX_CONFIG {
        return Err(refuse(format!("it is longer than {MAX_CONFIG} bytes")));
    }
    serde_json::from_slice(&text).map_err(|error| refuse(error.to_string()))
}

/// One heap for all threads.
fn prepare_process() {
    // SAFETY: sets a parameter of the allocator before there is a second thread.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// A panic in any thread ends the process: half a VMM is worse than none.
fn end_on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        exit(&End {
            reason: ExitReason::Internal,
            sentence: format!("The VMM has a bug: {panic}."),
        });
    }));
}

/// Ends the process at once: other threads may be in the guest or in a system call.
fn exit(end: &End) -> ! {
    eprintln!("bulkhead-vmm: {}", end.sentence);
    // SAFETY: ends the process without running anything of it; standard error is not buffered.
    unsafe { libc::_exit(i32::from(end.reason.status())) }
}
