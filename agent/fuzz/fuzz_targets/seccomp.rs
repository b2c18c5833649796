//! A seccomp profile: refused, or a program that the kernel would take.
#![no_main]

use arbitrary::Arbitrary;
use bulkhead_agent::seccomp::{self, MAX_INSTRUCTIONS};
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

const ACTIONS: [&str; 9] = [
    "SCMP_ACT_ALLOW",
    "SCMP_ACT_ERRNO",
    "SCMP_ACT_KILL",
    "SCMP_ACT_KILL_PROCESS",
    "SCMP_ACT_KILL_THREAD",
    "SCMP_ACT_TRAP",
    "SCMP_ACT_LOG",
    "SCMP_ACT_TRACE",
    "SCMP_ACT_NOTIFY",
];
const OPERATORS: [&str; 7] = [
    "SCMP_CMP_NE",
    "SCMP_CMP_LT",
    "SCMP_CMP_LE",
    "SCMP_CMP_EQ",
    "SCMP_CMP_GE",
    "SCMP_CMP_GT",
    "SCMP_CMP_MASKED_EQ",
];
const ARCHITECTURES: [&str; 6] = [
    "SCMP_ARCH_X86_64",
    "SCMP_ARCH_X86",
    "SCMP_ARCH_X32",
    "SCMP_ARCH_AARCH64",
    "SCMP_ARCH_ARM",
    "SCMP_ARCH_NATIVE",
];
const NAMES: [&str; 24] = [
    "read",
    "write",
    "open",
    "openat",
    "socket",
    "socketcall",
    "ipc",
    "clone",
    "clone3",
    "personality",
    "mmap2",
    "mmap",
    "kill",
    "ptrace",
    "waitpid",
    "getuid32",
    "unshare",
    "bpf",
    "exit",
    "ioctl",
    "no_such_call",
    "",
    "futex_waitv",
    "stat64",
];
const FLAGS: [&str; 5] = [
    "SECCOMP_FILTER_FLAG_LOG",
    "SECCOMP_FILTER_FLAG_TSYNC",
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
    "NONSENSE",
];

#[derive(Debug, Arbitrary)]
struct Profile {
    default: u8,
    default_errno: Option<u32>,
    architectures: Option<Vec<u8>>,
    flags: Option<Vec<u8>>,
    rules: Vec<Rule>,
}

#[derive(Debug, Arbitrary)]
struct Rule {
    names: Vec<u8>,
    action: u8,
    errno: Option<u32>,
    args: Option<Vec<Argument>>,
}

#[derive(Debug, Arbitrary)]
struct Argument {
    index: u8,
    value: u64,
    value_two: Option<u64>,
    operator: u8,
}

fn pick<'a>(list: &[&'a str], index: u8) -> &'a str {
    list[usize::from(index) % list.len()]
}

fn all(list: &[&str], indices: &[u8]) -> Value {
    indices.iter().map(|index| pick(list, *index)).collect()
}

impl Profile {
    fn json(&self) -> Value {
        let rules = self.rules.iter().map(|rule| {
            let args = rule.args.as_ref().map(|args| {
                let one = |arg: &Argument| {
                    json!({
                        // Six are valid; a little more is worth trying.
                        "index": arg.index % 8, "value": arg.value, "valueTwo": arg.value_two,
                        "op": pick(&OPERATORS, arg.operator)
                    })
                };
                args.iter().map(one).collect::<Value>()
            });
            json!({
                "names": all(&NAMES, &rule.names), "action": pick(&ACTIONS, rule.action), "errnoRet": rule.errno,
                "args": args
            })
        });
        json!({
            "defaultAction": pick(&ACTIONS, self.default), "defaultErrnoRet": self.default_errno,
            "architectures": self.architectures.as_ref().map(|list| all(&ARCHITECTURES, list)),
            "flags": self.flags.as_ref().map(|list| all(&FLAGS, list)),
            "syscalls": rules.collect::<Value>()
        })
    }
}

fuzz_target!(|profile: Profile| {
    let Ok(filter) = seccomp::translate(profile.json().to_string().as_bytes()) else {
        return;
    };
    let program: Vec<_> = filter.instructions().collect();
    assert!((1..=MAX_INSTRUCTIONS).contains(&program.len()));
    // The rules of the kernel for classic BPF (bpf_check_classic, seccomp_check_filter).
    for (at, instruction) in program.iter().enumerate() {
        let after = program.len() - at - 1;
        let (far, near) = (
            instruction.k as usize,
            usize::from(instruction.jt.max(instruction.jf)),
        );
        match instruction.code {
            // BPF_LD | BPF_W | BPF_ABS: words of struct seccomp_data.
            0x20 => assert!(far % 4 == 0 && far < 64, "{at}: {instruction:?}"),
            // BPF_ALU | BPF_AND | BPF_K
            0x54 => {}
            // BPF_JMP | BPF_JA
            0x05 => assert!(far < after, "{at}: {instruction:?}"),
            // BPF_JMP | JEQ, JGT, JGE, JSET | BPF_K
            0x15 | 0x25 | 0x35 | 0x45 => assert!(near < after, "{at}: {instruction:?}"),
            // BPF_RET | BPF_K
            0x06 => {}
            _ => panic!("{at}: {instruction:?}"),
        }
    }
    assert_eq!(program.last().map(|last| last.code), Some(0x06));
});
