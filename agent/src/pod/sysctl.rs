//! sysctls by their names with dots.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The path under `/proc/sys` of a name as `net.ipv4.ip_forward`. A slash stands for a dot in a
/// part's own name (`net/ipv4/conf/eth0.1/forwarding` is `net.ipv4.conf.eth0/1.forwarding`), as in
/// sysctl(8). `None`: not a name.
pub fn path(name: &str) -> Option<PathBuf> {
    let allowed =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.' | b'/');
    if name.is_empty() || name.len() > 256 || !name.bytes().all(allowed) {
        return None;
    }
    let mut path = PathBuf::new();
    for part in name.split('.') {
        let part = part.replace('/', ".");
        if part.is_empty() || part.bytes().all(|byte| byte == b'.') {
            return None;
        }
        path.push(part);
    }
    Some(path)
}

/// Writes a value, unless it is that already.
pub(super) fn write(path: &Path, value: &str) -> io::Result<()> {
    if fs::read_to_string(path).is_ok_and(|now| now.trim_end() == value) {
        return Ok(());
    }
    // Not created: /proc/sys has no files but the kernel's.
    let mut file = fs::OpenOptions::new().write(true).open(path)?;
    io::Write::write_all(&mut file, value.as_bytes())
}
