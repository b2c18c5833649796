use super::*;
use serde_json::{Value, json};

const X86_64: u32 = 0xc000_003e;
const I386: u32 = 0x4000_0003;
const X32: u32 = 0x4000_0000;
const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const EPERM: u32 = libc::SECCOMP_RET_ERRNO | 1;
const ENOSYS: u32 = libc::SECCOMP_RET_ERRNO | 38;

/// Runs a filter as the kernel does.
fn verdict(filter: &Filter, arch: u32, number: u32, args: &[u64]) -> u32 {
    let mut data = [0u8; 64];
    data[..4].copy_from_slice(&number.to_le_bytes());
    data[4..8].copy_from_slice(&arch.to_le_bytes());
    for (index, arg) in args.iter().enumerate() {
        data[16 + 8 * index..24 + 8 * index].copy_from_slice(&arg.to_le_bytes());
    }
    let program: Vec<_> = filter.instructions().collect();
    let (mut at, mut value) = (0usize, 0u32);
    loop {
        let Instruction { code, jt, jf, k } = program[at];
        at += 1;
        let go = |holds: bool| usize::from(if holds { jt } else { jf });
        match code {
            0x20 => {
                let offset = k as usize;
                value = u32::from_le_bytes(data[offset..offset + 4].try_into().unwrap());
            }
            0x05 => at += k as usize,
            0x15 => at += go(value == k),
            0x25 => at += go(value > k),
            0x35 => at += go(value >= k),
            0x45 => at += go(value & k != 0),
            0x54 => value &= k,
            0x06 => return k,
            code => panic!("instruction {code:#x}"),
        }
    }
}

fn filter(profile: Value) -> Filter {
    translate(profile.to_string().as_bytes()).unwrap()
}

fn rule(name: &str, action: &str, args: Value) -> Value {
    json!({"names": [name], "action": action, "args": args})
}

#[test]
fn numbers_are_found_and_the_rest_is_refused_or_unknown() {
    let filter = filter(json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [
            {"names": ["read", "write", "openat", "no_such_call"], "action": "SCMP_ACT_ALLOW"},
            {"names": ["mount"], "action": "SCMP_ACT_KILL_PROCESS"},
            {"names": ["umount2"], "action": "SCMP_ACT_TRAP"},
            {"names": ["setns"], "action": "SCMP_ACT_LOG"},
            {"names": ["unshare"], "action": "SCMP_ACT_TRACE", "errnoRet": 7},
            {"names": ["bpf"], "action": "SCMP_ACT_KILL"},
            {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
        ]
    }));
    let of = |number: libc::c_long| verdict(&filter, X86_64, number as u32, &[]);
    assert_eq!([of(0), of(1), of(libc::SYS_openat)], [ALLOW; 3]);
    assert_eq!(
        [of(2), of(libc::SYS_openat + 1), of(libc::SYS_openat - 1)],
        [EPERM; 3]
    );
    assert_eq!(of(libc::SYS_mount), libc::SECCOMP_RET_KILL_PROCESS);
    assert_eq!(of(libc::SYS_umount2), libc::SECCOMP_RET_TRAP);
    assert_eq!(of(libc::SYS_setns), libc::SECCOMP_RET_LOG);
    assert_eq!(of(libc::SYS_unshare), libc::SECCOMP_RET_TRACE | 7);
    assert_eq!(of(libc::SYS_bpf), libc::SECCOMP_RET_KILL_THREAD);
    assert_eq!(of(libc::SYS_clone3), ENOSYS);
    // Newer than anything that the profile knows.
    assert_eq!([of(libc::SYS_clone3 + 1), of(4000)], [ENOSYS; 2]);
    // Neither the 32-bit programs nor those of x32 were asked for.
    assert_eq!(
        verdict(&filter, I386, 3, &[]),
        libc::SECCOMP_RET_KILL_THREAD
    );
    assert_eq!(
        verdict(&filter, X86_64, X32, &[]),
        libc::SECCOMP_RET_KILL_THREAD
    );
    assert_eq!(
        verdict(&filter, 0xc000_00b7, 63, &[]),
        libc::SECCOMP_RET_KILL_THREAD
    );
}

#[test]
fn every_architecture_has_its_own_numbers() {
    let filter = filter(json!({
        "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 13,
        "architectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32", "SCMP_ARCH_ARM"],
        "syscalls": [{"names": ["read", "ioctl", "mseal"], "action": "SCMP_ACT_ALLOW"}],
    }));
    let refused = libc::SECCOMP_RET_ERRNO | 13;
    for (arch, number, expected) in [
        (X86_64, 0, ALLOW),
        (X86_64, 16, ALLOW),
        (X86_64, 3, refused),
        (I386, 3, ALLOW),
        (I386, 54, ALLOW),
        (I386, 0, refused),
        (X86_64, X32, ALLOW),
        (X86_64, X32 | 514, ALLOW),
        (X86_64, X32 | 16, refused),
        (X86_64, X32 | 4000, ENOSYS),
        (X86_64, u32::MAX, ENOSYS),
        (I386, 4000, ENOSYS),
    ] {
        assert_eq!(
            verdict(&filter, arch, number, &[]),
            expected,
            "{arch:x} {number:x}"
        );
    }
}

#[test]
fn a_default_that_allows_has_no_unknown_calls() {
    for (action, value) in [
        ("SCMP_ACT_ALLOW", ALLOW),
        ("SCMP_ACT_LOG", libc::SECCOMP_RET_LOG),
    ] {
        let filter = filter(json!({
            "defaultAction": action,
            "syscalls": [{"names": ["mount", "read"], "action": "SCMP_ACT_ERRNO"}],
        }));
        assert_eq!(verdict(&filter, X86_64, 0, &[]), EPERM);
        assert_eq!(verdict(&filter, X86_64, libc::SYS_mount as u32, &[]), EPERM);
        assert_eq!(verdict(&filter, X86_64, 1, &[]), value);
        assert_eq!(verdict(&filter, X86_64, 4000, &[]), value);
    }
    let nothing = filter(json!({"defaultAction": "SCMP_ACT_ERRNO"}));
    assert_eq!(verdict(&nothing, X86_64, 0, &[]), EPERM);
    assert_eq!(verdict(&nothing, X86_64, 4000, &[]), EPERM);
}

#[test]
fn every_operator_compares_all_64_bits() {
    let big = 1u64 << 32 | 5;
    for (op, value, two, yes, no) in [
        ("EQ", 5, 0, vec![5], vec![4, 6, big]),
        ("EQ", big, 0, vec![big], vec![5, 1 << 32]),
        ("NE", 5, 0, vec![4, big], vec![5]),
        ("LT", 5, 0, vec![0, 4], vec![5, 6, big]),
        ("LE", 5, 0, vec![0, 5], vec![6, big]),
        ("GT", 5, 0, vec![6, big], vec![0, 5]),
        ("GE", 5, 0, vec![5, 6, big], vec![0, 4]),
        (
            "GT",
            big,
            0,
            vec![big + 1, 2 << 32],
            vec![big, u64::from(u32::MAX)],
        ),
        (
            "MASKED_EQ",
            0xf0,
            0x10,
            vec![0x1f, 0x10, 1 << 40 | 0x10],
            vec![0x20, 0x30],
        ),
        ("MASKED_EQ", 1 << 40, 0, vec![0, 0xff], vec![1 << 40]),
    ] {
        let arg =
            json!([{"index": 2, "value": value, "valueTwo": two, "op": format!("SCMP_CMP_{op}")}]);
        let filter = filter(json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "syscalls": [rule("ioctl", "SCMP_ACT_ALLOW", arg)],
        }));
        let of = |arg| verdict(&filter, X86_64, libc::SYS_ioctl as u32, &[9, 9, arg]);
        for arg in yes {
            assert_eq!(of(arg), ALLOW, "{op} {value} {arg}");
        }
        for arg in no {
            assert_eq!(of(arg), EPERM, "{op} {value} {arg}");
        }
    }
}

#[test]
fn conditions_combine_as_in_runc() {
    let eq =
        |index: usize, value: u64| json!({"index": index, "value": value, "op": "SCMP_CMP_EQ"});
    let filter = filter(json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": ["SCMP_ARCH_X86"],
        "syscalls": [
            // All of one rule.
            rule("ioctl", "SCMP_ACT_ALLOW", json!([eq(0, 1), eq(1, 2)])),
            // Any of several rules, each with its own action.
            rule("ioctl", "SCMP_ACT_LOG", json!([eq(0, 7)])),
            // Two on one argument are two rules.
            rule("fcntl", "SCMP_ACT_ALLOW", json!([eq(1, 1), eq(1, 2)])),
            // One without conditions counts before those with.
            rule("prctl", "SCMP_ACT_KILL", json!([eq(0, 1)])),
            rule("prctl", "SCMP_ACT_ALLOW", json!([])),
            rule("prctl", "SCMP_ACT_TRAP", json!([])),
            // The default action says nothing.
            rule("read", "SCMP_ACT_ERRNO", json!([])),
            rule("read", "SCMP_ACT_ALLOW", json!([eq(0, 0)])),
        ]
    }));
    let of = |number: libc::c_long, args: &[u64]| verdict(&filter, X86_64, number as u32, args);
    assert_eq!(of(libc::SYS_ioctl, &[1, 2]), ALLOW);
    assert_eq!(of(libc::SYS_ioctl, &[1, 3]), EPERM);
    assert_eq!(of(libc::SYS_ioctl, &[7, 3]), libc::SECCOMP_RET_LOG);
    assert_eq!(of(libc::SYS_fcntl, &[0, 1]), ALLOW);
    assert_eq!(of(libc::SYS_fcntl, &[0, 2]), ALLOW);
    assert_eq!(of(libc::SYS_fcntl, &[0, 3]), EPERM);
    assert_eq!(of(libc::SYS_prctl, &[1]), ALLOW);
    assert_eq!(of(libc::SYS_read, &[0]), ALLOW);
    assert_eq!(of(libc::SYS_read, &[1]), EPERM);
    // A 32-bit program has no upper halves.
    assert_eq!(verdict(&filter, I386, 54, &[1 << 32 | 1, 2]), ALLOW);
}

#[test]
fn what_cannot_be_done_is_refused() {
    let base = |key: &str, value: Value| {
        let mut profile = json!({"defaultAction": "SCMP_ACT_ERRNO"});
        profile[key] = value;
        translate(profile.to_string().as_bytes())
    };
    let arg = |index: usize| json!([{"index": index, "value": 0, "op": "SCMP_CMP_EQ"}]);
    for (key, value) in [
        ("defaultAction", json!("SCMP_ACT_NOTIFY")),
        ("listenerPath", json!("/run/x")),
        (
            "syscalls",
            json!([rule("read", "SCMP_ACT_NOTIFY", json!([]))]),
        ),
        ("flags", json!(["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"])),
    ] {
        assert!(
            matches!(base(key, value), Err(Error::Unimplemented(_))),
            "{key}"
        );
    }
    for (key, value) in [
        ("defaultAction", json!("SCMP_ACT_NONE")),
        ("defaultErrnoRet", json!(5000)),
        ("syscalls", json!([rule("read", "SCMP_ACT_ALLOW", arg(6))])),
        ("flags", json!(["SECCOMP_FILTER_FLAG_NONE"])),
    ] {
        assert!(matches!(base(key, value), Err(Error::Invalid(_))), "{key}");
    }
    let rules: Vec<Value> = (0..2000)
        .map(|value| {
            rule(
                "ioctl",
                "SCMP_ACT_ALLOW",
                json!([{"index": 1, "value": value, "op": "SCMP_CMP_EQ"}]),
            )
        })
        .collect();
    let long = base("syscalls", json!(rules));
    assert!(
        matches!(&long, Err(Error::Invalid(text)) if text.contains("instructions")),
        "{long:?}"
    );
    // Few words that mean many rules.
    let names: Vec<&str> = ["ioctl", "prctl", "kill", "openat"].repeat(1000);
    let argument = json!({"index": 1, "value": 1, "op": "SCMP_CMP_EQ"});
    let rule = json!({"names": names, "action": "SCMP_ACT_ALLOW", "args": vec![argument; 4000]});
    let many = base("syscalls", json!([rule]));
    assert!(
        matches!(&many, Err(Error::Invalid(text)) if text.contains("rules with conditions")),
        "{many:?}"
    );
    let flags = base(
        "flags",
        json!(["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_TSYNC"]),
    );
    assert_eq!(flags.unwrap().flags(), 2);
}
