//! The agent's engine beside runc and crun: containers on this kernel, without a VM, in turn.
//!
//! What is compared is what a node waits for: a call to the engine here, a run of the command there.
//! The engine makes the container's overlay as well; the peers get a root that is there already.

mod peer;
mod worker;

use super::figures::{Samples, table};
use crate::artifacts::{artifact, repository};
use anyhow::{Context, Result};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

pub use worker::{ARGUMENT, work};

const RUNS: usize = 9;
const EXECS: usize = 3;
const STEPS: [&str; 6] = [
    "create",
    "start",
    "create and start",
    "exec of `true`, to its end",
    "kill and remove",
    "all but exec",
];

/// The durations of one round, in milliseconds.
#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
struct Round {
    create: f64,
    start: f64,
    execs: Vec<f64>,
    remove: f64,
}

#[derive(Default)]
struct Column([Samples; 6]);

impl Column {
    fn add(&mut self, round: &Round) {
        let ms = |ms: f64| Duration::from_secs_f64(ms / 1e3);
        let [create, start, both, exec, remove, all] = &mut self.0;
        create.add(ms(round.create));
        start.add(ms(round.start));
        both.add(ms(round.create + round.start));
        round.execs.iter().for_each(|time| exec.add(ms(*time)));
        remove.add(ms(round.remove));
        all.add(ms(round.create + round.start + round.remove));
    }
}

/// Measures and prints.
///
/// # Errors
/// A container did not run.
pub fn run() -> Result<String> {
    let base = directory()?;
    let image = base.path().join("image");
    make_image(&image)?;
    let mut engine = worker::Worker::start(base.path())?;
    let peers = [
        peer::Peer::new("runc", base.path())?,
        peer::Peer::new("crun", base.path())?,
    ];
    let mut columns: [Column; 3] = Default::default();
    // The first run of each fills caches and is not counted.
    for number in 0..=RUNS {
        let rounds = [
            engine.round()?,
            peers[0].round(number)?,
            peers[1].round(number)?,
        ];
        if number > 0 {
            columns
                .iter_mut()
                .zip(&rounds)
                .for_each(|(column, round)| column.add(round));
        }
    }
    drop(engine);
    let mut rows = vec![
        ["ms, median (least to most)", "Bulkhead", "runc", "crun"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for (index, step) in STEPS.iter().enumerate() {
        let cells = columns.iter().filter_map(|column| column.0.get(index));
        rows.push(
            [(*step).to_owned()]
                .into_iter()
                .chain(cells.map(Samples::text))
                .collect(),
        );
    }
    Ok(table(
        &format!("The engine, a sleeping container and {EXECS} execs in it, {RUNS} runs in turn"),
        &rows,
    ))
}

fn directory() -> Result<tempfile::TempDir> {
    Ok(tempfile::Builder::new()
        .prefix("bulkhead-bench-engine")
        .tempdir_in("/dev/shm")?)
}

/// What the agent takes on a node.
///
/// # Errors
/// It did not get ready.
pub fn sizes() -> Result<String> {
    let base = directory()?;
    let agent = artifact("bin/bulkhead-agent");
    let initramfs = artifact("initramfs");
    let packed = Command::new("zstd")
        .args(["-19", "-q", "-c"])
        .arg(&initramfs)
        .output()?
        .stdout
        .len();
    let kib = |bytes: u64| format!("{}", bytes.div_ceil(1024));
    let row = |name: &str, bytes: u64| vec![name.to_owned(), kib(bytes)];
    Ok(table(
        "Sizes of the agent",
        &[
            vec!["KiB".to_owned(), String::new()],
            row("static program", std::fs::metadata(&agent)?.len()),
            row("initramfs", std::fs::metadata(&initramfs)?.len()),
            row("initramfs, by zstd -19", u64::try_from(packed)?),
            row(
                "resident memory, idle",
                worker::idle_memory(&agent, base.path())?,
            ),
        ],
    ))
}

/// A root with this machine's busybox.
fn make_image(root: &Path) -> Result<()> {
    for name in ["bin", "proc", "sys", "dev", "tmp", "etc"] {
        std::fs::create_dir_all(root.join(name))?;
    }
    std::fs::copy("/bin/busybox", root.join("bin/busybox"))?;
    for applet in ["sh", "sleep", "true"] {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet))?;
    }
    let ldd = Command::new("ldd").arg("/bin/busybox").output()?.stdout;
    for word in String::from_utf8(ldd)?
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
    {
        let target = root.join(word.trim_start_matches('/'));
        std::fs::create_dir_all(target.parent().context("A library has no folder")?)?;
        std::fs::copy(std::fs::canonicalize(word)?, target)?;
    }
    Ok(())
}

/// As the daemon makes it for a container that asks for nothing.
fn spec(args: &[&str]) -> Result<serde_json::Value> {
    let profile = repository().join("agent/tests/engine/compare/seccomp.json");
    let seccomp: serde_json::Value = serde_json::from_slice(&std::fs::read(profile)?)?;
    let capabilities = [
        "CHOWN",
        "DAC_OVERRIDE",
        "FSETID",
        "FOWNER",
        "MKNOD",
        "NET_RAW",
        "SETGID",
        "SETUID",
        "SETFCAP",
        "SETPCAP",
        "NET_BIND_SERVICE",
        "SYS_CHROOT",
        "KILL",
        "AUDIT_WRITE",
    ]
    .map(|name| format!("CAP_{name}"));
    Ok(serde_json::json!({
        // The newest that Debian's crun knows.
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0}, "args": args, "env": ["PATH=/bin"], "cwd": "/",
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities}
        },
        "root": {"path": "rootfs"},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]}
        ],
        "linux": {
            "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "cgroup"}],
            "resources": {"memory": {"limit": 100 << 20}, "cpu": {"shares": 512}, "devices": [{"allow": false, "access": "rwm"}]},
            "seccomp": seccomp,
            "maskedPaths": ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/scsi", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
        }
    }))
}
