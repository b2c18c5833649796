//! BPF programs that decide about the devices of a cgroup (bpf(2), linux/bpf.h).
#![allow(unsafe_code)] // bpf(2) takes a union.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;
/// Programs of cgroups above and below count too.
const ALLOW_MULTI: u32 = 2;

/// One instruction (`struct bpf_insn`).
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    /// What to do.
    pub code: u8,
    /// Destination in the lower four bits, source in the upper ones.
    pub registers: u8,
    /// Of a jump or a memory access.
    pub offset: i16,
    /// The constant.
    pub immediate: i32,
}

/// The part of `union bpf_attr` that loading uses.
#[repr(C)]
#[derive(Default)]
struct Load {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

/// The part of `union bpf_attr` that attaching uses.
#[repr(C)]
struct Attach {
    target_fd: RawFd,
    attach_bpf_fd: RawFd,
    attach_type: u32,
    attach_flags: u32,
}

/// Makes a program decide about the devices that the processes of a cgroup make and open. It stays
/// as long as the cgroup.
pub fn attach_device_program(cgroup: impl AsFd, program: &[Instruction]) -> io::Result<()> {
    let mut load = Load {
        prog_type: PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: u32::try_from(program.len()).map_err(io::Error::other)?,
        insns: program.as_ptr().expose_provenance() as u64,
        license: c"Apache-2.0".as_ptr().expose_provenance() as u64,
        expected_attach_type: ATTACH_CGROUP_DEVICE,
        ..Load::default()
    };
    load.prog_name[..7].copy_from_slice(b"devices");
    // SAFETY: the struct is of the size that is passed along; its pointers are to as many
    // instructions as it says and to a C string, and outlive the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, PROG_LOAD, &raw const load, size_of::<Load>()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: bpf has just made this descriptor, nobody else has it.
    let program = unsafe { OwnedFd::from_raw_fd(fd) };
    let attach = Attach {
        target_fd: cgroup.as_fd().as_raw_fd(),
        attach_bpf_fd: program.as_raw_fd(),
        attach_type: ATTACH_CGROUP_DEVICE,
        attach_flags: ALLOW_MULTI,
    };
    // SAFETY: the struct is of the size that is passed along and has no pointers.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            PROG_ATTACH,
            &raw const attach,
            size_of::<Attach>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
