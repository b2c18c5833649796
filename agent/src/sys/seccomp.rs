//! Installing a seccomp filter.
#![allow(unsafe_code)] // seccomp(2) takes a pointer to a program.

use crate::seccomp::Filter;
use std::io;

/// Installs a filter for the calling process, which has one thread. Needs `no_new_privs` or
/// CAP_SYS_ADMIN in its user namespace.
pub fn install(filter: &Filter) -> io::Result<()> {
    let instructions: Vec<libc::sock_filter> = filter
        .instructions()
        .map(|one| libc::sock_filter {
            code: one.code,
            jt: one.jt,
            jf: one.jf,
            k: one.k,
        })
        .collect();
    let program = libc::sock_fprog {
        len: u16::try_from(instructions.len()).map_err(io::Error::other)?,
        filter: instructions.as_ptr().cast_mut(),
    };
    // SAFETY: the pointer is to a program of the length that it says; the kernel copies it.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            filter.flags(),
            &raw const program,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
