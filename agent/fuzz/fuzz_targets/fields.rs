//! A valid specification with some fields changed: more of these get past the JSON than of the
//! mutations of a text.
#![no_main]

mod rules;

use arbitrary::{Arbitrary, Unstructured};
use libfuzzer_sys::fuzz_target;
use serde_json::{Map, Value, json};

#[derive(Debug, Arbitrary)]
struct Change {
    field: usize,
    value: Any,
}

/// JSON of bounded depth, with words that mean something.
#[derive(Debug)]
struct Any(Value);

impl<'a> Arbitrary<'a> for Any {
    fn arbitrary(u: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        value(u, 3).map(Self)
    }
}

fn value(u: &mut Unstructured<'_>, depth: u8) -> arbitrary::Result<Value> {
    Ok(match u.int_in_range(0..=if depth == 0 { 4 } else { 6 })? {
        0 => Value::Bool(u.arbitrary()?),
        1 => json!(u.arbitrary::<i64>()?),
        2 => json!(u.arbitrary::<u8>()?),
        3 => json!(u.choose(&WORDS)?),
        4 => json!(u.arbitrary::<&str>()?),
        5 => {
            let length = u.int_in_range(0..=4)?;
            Value::Array(
                (0..length)
                    .map(|_| value(u, depth - 1))
                    .collect::<Result<_, _>>()?,
            )
        }
        _ => {
            let length = u.int_in_range(0..=4)?;
            let entries =
                (0..length).map(|_| Ok(((*u.choose(&KEYS)?).to_owned(), value(u, depth - 1)?)));
            Value::Object(entries.collect::<arbitrary::Result<Map<_, _>>>()?)
        }
    })
}

fuzz_target!(|changes: Vec<Change>| {
    let mut spec = base();
    for Change { field, value } in changes.into_iter().take(8) {
        let (parent, key) = FIELDS[field % FIELDS.len()]
            .rsplit_once('/')
            .expect("a pointer");
        match spec.pointer_mut(parent) {
            Some(Value::Object(map)) => {
                map.insert(key.to_owned(), value.0);
            }
            Some(Value::Array(list)) => list.push(value.0),
            _ => {}
        }
    }
    rules::spec(spec.to_string().as_bytes());
});

fn base() -> Value {
    let all = json!(["CAP_CHOWN", "CAP_KILL"]);
    json!({
        "ociVersion": "1.2.0", "hostname": "box", "domainname": "org", "annotations": {},
        "process": {
            "terminal": false, "consoleSize": {"width": 80, "height": 24}, "cwd": "/", "env": ["PATH=/bin"], "args": ["sh"],
            "user": {"uid": 0, "gid": 0, "umask": 18, "additionalGids": [1]},
            "capabilities": {"bounding": all, "effective": all, "permitted": all, "inheritable": all, "ambient": all},
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1, "hard": 2}], "noNewPrivileges": true, "oomScoreAdj": 1
        },
        "root": {"path": "rootfs", "readonly": true},
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid"]}],
        "linux": {
            "namespaces": [{"type": "mount"}], "devices": [{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229}],
            "cgroupsPath": "/x", "maskedPaths": ["/proc/kcore"], "readonlyPaths": ["/proc/sys"], "sysctl": {},
            "uidMappings": [], "gidMappings": [],
            "resources": {
                "devices": [{"allow": false, "access": "rwm"}], "memory": {"limit": 1, "swap": 2}, "cpu": {"shares": 2},
                "pids": {"limit": 1}, "hugepageLimits": [{"pageSize": "2MB", "limit": 0}], "unified": {},
                "blockIO": {"weight": 10}, "network": {}, "rdma": {}
            }
        }
    })
}

const FIELDS: [&str; 74] = [
    "/hostname",
    "/domainname",
    "/annotations",
    "/hooks",
    "/process/terminal",
    "/process/consoleSize",
    "/process/cwd",
    "/process/env",
    "/process/args",
    "/process/env/0",
    "/process/args/0",
    "/process/user/uid",
    "/process/user/gid",
    "/process/user/umask",
    "/process/user/additionalGids",
    "/process/user/username",
    "/process/capabilities",
    "/process/capabilities/bounding",
    "/process/capabilities/ambient",
    "/process/rlimits",
    "/process/rlimits/0/soft",
    "/process/rlimits/0/type",
    "/process/noNewPrivileges",
    "/process/oomScoreAdj",
    "/process/apparmorProfile",
    "/process/selinuxLabel",
    "/process/scheduler",
    "/process/ioPriority",
    "/process/execCPUAffinity",
    "/root",
    "/root/readonly",
    "/mounts",
    "/mounts/0",
    "/mounts/0/destination",
    "/mounts/0/type",
    "/mounts/0/source",
    "/mounts/0/options",
    "/mounts/0/options/0",
    "/mounts/0/uidMappings",
    "/linux/namespaces",
    "/linux/namespaces/0",
    "/linux/devices",
    "/linux/devices/0/path",
    "/linux/devices/0/type",
    "/linux/devices/0/major",
    "/linux/devices/0/fileMode",
    "/linux/cgroupsPath",
    "/linux/maskedPaths",
    "/linux/maskedPaths/0",
    "/linux/readonlyPaths/0",
    "/linux/sysctl",
    "/linux/sysctl/kernel.msgmax",
    "/linux/uidMappings",
    "/linux/uidMappings/0",
    "/linux/gidMappings/0",
    "/linux/seccomp",
    "/linux/rootfsPropagation",
    "/linux/timeOffsets",
    "/linux/personality",
    "/linux/intelRdt",
    "/linux/mountLabel",
    "/linux/resources/devices",
    "/linux/resources/devices/0",
    "/linux/resources/memory",
    "/linux/resources/memory/limit",
    "/linux/resources/memory/swap",
    "/linux/resources/cpu",
    "/linux/resources/cpu/shares",
    "/linux/resources/cpu/cpus",
    "/linux/resources/hugepageLimits",
    "/linux/resources/hugepageLimits/0/pageSize",
    "/linux/resources/unified",
    "/linux/resources/unified/memory.high",
    "/linux/resources/blockIO",
];

const WORDS: [&str; 40] = [
    "",
    "/",
    "/a/b",
    "/a/../b",
    "a",
    "/proc/self/fd/3",
    "/run/bulkhead/scratch/volumes/x",
    "bind",
    "rbind",
    "ro",
    "rro",
    "rprivate",
    "size=1m",
    "mode=0777",
    "tmpfs",
    "proc",
    "overlay",
    "cgroup",
    "mqueue",
    "user",
    "pid",
    "network",
    "time",
    "/proc/1/ns/pid",
    "RLIMIT_CPU",
    "CAP_SYS_ADMIN",
    "c",
    "b",
    "a",
    "rwm",
    "SCMP_ACT_ALLOW",
    "SCMP_ACT_ERRNO",
    "0-3",
    "1GB",
    "../x",
    "memory.max",
    "max",
    "idmap",
    "copy-up",
    "\u{0}",
];

const KEYS: [&str; 32] = [
    "type",
    "path",
    "source",
    "destination",
    "options",
    "limit",
    "swap",
    "soft",
    "hard",
    "names",
    "action",
    "args",
    "index",
    "value",
    "op",
    "defaultAction",
    "syscalls",
    "architectures",
    "major",
    "minor",
    "access",
    "allow",
    "pageSize",
    "containerID",
    "hostID",
    "size",
    "cpus",
    "shares",
    "quota",
    "period",
    "memory.high",
    "weight",
];
