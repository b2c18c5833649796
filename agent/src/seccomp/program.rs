//! The instructions of a filter (seccomp(2), `struct seccomp_data`; classic BPF).
//!
//! ```text
//! architecture? --- x86-64 ---> number >= X32_BIT? --- no ---> search in the numbers of x86-64
//!      |   \                          +------------ yes ---> search in those of x32
//!      |    +------ i386 -----> search in the numbers of i386
//!      +----------- another --> killed, as by libseccomp
//! ```
//! A search halves the ranges of numbers that have the same verdict, so a system call costs about
//! eight comparisons, and the kernel's cache of verdicts that depend on the number alone
//! understands it.

use super::Instruction;
use super::profile::{Rules, Verdict};
use super::table::{Abi, X32_BIT};
use seccompiler::BpfProgram;
use std::collections::BTreeMap;

const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const JUMP: u16 = 0x05; // BPF_JMP | BPF_JA
const IF_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const IF_AT_LEAST: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;

const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
const AUDIT_ARCH_I386: u32 = 0x4000_0003;
const ENOSYS: u32 = 38;

/// Makes the program.
pub(super) fn build(rules: &Rules) -> Vec<Instruction> {
    let killed = vec![give(libc::SECCOMP_RET_KILL_THREAD)];
    let native = native(rules, &killed);
    let i386 = match rules.abis.get(&Abi::X86) {
        Some(calls) => with_number(search(&ranges(rules, Abi::X86, calls, 0), rules.default)),
        None => killed.clone(),
    };
    let mut program = vec![load(ARCHITECTURE)];
    program.extend(branch(IF_EQUAL, AUDIT_ARCH_X86_64, native, {
        branch(IF_EQUAL, AUDIT_ARCH_I386, i386, killed)
    }));
    program
}

/// The section for x86-64 and x32, which have one architecture.
fn native(rules: &Rules, killed: &[Instruction]) -> Vec<Instruction> {
    let of = |abi, bit| {
        let calls = rules.abis.get(&abi)?;
        Some(search(&ranges(rules, abi, calls, bit), rules.default))
    };
    let x86_64 = of(Abi::X86_64, 0).unwrap_or_else(|| killed.to_vec());
    let x32 = of(Abi::X32, X32_BIT).unwrap_or_else(|| killed.to_vec());
    with_number(branch(IF_AT_LEAST, X32_BIT, x32, x86_64))
}

fn with_number(mut section: Vec<Instruction>) -> Vec<Instruction> {
    section.insert(0, load(NUMBER));
    section
}

/// Numbers from the first on, up to the next range, have this verdict.
type Range = (u32, Verdict);

/// All numbers, in ranges.
fn ranges(rules: &Rules, abi: Abi, calls: &BTreeMap<u32, Verdict>, bit: u32) -> Vec<Range> {
    let default = Verdict::Always(rules.default);
    let mut ranges: Vec<Range> = Vec::new();
    let mut push = |start: u32, verdict: Verdict| {
        if ranges.last().is_none_or(|(_, last)| *last != verdict) {
            ranges.push((start, verdict));
        }
    };
    let mut next = 0;
    for (number, verdict) in calls {
        if *number > next {
            push(next | bit, default.clone());
        }
        push(*number | bit, verdict.clone());
        next = number.saturating_add(1);
    }
    // What the profile mentions with the default action is not in the map.
    let last = rules.last.get(&abi).copied();
    let end = last.map_or(next, |last| next.max(last.saturating_add(1)));
    if end > next || last.is_none() || !rules.newer_are_unknown {
        push(next | bit, default);
    }
    if last.is_some() && rules.newer_are_unknown {
        push(end | bit, Verdict::Always(libc::SECCOMP_RET_ERRNO | ENOSYS));
    }
    ranges
}

/// Finds the range of the number that is loaded. There is at least one range.
fn search(ranges: &[Range], default: u32) -> Vec<Instruction> {
    let (lower, upper) = ranges.split_at(ranges.len() / 2);
    match (lower, upper) {
        ([], [(_, verdict), ..]) => verdict_of(verdict, default),
        (_, [(start, _), ..]) => branch(
            IF_AT_LEAST,
            *start,
            search(upper, default),
            search(lower, default),
        ),
        (_, []) => vec![give(default)],
    }
}

fn verdict_of(verdict: &Verdict, default: u32) -> Vec<Instruction> {
    match verdict {
        Verdict::Always(action) => vec![give(*action)],
        Verdict::When(rules) => {
            let mut program = Vec::new();
            for (rule, action) in rules {
                // Goes past one more instruction when it does not match.
                program.extend(
                    BpfProgram::from(rule.clone())
                        .into_iter()
                        .map(|one| Instruction {
                            code: one.code,
                            jt: one.jt,
                            jf: one.jf,
                            k: one.k,
                        }),
                );
                program.push(give(*action));
            }
            program.push(give(default));
            program
        }
    }
}

/// Goes to `yes` if the comparison holds, else to `no`.
fn branch(
    code: u16,
    k: u32,
    mut yes: Vec<Instruction>,
    mut no: Vec<Instruction>,
) -> Vec<Instruction> {
    let mut program = match u8::try_from(no.len()) {
        Ok(skip) => vec![Instruction {
            code,
            jt: skip,
            jf: 0,
            k,
        }],
        // A conditional jump goes no further than 255 instructions.
        Err(_) => vec![
            Instruction {
                code,
                jt: 0,
                jf: 1,
                k,
            },
            Instruction {
                code: JUMP,
                jt: 0,
                jf: 0,
                k: u32::try_from(no.len()).unwrap_or(u32::MAX),
            },
        ],
    };
    program.append(&mut no);
    program.append(&mut yes);
    program
}

fn load(offset: u32) -> Instruction {
    Instruction {
        code: LOAD,
        jt: 0,
        jf: 0,
        k: offset,
    }
}

fn give(action: u32) -> Instruction {
    Instruction {
        code: RETURN,
        jt: 0,
        jf: 0,
        k: action,
    }
}
