//! The last steps: working directory, environment, finding the program, `execve`.

use super::plan::{Failure, FailureKind};
use super::root::Root;
use super::{Doing, Step};
use crate::id::quote;
use crate::sys::process::execute;
use rustix::io::Errno;
use std::ffi::CString;
use std::path::Path;

/// Where programs are looked for when the environment has no PATH.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Enters the working directory, made when it is not there. Resolved inside the root and without
/// magic links, so a descriptor of something outside cannot be it.
pub(super) fn enter_directory(root: &Root, path: &str) -> Step {
    let directory = root.directory(path, 0o755)?;
    rustix::process::fchdir(&directory)
        .doing(&format!("enter the working directory {}", quote(path)))
}

/// The environment, with HOME.
pub(super) fn environment(env: &[String], home: &str) -> Vec<String> {
    let mut env = env.to_vec();
    if !env.iter().any(|entry| entry.starts_with("HOME=")) {
        env.push(format!("HOME={home}"));
    }
    env
}

/// The programs that a name may mean, in order: itself when it has a slash, else one for each
/// directory of PATH.
fn candidates(name: &str, env: &[String]) -> Vec<String> {
    if name.contains('/') {
        return vec![name.to_owned()];
    }
    let path = env
        .iter()
        .rev()
        .find_map(|entry| entry.strip_prefix("PATH="))
        .unwrap_or(DEFAULT_PATH);
    path.split(':')
        .filter(|directory| !directory.is_empty())
        .map(|directory| format!("{directory}/{name}"))
        .collect()
}

/// Runs the program. Returns only why not.
pub(super) fn run(args: &[String], env: &[String]) -> Failure {
    let Some(name) = args.first().filter(|name| !name.is_empty()) else {
        return failure(
            FailureKind::Invalid,
            "There is no program to run".to_owned(),
        );
    };
    let (Ok(c_args), Ok(c_env)) = (c_strings(args), c_strings(env)) else {
        return failure(
            FailureKind::Invalid,
            "An argument has a null byte in it".to_owned(),
        );
    };
    let shown = quote(name);
    let mut denied = None;
    for candidate in candidates(name, env) {
        let Ok(program) = CString::new(candidate.as_str()) else {
            continue;
        };
        let error = execute(&program, &c_args, &c_env);
        match error.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::NOENT) if Path::new(&candidate).exists() => {
                let message = format!(
                    "The interpreter or loader of {} is not in the image",
                    quote(&candidate)
                );
                return failure(FailureKind::NotFound, message);
            }
            Some(Errno::NOENT | Errno::NOTDIR) => {}
            Some(Errno::ACCESS | Errno::PERM | Errno::ISDIR) => {
                denied.get_or_insert(candidate);
            }
            Some(Errno::NOEXEC) => {
                let message = format!(
                    "{} is not a program that this machine can run",
                    quote(&candidate)
                );
                return failure(FailureKind::Invalid, message);
            }
            _ => {
                return failure(
                    FailureKind::Other,
                    format!("Cannot run {}: {error}", quote(&candidate)),
                );
            }
        }
    }
    match denied {
        Some(candidate) => failure(
            FailureKind::Denied,
            format!("The user may not execute {}", quote(&candidate)),
        ),
        None if name.contains('/') => failure(
            FailureKind::NotFound,
            format!("The program {shown} is not in the image"),
        ),
        None => failure(
            FailureKind::NotFound,
            format!("The program {shown} is not in the image's PATH"),
        ),
    }
}

fn c_strings(strings: &[String]) -> Result<Vec<CString>, std::ffi::NulError> {
    strings
        .iter()
        .map(|string| CString::new(string.as_str()))
        .collect()
}

fn failure(kind: FailureKind, message: String) -> Failure {
    Failure { kind, message }
}

#[cfg(test)]
#[path = "program/tests.rs"]
mod tests;
