//! What the kernel answers to this process: names, keyring, sysctls, calls that a filter or a
//! missing capability may forbid.

use crate::process::squeeze;
use crate::{Facts, error};
use std::fs;
use std::io;

/// One of each kind: of the pod's namespaces, of the kernel as a whole, and what is usually hidden.
const SYSCTLS: [&str; 11] = [
    "kernel/hostname",
    "kernel/domainname",
    "kernel/shm_rmid_forced",
    "kernel/msgmax",
    "kernel/core_pattern",
    "fs/mqueue/msg_max",
    "net/ipv4/ip_forward",
    "net/ipv4/ping_group_range",
    "net/ipv4/ip_unprivileged_port_start",
    "vm/overcommit_memory",
    "user/max_user_namespaces",
];

pub(crate) fn look(facts: &mut Facts) {
    let names = rustix::system::uname();
    facts.add("uts.nodename", names.nodename().to_string_lossy());
    facts.add("uts.domainname", names.domainname().to_string_lossy());
    for name in SYSCTLS {
        let text = fs::read_to_string(format!("/proc/sys/{name}"));
        facts.result(
            format_args!("sysctl.{name}"),
            text.map(|text| squeeze(&text)),
        );
    }
    keyring(facts);
    calls(facts);
    devices(facts);
}

/// The session keyring's description.
fn keyring(facts: &mut Facts) {
    const DESCRIBE: libc::c_int = 6;
    const SESSION: libc::c_int = -3;
    let mut buffer = [0u8; 256];
    // SAFETY: the kernel writes at most the given number of bytes.
    let length = unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            DESCRIBE,
            SESSION,
            buffer.as_mut_ptr(),
            buffer.len(),
        )
    };
    if length < 0 {
        return facts.add("keyring.session", error(&io::Error::last_os_error()));
    }
    let text = String::from_utf8_lossy(&buffer);
    facts.add(
        "keyring.session",
        text.split('\0').next().unwrap_or_default(),
    );
}

/// What is tried in a child each, so that one does not change what the next finds. None of them
/// could succeed in changing the machine: where privileges suffice an argument is wrong.
fn calls(facts: &mut Facts) {
    let text = |text: &'static std::ffi::CStr| text.as_ptr().expose_provenance() as libc::c_long;
    let (tmp, unknown, empty) = (text(c"/tmp"), text(c"no-such-file-system"), text(c""));
    let (kind, name) = (text(c"user"), text(c"probe"));
    let [user, mount, net] = [libc::CLONE_NEWUSER, libc::CLONE_NEWNS, libc::CLONE_NEWNET];
    let (inet, raw, icmp) = (libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP);
    let (vsock, stream) = (libc::AF_VSOCK, libc::SOCK_STREAM);
    let calls: [(&str, libc::c_long, [libc::c_long; 5]); 19] = [
        ("unshare user", libc::SYS_unshare, [user.into(), 0, 0, 0, 0]),
        (
            "unshare mount",
            libc::SYS_unshare,
            [mount.into(), 0, 0, 0, 0],
        ),
        ("unshare net", libc::SYS_unshare, [net.into(), 0, 0, 0, 0]),
        ("mount", libc::SYS_mount, [unknown, tmp, unknown, 0, 0]),
        ("chroot", libc::SYS_chroot, [tmp, 0, 0, 0, 0]),
        ("sethostname", libc::SYS_sethostname, [empty, -1, 0, 0, 0]),
        ("ptrace", libc::SYS_ptrace, [0; 5]),
        ("personality", libc::SYS_personality, [0x8000, 0, 0, 0, 0]),
        ("keyctl", libc::SYS_keyctl, [0, -3, 0, 0, 0]),
        ("add_key", libc::SYS_add_key, [kind, name, name, 1, -2]),
        ("bpf", libc::SYS_bpf, [0; 5]),
        (
            "perf_event_open",
            libc::SYS_perf_event_open,
            [0, 0, -1, -1, 0],
        ),
        ("clone3", libc::SYS_clone3, [0; 5]),
        ("io_uring_setup", libc::SYS_io_uring_setup, [0; 5]),
        ("userfaultfd", libc::SYS_userfaultfd, [0; 5]),
        (
            "raw socket",
            libc::SYS_socket,
            [inet.into(), raw.into(), icmp.into(), 0, 0],
        ),
        (
            "vsock socket",
            libc::SYS_socket,
            [vsock.into(), stream.into(), 0, 0, 0],
        ),
        ("setns", libc::SYS_setns, [-1, 0, 0, 0, 0]),
        ("no such call", 10_000, [0; 5]),
    ];
    for (name, number, args) in calls {
        facts.result(format_args!("call.{name}"), in_child(number, args));
    }
}

/// Makes a call in a child: its error number comes back as the exit code.
fn in_child(number: libc::c_long, [a, b, c, d, e]: [libc::c_long; 5]) -> io::Result<String> {
    // SAFETY: this process has one thread.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            // SAFETY: numbers, null pointers that the kernel checks, and static C strings.
            let code = match unsafe { libc::syscall(number, a, b, c, d, e) } {
                0.. => 0,
                _ => io::Error::last_os_error().raw_os_error().unwrap_or(255),
            };
            // SAFETY: ends the child.
            unsafe { libc::_exit(code) }
        }
        child => {
            let mut status = 0;
            // SAFETY: the kernel writes an int.
            if unsafe { libc::waitpid(child, &raw mut status, 0) } < 0 {
                return Err(io::Error::last_os_error());
            }
            if libc::WIFSIGNALED(status) {
                return Ok(format!("killed by signal {}", libc::WTERMSIG(status)));
            }
            match libc::WEXITSTATUS(status) {
                0 => Ok("done".to_owned()),
                code => Err(io::Error::from_raw_os_error(code)),
            }
        }
    }
}

/// Which devices may be made and opened: what the device controller of the cgroup says.
fn devices(facts: &mut Facts) {
    const TRIED: [(&str, libc::mode_t, u32, u32); 6] = [
        ("null", libc::S_IFCHR, 1, 3),
        ("mem", libc::S_IFCHR, 1, 1),
        ("kmsg", libc::S_IFCHR, 1, 11),
        ("tun", libc::S_IFCHR, 10, 200),
        ("loop0", libc::S_IFBLK, 7, 0),
        ("fuse", libc::S_IFCHR, 10, 229),
    ];
    for (name, kind, major, minor) in TRIED {
        let path = format!("/tmp/probe-{name}");
        let Ok(c_path) = std::ffi::CString::new(path.as_str()) else {
            continue;
        };
        // SAFETY: a C string and plain numbers.
        let made =
            unsafe { libc::mknod(c_path.as_ptr(), kind | 0o666, libc::makedev(major, minor)) };
        facts.number(format_args!("device.{name}.mknod"), made.into());
        if made == 0 {
            // SAFETY: a C string and plain numbers.
            let opened = unsafe {
                libc::open(
                    c_path.as_ptr(),
                    libc::O_RDWR | libc::O_NONBLOCK | libc::O_CLOEXEC,
                )
            };
            facts.number(format_args!("device.{name}.open"), opened.min(0).into());
            if opened >= 0 {
                // SAFETY: nobody else has this descriptor.
                unsafe { libc::close(opened) };
            }
            // It may be on a mount that lasts.
            let _ = fs::remove_file(&path);
        }
    }
}
