//! Watches a directory as programs watch a ConfigMap (inotify(7)): prints each event until `..data` is replaced,
//! then what the file `key` says. A file that it makes tells others when it watches: `watch DIRECTORY FILE`.
//! A static program, for it runs in whatever image.

use std::ffi::{CString, c_char, c_int};
use std::fs::File;
use std::io::Read;
use std::os::fd::FromRawFd;

const IN_MOVED_TO: u32 = 0x80;
const IN_CREATE: u32 = 0x100;

unsafe extern "C" {
    fn inotify_init() -> c_int;
    fn inotify_add_watch(fd: c_int, path: *const c_char, mask: u32) -> c_int;
}

fn main() -> std::io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(directory), Some(ready)) = (arguments.next(), arguments.next()) else {
        panic!("watch DIRECTORY FILE");
    };
    let path = CString::new(directory.clone())?;
    // SAFETY: the path ends with a zero and outlives the call; the new descriptor is nobody else's.
    let mut events = unsafe {
        let fd = inotify_init();
        assert!(fd >= 0 && inotify_add_watch(fd, path.as_ptr(), IN_MOVED_TO | IN_CREATE) >= 0);
        File::from_raw_fd(fd)
    };
    File::create(ready)?;
    let mut buffer = [0; 4096];
    loop {
        let count = events.read(&mut buffer)?;
        let mut rest = &buffer[..count];
        // struct inotify_event: descriptor, mask, cookie, length of the name, name.
        while let Some((head, tail)) = rest.split_at_checked(16) {
            let number = |at: usize| u32::from_ne_bytes(head[at..at + 4].try_into().unwrap());
            let (name, tail) = tail.split_at(number(12) as usize);
            let name = String::from_utf8_lossy(name);
            let name = name.trim_end_matches('\0');
            let replaced = number(4) & IN_MOVED_TO != 0;
            println!("{} {name}", if replaced { "moved" } else { "created" });
            if replaced && name == "..data" {
                print!("{}", std::fs::read_to_string(format!("{directory}/key"))?);
                return Ok(());
            }
            rest = tail;
        }
    }
}
