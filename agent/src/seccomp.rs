//! seccomp: a profile of the OCI runtime specification becomes a filter of the kernel's.
//!
//! | part | owns |
//! |---|---|
//! | [`profile`] | what a profile means: rules by system call and architecture, as libseccomp and runc read it |
//! | [`program`] | the instructions: one section for each architecture, a search by number in it |
//! | [`table`] | numbers of system calls |
//!
//! The conditions on arguments are compiled by the `seccompiler` crate; what it has not (more than one
//! architecture or action in a filter) is in [`program`]. `docs/decisions/seccomp.md` says why.

mod profile;
mod program;
mod table;

use crate::{Error, Result};
use oci_spec::runtime::LinuxSeccomp;
use serde::{Deserialize, Serialize};

/// The most instructions that the kernel takes (`BPF_MAXINSNS`).
pub const MAX_INSTRUCTIONS: usize = 4096;

/// A filter, ready for the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filter {
    /// Classic BPF; see [`Instruction`].
    program: Vec<u64>,
    /// `SECCOMP_FILTER_FLAG_*`.
    flags: u32,
}

/// One instruction of classic BPF (`struct sock_filter`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    /// What to do.
    pub code: u16,
    /// How many instructions to skip if the comparison holds.
    pub jt: u8,
    /// How many instructions to skip if it does not.
    pub jf: u8,
    /// The operand.
    pub k: u32,
}

impl Filter {
    /// Its instructions.
    pub fn instructions(&self) -> impl Iterator<Item = Instruction> {
        self.program.iter().map(|word| Instruction {
            code: (word >> 48) as u16,
            jt: (word >> 40) as u8,
            jf: (word >> 32) as u8,
            k: *word as u32,
        })
    }

    /// `SECCOMP_FILTER_FLAG_*`.
    pub fn flags(&self) -> u32 {
        self.flags
    }
}

impl Instruction {
    fn word(self) -> u64 {
        u64::from(self.code) << 48
            | u64::from(self.jt) << 40
            | u64::from(self.jf) << 32
            | u64::from(self.k)
    }
}

/// Translates a profile. System calls of unknown names are left out, as runc does: a profile may be
/// written for other kernels too.
///
/// # Errors
/// [`Error::Unimplemented`] for what needs a program beside the container (`SCMP_ACT_NOTIFY`);
/// [`Error::Invalid`] for nonsense and for a profile that becomes too long.
pub fn compile(profile: &LinuxSeccomp) -> Result<Filter> {
    let rules = profile::read(profile)?;
    let program = program::build(&rules);
    if program.len() > MAX_INSTRUCTIONS {
        return Err(Error::Invalid(format!(
            "The seccomp profile becomes {} instructions; the kernel takes {MAX_INSTRUCTIONS}",
            program.len()
        )));
    }
    Ok(Filter {
        program: program.into_iter().map(Instruction::word).collect(),
        flags: profile::flags(profile)?,
    })
}

/// Reads a profile (JSON, `linux.seccomp` of a specification) and translates it.
///
/// # Errors
/// As [`compile`]; [`Error::Invalid`] for what is no profile.
pub fn translate(json: &[u8]) -> Result<Filter> {
    let profile = serde_json::from_slice(json)
        .map_err(|error| Error::Invalid(format!("The seccomp profile is not valid: {error}")))?;
    compile(&profile)
}

#[cfg(test)]
mod tests;
