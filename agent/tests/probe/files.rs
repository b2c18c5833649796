//! The file system: mounts, devices, what is hidden, what can be written, limits of the cgroup.

use crate::process::squeeze;
use crate::{Facts, error};
use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

/// What runtimes usually hide or make read-only.
const SENSITIVE: [&str; 18] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/bus",
    "/proc/fs",
    "/proc/interrupts",
    "/proc/irq",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/scsi",
    "/proc/sched_debug",
    "/proc/sys",
    "/proc/sysrq-trigger",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    "/sys/kernel",
];

/// What is tried to be opened for writing, without writing.
const WRITABLE: [&str; 10] = [
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/vm/swappiness",
    "/proc/sys/kernel/msgmax",
    "/proc/sysrq-trigger",
    "/proc/self/oom_score_adj",
    "/proc/irq/default_smp_affinity",
    "/sys/kernel/mm/transparent_hugepage/enabled",
    "/sys/fs/cgroup/cgroup.procs",
    "/sys/fs/cgroup/memory.max",
    "/etc/passwd",
];

const DIRECTORIES: [&str; 7] = [
    "/",
    "/dev",
    "/dev/shm",
    "/tmp",
    "/sys/fs/cgroup",
    "/proc/sys",
    "/srv",
];

const CGROUP: [&str; 16] = [
    "cgroup.controllers",
    "cgroup.subtree_control",
    "cgroup.type",
    "cpu.max",
    "cpu.weight",
    "cpu.idle",
    "cpuset.cpus",
    "cpuset.mems",
    "io.weight",
    "memory.max",
    "memory.high",
    "memory.low",
    "memory.min",
    "memory.swap.max",
    "memory.oom.group",
    "pids.max",
];

pub(crate) fn look(facts: &mut Facts) {
    mounts(facts);
    tree(facts, Path::new("/dev"));
    for path in SENSITIVE {
        facts.result(format_args!("see.{path}"), describe(Path::new(path)));
    }
    for path in WRITABLE {
        let opened = fs::OpenOptions::new().write(true).open(path);
        facts.result(format_args!("write.{path}"), opened.map(|_| "yes"));
    }
    for path in DIRECTORIES {
        let file = Path::new(path).join("probe-file");
        let made = fs::File::create(&file);
        facts.result(format_args!("create.{path}"), made.map(|_| "yes"));
        // It may be on a mount that lasts; it is missing where it could not be made.
        let _ = fs::remove_file(&file);
    }
    for name in CGROUP {
        let text = fs::read_to_string(format!("/sys/fs/cgroup/{name}"));
        facts.result(
            format_args!("cgroup.{name}"),
            text.map(|text| squeeze(&text)),
        );
    }
    for path in ["/", "/proc", "/sys", "/dev", "/tmp", "/srv/web"] {
        let mode = fs::metadata(path).map(|metadata| owner(&metadata));
        facts.result(format_args!("mode.{path}"), mode);
    }
}

/// What is on one place more than once is counted. The order of the table is that in which the mounts came
/// to be, not that in which they were put into place, so it says nothing.
fn mounts(facts: &mut Facts) {
    let text = match fs::read_to_string("/proc/self/mountinfo") {
        Ok(text) => text,
        Err(failure) => return facts.add("mount", error(&failure)),
    };
    let mut seen: HashMap<&str, u32> = HashMap::new();
    let mut names = Vec::new();
    for line in text.lines() {
        // proc_pid_mountinfo(5): id, parent, device, root, place, options, tags, -, type, source, options.
        let fields: Vec<&str> = line.split(' ').collect();
        let [_, _, _, root, place, options, rest @ ..] = fields.as_slice() else {
            continue;
        };
        let tags: Vec<&str> = rest
            .iter()
            .take_while(|field| **field != "-")
            .map(|tag| tag.split(':').next().unwrap_or(tag))
            .collect();
        let Some([kind, source, super_options]) = rest.get(tags.len() + 1..) else {
            continue;
        };
        let count = seen.entry(place).or_default();
        *count += 1;
        let name = match count {
            1 => (*place).to_owned(),
            count => format!("{place}#{count}"),
        };
        facts.add(format_args!("mount.{name}.root"), root);
        facts.add(format_args!("mount.{name}.options"), options);
        facts.add(format_args!("mount.{name}.propagation"), tags.join(" "));
        facts.add(format_args!("mount.{name}.type"), kind);
        facts.add(format_args!("mount.{name}.source"), source);
        // Where the layers are is the runtime's affair; how large devtmpfs may be, the machine's.
        let places = match *kind {
            "devtmpfs" => ["size=", "nr_inodes=", "size="],
            _ => ["lowerdir=", "upperdir=", "workdir="],
        };
        let kept: Vec<&str> = super_options
            .split(',')
            .filter(|option| !places.iter().any(|name| option.starts_with(name)))
            .collect();
        facts.add(format_args!("mount.{name}.super"), kept.join(","));
        names.push(name);
    }
    names.sort_unstable();
    facts.add("mounts", names.join(" "));
}

/// Every node below a directory, on the same or another file system, numbered terminals apart.
fn tree(facts: &mut Facts, directory: &Path) {
    let mut entries: Vec<_> = match fs::read_dir(directory) {
        Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
        Err(failure) => {
            return facts.add(
                format_args!("node.{}", directory.display()),
                error(&failure),
            );
        }
    };
    entries.sort();
    for path in entries {
        let is_terminal = path.parent().is_some_and(|parent| parent.ends_with("pts"))
            && path.file_name().is_some_and(|name| {
                name.to_string_lossy()
                    .bytes()
                    .all(|byte| byte.is_ascii_digit())
            });
        if is_terminal {
            continue;
        }
        facts.result(format_args!("node.{}", path.display()), node(&path));
        if fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_dir()) {
            tree(facts, &path);
        }
    }
}

fn node(path: &Path) -> io::Result<String> {
    let metadata = fs::symlink_metadata(path)?;
    let kind = metadata.file_type();
    let what = if kind.is_symlink() {
        return Ok(format!("link to {}", fs::read_link(path)?.display()));
    } else if kind.is_char_device() || kind.is_block_device() {
        let letter = if kind.is_char_device() { 'c' } else { 'b' };
        let number = metadata.rdev();
        // A terminal's number is the next free one.
        match libc::major(number) {
            136..=143 => format!("{letter} pty"),
            major => format!("{letter} {major}:{}", libc::minor(number)),
        }
    } else if kind.is_dir() {
        "directory".to_owned()
    } else {
        "file".to_owned()
    };
    Ok(format!("{what} {}", owner(&metadata)))
}

fn owner(metadata: &fs::Metadata) -> String {
    format!(
        "{:o} {}:{}",
        metadata.permissions().mode() & 0o7777,
        metadata.uid(),
        metadata.gid()
    )
}

/// What can be seen behind a path: a device, how many entries, whether there is anything to read.
fn describe(path: &Path) -> io::Result<String> {
    let metadata = fs::metadata(path)?;
    let kind = metadata.file_type();
    if kind.is_dir() {
        let empty = fs::read_dir(path)?.next().is_none();
        return Ok(format!(
            "directory, {}",
            if empty { "empty" } else { "entries" }
        ));
    }
    if kind.is_char_device() {
        let number = metadata.rdev();
        return Ok(format!("c {}:{}", libc::major(number), libc::minor(number)));
    }
    // sysrq-trigger and others cannot be read at all.
    let mut byte = [0; 1];
    let read = fs::File::open(path).and_then(|mut file| io::Read::read(&mut file, &mut byte));
    Ok(match read {
        Ok(0) => "file, empty".to_owned(),
        Ok(_) => "file, content".to_owned(),
        Err(failure) => format!("file, {}", error(&failure)),
    })
}
