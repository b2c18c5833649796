//! What a disk, or a file, does for a guest: past the guest's page cache, one block after the other, or anywhere with many
//! requests in flight.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

const O_DIRECT: i32 = 0o40000;
const LARGE: usize = 1 << 20;
const SMALL: usize = 4096;
const MAX_DEPTH: usize = 256;

// Numbers of system calls, from <asm/unistd_64.h>.
const IO_SETUP: i64 = 206;
const IO_GETEVENTS: i64 = 208;
const IO_SUBMIT: i64 = 209;

unsafe extern "C" {
    fn syscall(number: i64, ...) -> i64;
}

/// `struct iocb` of <linux/aio_abi.h>. The operation 0 reads (IOCB_CMD_PREAD), 1 writes (IOCB_CMD_PWRITE).
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Request {
    data: u64,
    key: u32,
    flags: u32,
    opcode: u16,
    priority: i16,
    fd: u32,
    buffer: u64,
    length: u64,
    offset: i64,
    rest: [u64; 2],
}

/// `struct io_event` of <linux/aio_abi.h>.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Event {
    data: u64,
    request: u64,
    result: [i64; 2],
}

/// Memory on a page boundary.
struct Pages {
    bytes: Vec<u8>,
    start: usize,
    length: usize,
}

impl Pages {
    fn new(length: usize) -> Self {
        let bytes = vec![0x5a; length + SMALL];
        let start = bytes.as_ptr().align_offset(SMALL);
        Self { bytes, start, length }
    }

    fn get(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.length]
    }
}

fn open(path: &str, write: bool) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(write).create(write).custom_flags(O_DIRECT).open(path)
}

fn check(result: i64) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Reads from the beginning to its end; answers bytes and microseconds.
pub fn read(path: &str) -> io::Result<String> {
    let mut file = open(path, false)?;
    let mut pages = Pages::new(LARGE);
    let (began, mut total) = (Instant::now(), 0);
    loop {
        match file.read(pages.get())? {
            0 => return Ok(format!("{total} {}", began.elapsed().as_micros())),
            count => total += count,
        }
    }
}

/// Writes so many bytes from the beginning and flushes them; answers bytes and microseconds.
pub fn write(path: &str, size: u64) -> io::Result<String> {
    let mut file = open(path, true)?;
    let mut pages = Pages::new(LARGE);
    let (began, mut total) = (Instant::now(), 0);
    while total < size {
        let count = (size - total).min(LARGE as u64);
        file.write_all(&pages.get()[..count as usize])?;
        total += count;
    }
    file.sync_all()?;
    Ok(format!("{total} {}", began.elapsed().as_micros()))
}

/// Reads or writes blocks of 4 KiB anywhere in so many bytes, `depth` at once, for so many milliseconds; answers
/// how many and the microseconds that they took.
pub fn random(path: &str, size: u64, depth: usize, milliseconds: u64, writes: bool) -> io::Result<String> {
    let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
    let blocks = size / SMALL as u64;
    if blocks == 0 || depth == 0 || depth > MAX_DEPTH {
        return Err(invalid());
    }
    let file = open(path, writes)?;
    let mut pages = Pages::new(depth * SMALL);
    let base = pages.get().as_mut_ptr() as u64;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % blocks * SMALL as u64) as i64
    };
    let mut requests: Vec<Request> = (0..depth as u64)
        .map(|index| Request {
            data: index,
            opcode: u16::from(writes),
            fd: file.as_raw_fd() as u32,
            buffer: base + index * SMALL as u64,
            length: SMALL as u64,
            ..Request::default()
        })
        .collect();
    let mut context = 0_u64;
    // SAFETY: the kernel writes one number.
    check(unsafe { syscall(IO_SETUP, depth as i64, &raw mut context) })?;
    let mut submit = |request: &mut Request| {
        request.offset = next();
        let mut list = [&raw mut *request];
        // SAFETY: the request lives in a vector that is not moved, its buffer in pages that outlive it.
        check(unsafe { syscall(IO_SUBMIT, context, 1_i64, list.as_mut_ptr()) }).map(drop)
    };
    let mut events = vec![Event::default(); depth];
    let began = Instant::now();
    let end = began + Duration::from_millis(milliseconds);
    for request in &mut requests {
        submit(request)?;
    }
    let (mut done, mut flying) = (0_u64, depth);
    while flying > 0 {
        let none = std::ptr::null_mut::<u8>();
        // SAFETY: there is room for that many events.
        let count = check(unsafe { syscall(IO_GETEVENTS, context, 1_i64, depth as i64, events.as_mut_ptr(), none) })?;
        let on = Instant::now() < end;
        for event in &events[..count] {
            if event.result[0] != SMALL as i64 {
                return Err(io::Error::other(format!("a block ended with {}", event.result[0])));
            }
            done += 1;
            match on {
                true => submit(&mut requests[event.data as usize])?,
                false => flying -= 1,
            }
        }
    }
    Ok(format!("{done} {}", began.elapsed().as_micros()))
}
