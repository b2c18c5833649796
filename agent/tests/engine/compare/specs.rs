//! The specifications, as the daemon makes them for the kinds of containers that a CRI client asks
//! for.

use crate::support::Container;
use serde_json::{Value, json};

/// Of a terminal: columns and rows.
pub(super) const SIZE: (u32, u32) = (100, 40);

/// One specification to look at from inside.
#[derive(Debug, Clone)]
pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) spec: Value,
    /// The process to run in the container, whose own process then only waits.
    pub(super) exec: Option<Value>,
}

impl Case {
    fn new(name: &'static str, change: impl FnOnce(&mut Value)) -> Self {
        let mut spec = default();
        change(&mut spec);
        Self {
            name,
            spec,
            exec: None,
        }
    }

    /// The same process by an exec into a container that has it.
    fn exec(name: &'static str, change: impl FnOnce(&mut Value)) -> Self {
        let mut case = Self::new(name, change);
        let mut process = case.spec["process"].take();
        case.spec["process"] = default()["process"].clone();
        case.spec["process"]["args"] = json!(["/bin/probe", "hold"]);
        process["env"] = json!(["PATH=/bin", "BY=exec"]);
        case.exec = Some(process);
        case
    }

    pub(super) fn terminal(&self) -> bool {
        let process = self.exec.as_ref().unwrap_or(&self.spec["process"]);
        process["terminal"] == true
    }
}

/// Every capability, capabilities(7).
const ALL: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// Every case.
pub(super) fn all() -> Vec<Case> {
    vec![
        Case::new("default", |_| {}),
        Case::new("privileged", privileged),
        Case::new("terminal", terminal),
        Case::new("readonly", |spec| {
            spec["root"]["readonly"] = json!(true);
            spec["mounts"].as_array_mut().unwrap().push(json!({
                "destination": "/tmp", "type": "tmpfs", "source": "tmpfs",
                "options": ["nosuid", "nodev", "mode=1777", "size=1m"]
            }));
        }),
        Case::new("user", user),
        Case::new("limits", limits),
        Case::new("volumes", volumes),
        Case::exec("exec", |_| {}),
        Case::exec("exec-user-terminal", |spec| {
            user(spec);
            terminal(spec);
        }),
    ]
}

fn default() -> Value {
    let mut spec = Container::new(&["/bin/probe"]).spec;
    let capabilities = json!([
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FSETID",
        "CAP_FOWNER",
        "CAP_MKNOD",
        "CAP_NET_RAW",
        "CAP_SETGID",
        "CAP_SETUID",
        "CAP_SETFCAP",
        "CAP_SETPCAP",
        "CAP_NET_BIND_SERVICE",
        "CAP_SYS_CHROOT",
        "CAP_KILL",
        "CAP_AUDIT_WRITE"
    ]);
    for set in ["bounding", "effective", "permitted"] {
        spec["process"]["capabilities"][set] = capabilities.clone();
    }
    spec["process"]["env"] = json!(["PATH=/usr/bin:/bin", "HOSTNAME=box", "EMPTY=", "TWO=a b"]);
    spec["mounts"].as_array_mut().unwrap().push(json!({
        "destination": "/dev/shm", "type": "tmpfs", "source": "shm",
        "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]
    }));
    spec["linux"]["resources"] = json!({"devices": [{"allow": false, "access": "rwm"}]});
    spec["linux"]["seccomp"] = serde_json::from_str(include_str!("seccomp.json")).unwrap();
    spec["linux"]["maskedPaths"] = json!([
        "/proc/asound",
        "/proc/acpi",
        "/proc/interrupts",
        "/proc/kcore",
        "/proc/keys",
        "/proc/latency_stats",
        "/proc/timer_list",
        "/proc/timer_stats",
        "/proc/sched_debug",
        "/proc/scsi",
        "/sys/firmware",
        "/sys/devices/virtual/powercap"
    ]);
    spec["linux"]["readonlyPaths"] = json!([
        "/proc/bus",
        "/proc/fs",
        "/proc/irq",
        "/proc/sys",
        "/proc/sysrq-trigger"
    ]);
    spec
}

/// As the CRI's `privileged`: all capabilities, nothing hidden, /sys writable, any device and call.
fn privileged(spec: &mut Value) {
    spec["linux"].as_object_mut().unwrap().remove("seccomp");
    let all: Vec<String> = ALL.iter().map(|name| format!("CAP_{name}")).collect();
    for set in ["bounding", "effective", "permitted"] {
        spec["process"]["capabilities"][set] = json!(all);
    }
    for mount in spec["mounts"].as_array_mut().unwrap() {
        for option in mount["options"].as_array_mut().unwrap() {
            if option == "ro" {
                *option = json!("rw");
            }
        }
    }
    spec["linux"]["maskedPaths"] = json!([]);
    spec["linux"]["readonlyPaths"] = json!([]);
    spec["linux"]["resources"] = json!({"devices": [{"allow": true, "access": "rwm"}]});
}

fn terminal(spec: &mut Value) {
    spec["process"]["terminal"] = json!(true);
    spec["process"]["consoleSize"] = json!({"width": SIZE.0, "height": SIZE.1});
}

fn user(spec: &mut Value) {
    let process = &mut spec["process"];
    process["user"] =
        json!({"uid": 1000, "gid": 1001, "additionalGids": [5, 1002, 2000], "umask": 0o027});
    process["noNewPrivileges"] = json!(true);
    process["cwd"] = json!("/srv/web");
    let raw = json!(["CAP_NET_RAW"]);
    process["capabilities"] = json!({
        "bounding": raw, "effective": raw, "permitted": raw, "inheritable": raw, "ambient": raw
    });
}

fn limits(spec: &mut Value) {
    spec["process"]["rlimits"] = json!([
        {"type": "RLIMIT_NOFILE", "soft": 512, "hard": 1024},
        {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
        {"type": "RLIMIT_MEMLOCK", "soft": 65536, "hard": 65536}
    ]);
    spec["process"]["oomScoreAdj"] = json!(500);
    spec["linux"]["resources"]["memory"] =
        json!({"limit": 100 << 20, "swap": 150 << 20, "reservation": 50 << 20});
    spec["linux"]["resources"]["cpu"] =
        json!({"shares": 512, "quota": 50_000, "period": 100_000, "cpus": "0-1", "mems": "0"});
    spec["linux"]["resources"]["pids"] = json!({"limit": 100});
    spec["linux"]["resources"]["unified"] =
        json!({"memory.high": "94371840", "memory.oom.group": "1"});
}

/// Mounts of every kind of option, and devices.
fn volumes(spec: &mut Value) {
    let mounts = spec["mounts"].as_array_mut().unwrap();
    for (target, source, options) in [
        ("/v/plain", "/usr", json!(["bind"])),
        (
            "/v/ro",
            "/usr",
            json!(["rbind", "ro", "nosuid", "nodev", "noexec", "rprivate"]),
        ),
        ("/v/slave", "/usr", json!(["rbind", "rslave", "noatime"])),
        (
            "/v/shared",
            "/usr",
            json!(["bind", "rshared", "nodiratime"]),
        ),
        (
            "/v/private",
            "/dev",
            json!(["bind", "private", "nosymfollow"]),
        ),
        ("/etc/hosts", "/etc/hostname", json!(["bind", "ro"])),
    ] {
        mounts.push(
            json!({"destination": target, "type": "bind", "source": source, "options": options}),
        );
    }
    mounts.push(json!({
        "destination": "/srv/web", "type": "tmpfs", "source": "tmpfs",
        "options": ["size=2m", "mode=750", "uid=7", "gid=8", "noexec", "relatime"]
    }));
    spec["linux"]["devices"] = json!([
        {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o660, "uid": 1, "gid": 2},
        {"path": "/dev/deep/loop", "type": "b", "major": 7, "minor": 0},
        {"path": "/dev/pipe", "type": "p", "fileMode": 0o600, "major": 0, "minor": 0}
    ]);
    spec["linux"]["resources"]["devices"] = json!([
        {"allow": false, "access": "rwm"},
        {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw"}
    ]);
}
