//! Prints what a process can see of itself and of its container, one fact a line, `name = value`.
//!
//! A test runs it under other runtimes and under the engine and compares. Values that no two runs
//! have in common (times, numbers of mounts) are left out here; names that the runtime was given
//! are for the test to replace. A fact that cannot be read has the error as its value: that, too,
//! must be the same.
//!
//! With `hold` as its only argument it prints nothing and stays: a container for others to enter.
//! With `attack` it is hostile to the processes beside it.
#![no_main]
#![allow(unsafe_code)] // System calls that have no safe wrapper; the entry point.
#![allow(missing_docs)]

mod attack;
mod files;
mod kernel;
mod process;
mod terminal;

use std::fmt::Display;
use std::io::Write;

/// In the image of the tests.
const MARKER: &str = "/etc/probe";

/// The entry point, without Rust's runtime: that would ignore SIGPIPE, install handlers and open
/// descriptors before anything can be looked at.
///
/// # Safety
/// The C library's to call, with `count` C strings.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn main(count: libc::c_int, args: *const *const libc::c_char) -> libc::c_int {
    let args: Vec<String> = (0..count)
        .filter_map(|index| usize::try_from(index).ok())
        // SAFETY: the kernel gives `count` C strings.
        .map(|index| unsafe { std::ffi::CStr::from_ptr(*args.add(index)) })
        .map(|arg| arg.to_string_lossy().into_owned())
        .collect();
    if args.get(1).is_some_and(|arg| arg == "hold") {
        loop {
            // SAFETY: no memory is involved.
            unsafe { libc::pause() };
        }
    }
    if args.get(1).is_some_and(|arg| arg == "attack") {
        attack::attack();
        return 0;
    }
    if !std::path::Path::new(MARKER).exists() {
        eprintln!(
            "The probe tries what it may do: it runs only in the containers of the tests, which have {MARKER}"
        );
        return 2;
    }
    let mut facts = Facts::default();
    facts.add("args", args.join(" "));
    process::look(&mut facts);
    terminal::look(&mut facts);
    kernel::look(&mut facts);
    files::look(&mut facts);
    let mut text = facts.0.join("\n");
    text.push('\n');
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => 0,
        Err(_) => 1,
    }
}

#[derive(Default)]
struct Facts(Vec<String>);

impl Facts {
    fn add(&mut self, name: impl Display, value: impl Display) {
        let line = format!("{name} = {value}");
        self.0.push(line.replace('\n', "\\n"));
    }

    /// The result of a system call: its number, or its error.
    fn number(&mut self, name: impl Display, result: libc::c_long) {
        if result < 0 {
            self.add(name, error(&std::io::Error::last_os_error()));
        } else {
            self.add(name, result);
        }
    }

    fn result<T: Display>(&mut self, name: impl Display, result: std::io::Result<T>) {
        match result {
            Ok(value) => self.add(name, value),
            Err(failure) => self.add(name, error(&failure)),
        }
    }
}

/// An error in words.
fn error(error: &std::io::Error) -> String {
    let text = error.to_string();
    // As in "Permission denied (os error 13)".
    format!(
        "error: {}",
        text.split(" (os error").next().unwrap_or_default()
    )
}
