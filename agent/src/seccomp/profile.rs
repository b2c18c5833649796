//! What a profile means.
//!
//! As libseccomp and runc have it: a rule without conditions on arguments counts before those with
//! conditions; of several with conditions any may match; conditions of one rule must all hold,
//! unless two are on the same argument: then each is a rule of its own. A rule whose action is the
//! default one says nothing. The native architecture always belongs to the filter.

use super::table::{self, Abi};
use crate::id::quote;
use crate::{Error, Result};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag,
    LinuxSeccompOperator,
};
use seccompiler::{SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompRule};
use std::collections::{BTreeMap, BTreeSet};

/// The most entries of any list in a profile.
const MAX_LIST: usize = 4096;
/// EPERM, what a refused system call returns unless the profile says something else.
const EPERM: u32 = 1;
/// The highest error number that the kernel returns (`MAX_ERRNO`).
const MAX_ERRNO: u32 = 4095;

/// What a filter does, by architecture.
#[derive(Debug)]
pub(super) struct Rules {
    /// What happens to a system call that no rule is for; `SECCOMP_RET_*`.
    pub(super) default: u32,
    /// Whether a system call that is newer than the profile gets ENOSYS instead of the default:
    /// programs fall back to an older one then (runc's rule).
    pub(super) newer_are_unknown: bool,
    pub(super) abis: BTreeMap<Abi, BTreeMap<u32, Verdict>>,
    /// Rules with conditions, of all system calls and architectures.
    conditional: usize,
    /// The highest number that the profile mentions, by architecture.
    pub(super) last: BTreeMap<Abi, u32>,
}

/// What happens to a system call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Whatever its arguments are.
    Always(u32),
    /// That of the first rule that matches, else the default.
    When(Vec<(SeccompRule, u32)>),
}

/// Reads a profile.
pub(super) fn read(profile: &LinuxSeccomp) -> Result<Rules> {
    if profile.listener_path().is_some() {
        return Err(Error::Unimplemented(
            "The seccomp profile has listenerPath, but nobody listens in the guest".to_owned(),
        ));
    }
    let default = action(profile.default_action(), profile.default_errno_ret())?;
    let syscalls = profile.syscalls().as_deref().unwrap_or_default();
    limit("syscalls", syscalls.len())?;
    let abis = abis(profile);
    let mut rules = Rules {
        default,
        newer_are_unknown: !matches!(
            profile.default_action(),
            LinuxSeccompAction::ScmpActAllow
                | LinuxSeccompAction::ScmpActLog
                | LinuxSeccompAction::ScmpActTrace
        ),
        abis: abis.iter().map(|abi| (*abi, BTreeMap::new())).collect(),
        conditional: 0,
        last: BTreeMap::new(),
    };
    let mut names = 0;
    for syscall in syscalls {
        names += syscall.names().len();
        limit("system call names", names)?;
        let action = action(syscall.action(), syscall.errno_ret())?;
        let arguments = syscall.args().as_deref().unwrap_or_default();
        limit("arguments", arguments.len())?;
        for name in syscall.names() {
            if !table::is_known(name) {
                tracing::debug!(
                    "The seccomp profile names {}, which is unknown",
                    quote(name)
                );
            }
            for abi in &abis {
                if let Some(number) = table::number(name, *abi) {
                    rules.add(*abi, number, arguments, action)?;
                }
            }
        }
    }
    Ok(rules)
}

impl Rules {
    fn add(
        &mut self,
        abi: Abi,
        number: u32,
        arguments: &[LinuxSeccompArg],
        action: u32,
    ) -> Result<()> {
        let last = self.last.entry(abi).or_insert(number);
        *last = number.max(*last);
        if action == self.default {
            return Ok(());
        }
        let conditions = conditions(arguments, abi)?;
        let calls = self.abis.entry(abi).or_default();
        if conditions.is_empty() {
            let verdict = calls.entry(number).or_insert(Verdict::Always(action));
            if let Verdict::When(_) = verdict {
                *verdict = Verdict::Always(action);
            }
            return Ok(());
        }
        let verdict = calls
            .entry(number)
            .or_insert_with(|| Verdict::When(Vec::new()));
        if let Verdict::When(list) = verdict {
            // Each is several instructions: more would not fit into a filter in any case.
            self.conditional += conditions.len();
            limit("rules with conditions", self.conditional)?;
            list.extend(conditions.into_iter().map(|rule| (rule, action)));
        }
        Ok(())
    }
}

/// `SECCOMP_FILTER_FLAG_*`.
pub(super) fn flags(profile: &LinuxSeccomp) -> Result<u32> {
    let mut bits = 0;
    for flag in profile.flags().as_deref().unwrap_or_default() {
        bits |= match flag {
            LinuxSeccompFilterFlag::SeccompFilterFlagLog => libc::SECCOMP_FILTER_FLAG_LOG,
            LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => {
                libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW
            }
            // The filter is installed by a process of one thread.
            LinuxSeccompFilterFlag::SeccompFilterFlagTsync => 0,
            LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => {
                return Err(Error::Unimplemented(
                    "The seccomp profile has SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, which is for SCMP_ACT_NOTIFY"
                        .to_owned(),
                ));
            }
        };
    }
    u32::try_from(bits).map_err(|_| Error::Internal("A seccomp flag is too large".to_owned()))
}

/// The native architecture and those of the profile that this machine has.
fn abis(profile: &LinuxSeccomp) -> BTreeSet<Abi> {
    let listed = profile.architectures().as_deref().unwrap_or_default();
    let known = listed.iter().filter_map(|arch| match arch {
        Arch::ScmpArchNative | Arch::ScmpArchX86_64 => Some(Abi::X86_64),
        Arch::ScmpArchX86 => Some(Abi::X86),
        Arch::ScmpArchX32 => Some(Abi::X32),
        // No program of another machine runs here.
        _ => None,
    });
    known.chain([Abi::X86_64]).collect()
}

/// `SECCOMP_RET_*` with its data.
fn action(action: LinuxSeccompAction, data: Option<u32>) -> Result<u32> {
    let number = match data {
        None => EPERM,
        Some(number) if number <= MAX_ERRNO => number,
        Some(number) => {
            return Err(Error::Invalid(format!(
                "The seccomp profile has errnoRet {number}; {MAX_ERRNO} is the highest"
            )));
        }
    };
    Ok(match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => {
            libc::SECCOMP_RET_KILL_THREAD
        }
        LinuxSeccompAction::ScmpActKillProcess => libc::SECCOMP_RET_KILL_PROCESS,
        LinuxSeccompAction::ScmpActTrap => libc::SECCOMP_RET_TRAP,
        LinuxSeccompAction::ScmpActErrno => libc::SECCOMP_RET_ERRNO | number,
        LinuxSeccompAction::ScmpActTrace => libc::SECCOMP_RET_TRACE | number,
        LinuxSeccompAction::ScmpActLog => libc::SECCOMP_RET_LOG,
        LinuxSeccompAction::ScmpActAllow => libc::SECCOMP_RET_ALLOW,
        LinuxSeccompAction::ScmpActNotify => {
            return Err(Error::Unimplemented(
                "The seccomp profile has SCMP_ACT_NOTIFY, but nobody listens in the guest"
                    .to_owned(),
            ));
        }
    })
}

/// The rules that the conditions of one entry are.
fn conditions(arguments: &[LinuxSeccompArg], abi: Abi) -> Result<Vec<SeccompRule>> {
    let list = arguments
        .iter()
        .map(|argument| condition(argument, abi))
        .collect::<Result<Vec<_>>>()?;
    let different: BTreeSet<usize> = arguments.iter().map(LinuxSeccompArg::index).collect();
    let groups: Vec<Vec<SeccompCondition>> = if list.is_empty() {
        Vec::new()
    } else if different.len() == list.len() {
        vec![list]
    } else {
        list.into_iter().map(|one| vec![one]).collect()
    };
    let rules = groups.into_iter().map(SeccompRule::new);
    rules
        .collect::<Result<_, _>>()
        .map_err(|error| Error::Invalid(format!("The seccomp profile has a wrong rule: {error}")))
}

fn condition(argument: &LinuxSeccompArg, abi: Abi) -> Result<SeccompCondition> {
    let index = u8::try_from(argument.index())
        .ok()
        .filter(|index| *index < 6)
        .ok_or_else(|| {
            Error::Invalid(format!(
                "The seccomp profile has argument {}; a system call has 0 to 5",
                argument.index()
            ))
        })?;
    let (operator, value) = match argument.op() {
        LinuxSeccompOperator::ScmpCmpNe => (SeccompCmpOp::Ne, argument.value()),
        LinuxSeccompOperator::ScmpCmpLt => (SeccompCmpOp::Lt, argument.value()),
        LinuxSeccompOperator::ScmpCmpLe => (SeccompCmpOp::Le, argument.value()),
        LinuxSeccompOperator::ScmpCmpEq => (SeccompCmpOp::Eq, argument.value()),
        LinuxSeccompOperator::ScmpCmpGe => (SeccompCmpOp::Ge, argument.value()),
        LinuxSeccompOperator::ScmpCmpGt => (SeccompCmpOp::Gt, argument.value()),
        LinuxSeccompOperator::ScmpCmpMaskedEq => (
            SeccompCmpOp::MaskedEq(argument.value()),
            argument.value_two().unwrap_or(0),
        ),
    };
    // Arguments of 32-bit programs have no upper half.
    let length = match abi {
        Abi::X86_64 => SeccompCmpArgLen::Qword,
        Abi::X86 | Abi::X32 => SeccompCmpArgLen::Dword,
    };
    SeccompCondition::new(index, length, operator, value)
        .map_err(|error| Error::Invalid(format!("The seccomp profile has a wrong rule: {error}")))
}

fn limit(what: &str, count: usize) -> Result<()> {
    if count > MAX_LIST {
        return Err(Error::Invalid(format!(
            "The seccomp profile has more than {MAX_LIST} {what}"
        )));
    }
    Ok(())
}
