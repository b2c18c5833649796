//! Every field of the OCI runtime specification that there is on Linux is in `docs/oci-features.md`:
//! with the tests that show it, with the error that refuses it, or with the reason why it has no
//! effect. Here is a value for each, and the page is held to what that value does.
#![allow(missing_docs)]

use bulkhead_agent::Error;
use bulkhead_agent::spec::{Parsed, parse};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Each field with a value that is not what leaving it out means. The place is a JSON pointer into
/// the specification; what the same place can hold in several ways has the way in brackets.
const FIELDS: [(&str, &str); 124] = [
    ("ociVersion", r#""2.0.0""#),
    ("root.path", r#""elsewhere""#),
    ("root.readonly", "true"),
    (
        "mounts.destination",
        r#"[{"destination": "/x", "type": "tmpfs"}]"#,
    ),
    (
        "mounts.type",
        r#"[{"destination": "/x", "type": "mqueue"}]"#,
    ),
    (
        "mounts.type[others]",
        r#"[{"destination": "/x", "type": "ext4", "source": "/dev/vda"}]"#,
    ),
    (
        "mounts.source",
        r#"[{"destination": "/x", "type": "bind", "source": "/y"}]"#,
    ),
    (
        "mounts.options",
        r#"[{"destination": "/x", "type": "tmpfs", "options": ["ro", "size=1m"]}]"#,
    ),
    ("process.terminal", "true"),
    ("process.consoleSize", r#"{"width": 1, "height": 1}"#),
    ("process.cwd", r#""/tmp""#),
    ("process.env", r#"["A=b"]"#),
    ("process.args", r#"["other"]"#),
    ("process.commandLine", r#""a b""#),
    (
        "process.rlimits",
        r#"[{"type": "RLIMIT_CPU", "soft": 1, "hard": 2}]"#,
    ),
    ("process.apparmorProfile", r#""profile""#),
    ("process.capabilities.effective", r#"["CAP_KILL"]"#),
    ("process.capabilities.bounding", r#"["CAP_KILL"]"#),
    ("process.capabilities.inheritable", r#"["CAP_KILL"]"#),
    ("process.capabilities.permitted", r#"["CAP_KILL"]"#),
    ("process.capabilities.ambient", r#"["CAP_KILL"]"#),
    ("process.noNewPrivileges", "true"),
    ("process.oomScoreAdj", "7"),
    ("process.scheduler", r#"{"policy": "SCHED_IDLE"}"#),
    ("process.selinuxLabel", r#""label""#),
    (
        "process.ioPriority",
        r#"{"class": "IOPRIO_CLASS_IDLE", "priority": 0}"#,
    ),
    ("process.execCPUAffinity", r#"{"initial": "0"}"#),
    ("process.user.uid", "5"),
    ("process.user.gid", "5"),
    ("process.user.umask", "63"),
    ("process.user.additionalGids", "[5]"),
    ("process.user.username", r#""me""#),
    ("hostname", r#""name""#),
    ("domainname", r#""name""#),
    ("hooks.prestart", r#"[{"path": "/x"}]"#),
    ("hooks.createRuntime", r#"[{"path": "/x"}]"#),
    ("hooks.createContainer", r#"[{"path": "/x"}]"#),
    ("hooks.startContainer", r#"[{"path": "/x"}]"#),
    ("hooks.poststart", r#"[{"path": "/x"}]"#),
    ("hooks.poststop", r#"[{"path": "/x"}]"#),
    ("annotations", r#"{"a": "b"}"#),
    (
        "mounts.uidMappings",
        r#"[{"destination": "/x", "type": "bind", "source": "/y", "options": ["bind"], "uidMappings": [{"containerID": 0, "hostID": 1, "size": 1}], "gidMappings": [{"containerID": 0, "hostID": 1, "size": 1}]}]"#,
    ),
    (
        "mounts.gidMappings",
        r#"[{"destination": "/x", "type": "bind", "source": "/y", "options": ["bind"], "uidMappings": [{"containerID": 0, "hostID": 1, "size": 1}], "gidMappings": [{"containerID": 0, "hostID": 1, "size": 1}]}]"#,
    ),
    ("linux.namespaces[pid]", r#"[{"type": "pid"}]"#),
    ("linux.namespaces[mount]", r#"[{"type": "mount"}]"#),
    ("linux.namespaces[ipc]", r#"[{"type": "ipc"}]"#),
    ("linux.namespaces[uts]", r#"[{"type": "uts"}]"#),
    ("linux.namespaces[cgroup]", r#"[{"type": "cgroup"}]"#),
    ("linux.namespaces[network]", r#"[{"type": "network"}]"#),
    ("linux.namespaces[user]", r#"[{"type": "user"}]"#),
    ("linux.namespaces[time]", r#"[{"type": "time"}]"#),
    (
        "linux.namespaces[pid].path",
        r#"[{"type": "pid", "path": "/proc/1/ns/pid"}]"#,
    ),
    (
        "linux.namespaces[ipc].path",
        r#"[{"type": "ipc", "path": "/proc/1/ns/ipc"}]"#,
    ),
    (
        "linux.namespaces[uts].path",
        r#"[{"type": "uts", "path": "/proc/1/ns/uts"}]"#,
    ),
    (
        "linux.namespaces[network].path",
        r#"[{"type": "network", "path": "/proc/1/ns/net"}]"#,
    ),
    (
        "linux.namespaces[mount].path",
        r#"[{"type": "mount", "path": "/proc/1/ns/mnt"}]"#,
    ),
    (
        "linux.namespaces[cgroup].path",
        r#"[{"type": "cgroup", "path": "/proc/1/ns/cgroup"}]"#,
    ),
    (
        "linux.namespaces[user].path",
        r#"[{"type": "user", "path": "/proc/1/ns/user"}]"#,
    ),
    (
        "linux.namespaces[time].path",
        r#"[{"type": "time", "path": "/proc/1/ns/time"}]"#,
    ),
    (
        "linux.uidMappings",
        r#"[{"containerID": 0, "hostID": 1, "size": 1}]"#,
    ),
    (
        "linux.gidMappings",
        r#"[{"containerID": 0, "hostID": 1, "size": 1}]"#,
    ),
    ("linux.timeOffsets", r#"{"boottime": {"secs": 1}}"#),
    (
        "linux.devices.path",
        r#"[{"path": "/dev/x", "type": "c", "major": 1, "minor": 2}]"#,
    ),
    (
        "linux.devices.type",
        r#"[{"path": "/dev/x", "type": "p", "major": 0, "minor": 0}]"#,
    ),
    (
        "linux.devices.major",
        r#"[{"path": "/dev/x", "type": "b", "major": 7, "minor": 0}]"#,
    ),
    (
        "linux.devices.minor",
        r#"[{"path": "/dev/x", "type": "b", "major": 7, "minor": 1}]"#,
    ),
    (
        "linux.devices.fileMode",
        r#"[{"path": "/dev/x", "type": "b", "major": 7, "minor": 1, "fileMode": 256}]"#,
    ),
    (
        "linux.devices.uid",
        r#"[{"path": "/dev/x", "type": "b", "major": 7, "minor": 1, "uid": 3}]"#,
    ),
    (
        "linux.devices.gid",
        r#"[{"path": "/dev/x", "type": "b", "major": 7, "minor": 1, "gid": 3}]"#,
    ),
    ("linux.netDevices", r#"{"eth0": {"name": "eth1"}}"#),
    ("linux.cgroupsPath", r#""/elsewhere""#),
    ("linux.rootfsPropagation", r#""slave""#),
    ("linux.rootfsPropagation[shared]", r#""shared""#),
    ("linux.rootfsPropagation[unbindable]", r#""unbindable""#),
    (
        "linux.seccomp.defaultAction",
        r#"{"defaultAction": "SCMP_ACT_LOG"}"#,
    ),
    (
        "linux.seccomp.defaultErrnoRet",
        r#"{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 5}"#,
    ),
    (
        "linux.seccomp.architectures",
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86"]}"#,
    ),
    (
        "linux.seccomp.flags",
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_LOG"]}"#,
    ),
    (
        "linux.seccomp.listenerPath",
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/x", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_NOTIFY"}]}"#,
    ),
    (
        "linux.seccomp.listenerMetadata",
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/x", "listenerMetadata": "y", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_NOTIFY"}]}"#,
    ),
    (
        "linux.seccomp.syscalls",
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ERRNO", "errnoRet": 3}]}"#,
    ),
    (
        "linux.seccomp.syscalls.args",
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]}]}"#,
    ),
    ("linux.sysctl", r#"{"kernel.msgmax": "1"}"#),
    ("linux.maskedPaths", r#"["/x"]"#),
    ("linux.readonlyPaths", r#"["/x"]"#),
    ("linux.mountLabel", r#""label""#),
    ("linux.intelRdt", r#"{"closID": "x"}"#),
    ("linux.memoryPolicy", r#"{"mode": "MPOL_LOCAL"}"#),
    ("linux.personality", r#"{"domain": "LINUX32"}"#),
    (
        "linux.resources.devices",
        r#"[{"allow": true, "access": "rwm"}]"#,
    ),
    ("linux.resources.memory.limit", "5"),
    ("linux.resources.memory.reservation", "5"),
    ("linux.resources.memory.swap", "-1"),
    ("linux.resources.memory.kernel", "5"),
    ("linux.resources.memory.kernelTCP", "5"),
    ("linux.resources.memory.swappiness", "5"),
    ("linux.resources.memory.disableOOMKiller", "true"),
    ("linux.resources.memory.useHierarchy", "true"),
    ("linux.resources.memory.checkBeforeUpdate", "true"),
    ("linux.resources.cpu.shares", "5"),
    ("linux.resources.cpu.quota", "5000"),
    ("linux.resources.cpu.burst", "5"),
    ("linux.resources.cpu.period", "5000"),
    ("linux.resources.cpu.realtimeRuntime", "5"),
    ("linux.resources.cpu.realtimePeriod", "5"),
    ("linux.resources.cpu.cpus", r#""0""#),
    ("linux.resources.cpu.mems", r#""0""#),
    ("linux.resources.cpu.idle", "1"),
    ("linux.resources.blockIO.weight", "50"),
    ("linux.resources.blockIO.leafWeight", "50"),
    (
        "linux.resources.blockIO.weightDevice",
        r#"[{"major": 7, "minor": 0, "weight": 50}]"#,
    ),
    (
        "linux.resources.blockIO.throttleReadBpsDevice",
        r#"[{"major": 7, "minor": 0, "rate": 5}]"#,
    ),
    (
        "linux.resources.blockIO.throttleWriteBpsDevice",
        r#"[{"major": 7, "minor": 0, "rate": 5}]"#,
    ),
    (
        "linux.resources.blockIO.throttleReadIOPSDevice",
        r#"[{"major": 7, "minor": 0, "rate": 5}]"#,
    ),
    (
        "linux.resources.blockIO.throttleWriteIOPSDevice",
        r#"[{"major": 7, "minor": 0, "rate": 5}]"#,
    ),
    (
        "linux.resources.hugepageLimits",
        r#"[{"pageSize": "2MB", "limit": 5}]"#,
    ),
    ("linux.resources.network", r#"{"classID": 5}"#),
    ("linux.resources.pids", r#"{"limit": 5}"#),
    ("linux.resources.rdma", r#"{"mlx5_1": {"hcaHandles": 5}}"#),
    ("linux.resources.unified", r#"{"memory.high": "5"}"#),
    ("solaris", r#"{"milestone": "x"}"#),
    ("vm", r#"{"kernel": {"path": "/x"}}"#),
    ("windows", r#"{"layerFolders": []}"#),
    ("zos", r#"{"namespaces": []}"#),
];

fn minimal() -> Value {
    json!({
        "ociVersion": "1.2.0",
        "process": {"user": {"uid": 0, "gid": 0}, "args": ["sh"], "cwd": "/"},
        "linux": {"namespaces": [{"type": "uts"}]}
    })
}

/// What leaving the field out means.
fn without(field: &str) -> Parsed {
    let mut spec = minimal();
    if field.starts_with("linux.namespaces") {
        spec["linux"]["namespaces"] = json!([]);
    }
    parsed(&spec).unwrap()
}

/// The minimal specification with a value at the place of a field.
fn with(field: &str, value: Value) -> Value {
    let mut spec = minimal();
    let mut place = &mut spec;
    for name in field.split('.') {
        let name = name.split('[').next().unwrap();
        // The whole list or profile is the value, whichever of its fields is meant.
        let whole = place.get("defaultAction").is_some();
        if whole {
            break;
        }
        if !place.is_object() {
            *place = json!({});
        }
        place = &mut place[name];
        if matches!(name, "mounts" | "namespaces" | "devices" | "seccomp") {
            break;
        }
    }
    *place = value;
    // A user namespace has both mappings and must be asked for.
    if let "linux.uidMappings" | "linux.gidMappings" = field {
        let one = json!([{ "containerID": 0, "hostID": 1, "size": 1 }]);
        let other = match field {
            "linux.uidMappings" => "gidMappings",
            _ => "uidMappings",
        };
        spec["linux"][other] = one;
        spec["linux"]["namespaces"] = json!([{ "type": "user" }]);
    }
    spec
}

fn parsed(spec: &Value) -> Result<Parsed, Error> {
    parse(spec.to_string().as_bytes())
}

/// Field, what becomes of it, and the rest of its row.
fn page() -> BTreeMap<String, (String, String)> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/oci-features.md");
    let text = fs::read_to_string(file).unwrap();
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.map(|row| {
        let mut cells = row.trim_end_matches('|').splitn(3, '|').map(str::trim);
        let mut cell = || cells.next().unwrap().to_owned();
        let field = cell().trim_end_matches('`').to_owned();
        (field, (cell(), cell()))
    })
    .collect()
}

#[test]
fn every_field_does_what_the_page_says() {
    let page = page();
    let tests = names_of_tests();
    let mut wrong = Vec::new();
    for (field, text) in FIELDS {
        let plain = without(field);
        let value: Value = serde_json::from_str(text).unwrap();
        let result = parsed(&with(field, value));
        let Some((state, shown)) = page.get(field) else {
            wrong.push(format!(
                "{field} is not on the page: {}",
                outcome(&result, &plain)
            ));
            continue;
        };
        let quoted = |text: &str| -> Vec<String> {
            text.split('`')
                .skip(1)
                .step_by(2)
                .map(str::to_owned)
                .collect()
        };
        match (state.as_str(), &result) {
            ("supported", Ok(parsed)) if *parsed != plain => {
                let named = quoted(shown);
                if named.is_empty() {
                    wrong.push(format!("{field}: no test is named"));
                }
                let missing = named.iter().filter(|name| !tests.contains(name));
                wrong.extend(missing.map(|name| format!("{field}: there is no test {name}")));
            }
            ("no effect", Ok(parsed)) if *parsed == plain && !shown.is_empty() => {}
            ("refused", Err(error @ (Error::Unimplemented(_) | Error::Invalid(_)))) => {
                let name = quoted(shown).first().cloned().unwrap_or_default();
                if name.is_empty() || !error.to_string().contains(&name) {
                    wrong.push(format!("{field}: the error is {error}"));
                }
            }
            _ => wrong.push(format!(
                "{field} is not {state}: {}",
                outcome(&result, &plain)
            )),
        }
    }
    let unknown = page
        .keys()
        .filter(|field| !FIELDS.iter().any(|(known, _)| known == field));
    wrong.extend(unknown.map(|field| format!("{field} has no value in this test")));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn outcome(result: &Result<Parsed, Error>, plain: &Parsed) -> String {
    match result {
        Ok(parsed) if parsed == plain => "it has no effect".to_owned(),
        Ok(_) => "it is taken".to_owned(),
        Err(error) => format!("refused, {error}"),
    }
}

/// Nothing that the specification knows is unknown here, where it would be dropped unseen: a value
/// that no field can have is noticed.
#[test]
fn every_field_is_read() {
    for (field, _) in FIELDS {
        let nonsense = json!([[[true]]]);
        assert!(
            parsed(&with(field, nonsense)).is_err(),
            "{field} is not read"
        );
    }
}

/// `module::name` of every test of the agent.
fn names_of_tests() -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    for directory in ["src", "tests"] {
        collect(&root.join(directory), &mut files);
    }
    let mut names = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let stem = file.file_stem().unwrap().to_string_lossy().into_owned();
        let module = match stem.as_str() {
            "tests" | "mod" => file
                .parent()
                .unwrap()
                .file_name()
                .unwrap()
                .to_string_lossy()
                .into_owned(),
            _ => stem,
        };
        let functions = text
            .lines()
            .filter_map(|line| line.trim().strip_prefix("fn "));
        names
            .extend(functions.map(|line| format!("{module}::{}", line.split('(').next().unwrap())));
    }
    names
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}
