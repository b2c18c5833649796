//! A hostile program in a container: until there is the file /tmp/stop it grabs at every process that
//! appears beside it; then it prints what it got hold of, each kind once.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

pub(crate) fn attack() {
    let own = std::process::id();
    let own_root = place(Path::new("/"));
    let mut caught = BTreeSet::new();
    let mut seen = BTreeSet::new();
    while !Path::new("/tmp/stop").exists() {
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let Ok(pid) = name.parse::<i32>() else {
                continue;
            };
            if pid.unsigned_abs() != own {
                seen.insert(pid);
                grab(pid, own_root, &mut caught);
            }
        }
    }
    println!("processes {}", seen.len());
    for line in caught {
        println!("{line}");
    }
}

fn place(path: &Path) -> Option<(u64, u64)> {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

fn grab(pid: i32, own_root: Option<(u64, u64)>, caught: &mut BTreeSet<String>) {
    let at = |name: &str| Path::new("/proc").join(pid.to_string()).join(name);
    if let Ok(program) = fs::read_link(at("exe")) {
        caught.insert(format!("exe {}", program.display()));
        if let Err(error) = fs::OpenOptions::new().write(true).open(at("exe")) {
            caught.insert(format!("no write: {} {error}", program.display()));
        } else {
            caught.insert(format!("write {}", program.display()));
        }
    }
    for name in ["root", "cwd"] {
        if let Some(found) = place(&at(name)) {
            let whose = if name == "root" && Some(found) != own_root {
                "another"
            } else {
                "the container's"
            };
            caught.insert(format!("{name} {whose}"));
        }
    }
    for fd in fs::read_dir(at("fd")).into_iter().flatten().flatten() {
        if let Ok(target) = fs::read_link(fd.path()) {
            let target = target.display().to_string();
            let kind = target.split(":[").next().unwrap_or_default();
            caught.insert(format!("fd {} {kind}", fd.file_name().display()));
        }
    }
    if let Ok(environment) = fs::read(at("environ")) {
        let first = environment
            .split(|byte| *byte == 0)
            .next()
            .unwrap_or_default();
        caught.insert(format!("environ {}", String::from_utf8_lossy(first)));
    }
    // SAFETY: plain numbers, and an int that the kernel writes. A tracee is let go again when it has
    // stopped; one that ends meanwhile is waited for, or its parent would not hear of its end.
    unsafe {
        if libc::ptrace(libc::PTRACE_SEIZE, pid, 0, 0) == 0 {
            let program = fs::read_link(at("exe")).unwrap_or_default();
            caught.insert(format!("trace {}", program.display()));
            libc::ptrace(libc::PTRACE_INTERRUPT, pid, 0, 0);
            let mut status = 0;
            libc::waitpid(pid, &raw mut status, libc::__WALL);
            libc::ptrace(libc::PTRACE_DETACH, pid, 0, 0);
        }
    }
}
