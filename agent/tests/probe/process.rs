//! The process itself: `/proc/self`, ids, limits, signals, scheduling, descriptors.

use crate::{Facts, error};
use std::fs;

/// Fields of `/proc/self/status` that differ from run to run or tell of memory.
const PASSING: [&str; 8] = [
    "Vm",
    "Rss",
    "Huge",
    "voluntary",
    "nonvoluntary",
    "FDSize",
    "CoreDumping",
    "THP_enabled",
];

/// linux/prctl.h.
const PR_GET_IO_FLUSHER: libc::c_int = 58;

pub(crate) fn look(facts: &mut Facts) {
    status(facts);
    for (index, entry) in std::env::vars_os().enumerate() {
        let (name, value) = entry;
        facts.add(
            format_args!("env.{index}"),
            format_args!("{}={}", name.to_string_lossy(), value.to_string_lossy()),
        );
    }
    for name in [
        "cgroup",
        "oom_score_adj",
        "timerslack_ns",
        "loginuid",
        "sessionid",
        "coredump_filter",
        "personality",
        "uid_map",
        "gid_map",
        "setgroups",
        "comm",
        "attr/current",
        "timens_offsets",
        "projid_map",
    ] {
        let text = fs::read_to_string(format!("/proc/self/{name}"));
        facts.result(format_args!("self.{name}"), text.map(|text| squeeze(&text)));
    }
    for name in ["cwd", "root", "exe"] {
        let link = fs::read_link(format!("/proc/self/{name}"));
        facts.result(
            format_args!("self.{name}"),
            link.map(|link| link.display().to_string()),
        );
    }
    for name in [
        "cgroup",
        "ipc",
        "mnt",
        "net",
        "pid",
        "pid_for_children",
        "time",
        "time_for_children",
        "user",
        "uts",
    ] {
        let link = fs::read_link(format!("/proc/self/ns/{name}"));
        facts.result(
            format_args!("namespace.{name}"),
            link.map(|link| link.display().to_string()),
        );
    }
    limits(facts);
    descriptors(facts);
    scheduling(facts);
    let processes = fs::read_dir("/proc").map(|entries| {
        let names = entries.flatten().map(|entry| entry.file_name());
        names
            .filter(|name| {
                name.to_string_lossy()
                    .bytes()
                    .all(|byte| byte.is_ascii_digit())
            })
            .count()
    });
    facts.result("processes", processes);
}

fn status(facts: &mut Facts) {
    let text = match fs::read_to_string("/proc/self/status") {
        Ok(text) => text,
        Err(failure) => return facts.add("status", error(&failure)),
    };
    let mut pid = "";
    for line in text.lines() {
        let Some((name, value)) = line.split_once(':') else {
            continue;
        };
        if name == "Tgid" {
            pid = value;
        }
        if PASSING.iter().any(|passing| name.starts_with(passing)) {
            continue;
        }
        // Only the limit of pending signals; how many the user has is not this process's.
        let value = match name {
            // How many processes a runtime needed before this one is its own affair.
            "Tgid" | "Pid" | "NStgid" | "NSpid" | "NSpgid" | "NSsid" => {
                own(value.trim(), pid.trim())
            }
            "SigQ" => value.split_once('/').map_or(value, |(_, limit)| limit),
            _ => value,
        };
        facts.add(format_args!("status.{name}"), squeeze(value));
    }
}

/// A number of a process: the first, this one, or another.
fn own<'a>(value: &'a str, pid: &str) -> &'a str {
    if value != "1" && value == pid {
        "this one's"
    } else {
        value
    }
}

fn limits(facts: &mut Facts) {
    let text = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    for line in text.lines().skip(1) {
        // Columns of fixed width: name, soft, hard, unit.
        let (name, values) = line.split_at_checked(26).unwrap_or((line, ""));
        facts.add(format_args!("limit.{}", name.trim()), squeeze(values));
    }
}

fn descriptors(facts: &mut Facts) {
    // Asked by number: a directory of descriptors would have one more.
    for fd in 0..1024 {
        // SAFETY: plain numbers.
        let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
        if flags < 0 {
            continue;
        }
        let link = fs::read_link(format!("/proc/self/fd/{fd}"));
        let target = link.map_or_else(|failure| error(&failure), |link| link.display().to_string());
        let kind = target
            .split_once(":[")
            .map_or(target.as_str(), |(kind, _)| kind);
        // SAFETY: plain numbers.
        let inherited = unsafe { libc::fcntl(fd, libc::F_GETFD) };
        let access = flags & libc::O_ACCMODE;
        let blocking = flags & libc::O_NONBLOCK == 0;
        let mode = ["r", "w", "rw", "?"]
            .get(usize::try_from(access).unwrap_or(3))
            .unwrap_or(&"?");
        let nature = format!("{kind} {mode} blocking={blocking} flags={inherited}");
        facts.add(format_args!("fd.{fd}"), nature);
        // SAFETY: stat is plain data, for which all zeroes is a value; the call fills it in.
        let (result, stat) = unsafe {
            let mut stat: libc::stat = std::mem::zeroed();
            (libc::fstat(fd, &raw mut stat), stat)
        };
        if result == 0 {
            facts.add(
                format_args!("fd.{fd}.owner"),
                format_args!("{:o} {}:{}", stat.st_mode, stat.st_uid, stat.st_gid),
            );
        }
    }
}

fn scheduling(facts: &mut Facts) {
    // SAFETY: plain numbers, here and below.
    unsafe {
        facts.number("scheduler.policy", libc::sched_getscheduler(0).into());
        facts.number("scheduler.io", libc::syscall(libc::SYS_ioprio_get, 1, 0));
        facts.number(
            "scheduler.nice",
            libc::getpriority(libc::PRIO_PROCESS, 0).into(),
        );
        // Job control: a leader of a session and of a process group is told by its own pid.
        let pid = libc::getpid();
        facts.add("session.leader", libc::getsid(0) == pid);
        facts.add("group.leader", libc::getpgrp() == pid);
    }
    for (name, option) in [
        ("pdeathsig", libc::PR_GET_PDEATHSIG),
        ("child_subreaper", libc::PR_GET_CHILD_SUBREAPER),
    ] {
        let mut value: libc::c_int = 0;
        // SAFETY: the kernel writes an int.
        let result = unsafe { libc::prctl(option, &raw mut value) };
        facts.number(
            format_args!("prctl.{name}"),
            if result < 0 { -1 } else { value.into() },
        );
    }
    for (name, option) in [
        ("dumpable", libc::PR_GET_DUMPABLE),
        ("keepcaps", libc::PR_GET_KEEPCAPS),
        ("securebits", libc::PR_GET_SECUREBITS),
        ("timing", libc::PR_GET_TIMING),
        ("thp_disable", libc::PR_GET_THP_DISABLE),
        ("mce_kill", libc::PR_MCE_KILL_GET),
        ("io_flusher", PR_GET_IO_FLUSHER),
    ] {
        // SAFETY: plain numbers.
        let result = unsafe { libc::prctl(option, 0, 0, 0, 0) };
        facts.number(format_args!("prctl.{name}"), result.into());
    }
}

/// All white space becomes one space.
pub(crate) fn squeeze(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
