//! PID 1 of the VMM's own tests: a program without dependencies, built static by `tests/guest.sh`.
//!
//! It dials host port 1024 and says `ready`, then obeys a line at a time on guest port 5000, each
//! answered by a line. Port 5001 echoes, 5002 counts what it is sent and answers after the end of
//! it, 5003 sends as many bytes as it is asked for, 5004 answers how many bytes it was sent.
//!
//! Where it is not PID 1, such as in a container, it obeys its command line and ends.

mod disk;
mod files;

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::OpenOptionsExt;

const AF_VSOCK: i32 = 40;
const SOCK_STREAM: i32 = 1;
const CID_ANY: u32 = u32::MAX;
const CID_HOST: u32 = 2;
const SHUT_WR: i32 = 1;
const O_DIRECT: i32 = 0o40000;

#[repr(C)]
struct Address {
    family: u16,
    reserved: u16,
    port: u32,
    cid: u32,
    zero: [u8; 4],
}

unsafe extern "C" {
    fn socket(domain: i32, kind: i32, protocol: i32) -> i32;
    fn bind(fd: i32, address: *const Address, length: u32) -> i32;
    fn listen(fd: i32, backlog: i32) -> i32;
    fn accept(fd: i32, address: *mut Address, length: *mut u32) -> i32;
    fn connect(fd: i32, address: *const Address, length: u32) -> i32;
    fn shutdown(fd: i32, how: i32) -> i32;
    fn sendto(fd: i32, bytes: *const u8, length: usize, flags: i32, to: *const u8, size: u32) -> isize;
    fn setrlimit(resource: i32, limit: *const [u64; 2]) -> i32;
    fn ioctl(fd: i32, request: u64, argument: *mut u8) -> i32;
    fn reboot(command: i32) -> i32;
    fn mount(from: *const i8, to: *const i8, kind: *const i8, flags: u64, data: *const i8) -> i32;
}

fn address(cid: u32, port: u32) -> Address {
    Address {
        family: AF_VSOCK as u16,
        reserved: 0,
        port,
        cid,
        zero: [0; 4],
    }
}

fn dial(port: u32) -> std::io::Result<File> {
    // SAFETY: plain system calls on a structure of the right size; the descriptor is new.
    unsafe {
        let fd = socket(AF_VSOCK, SOCK_STREAM, 0);
        let file = File::from_raw_fd(fd);
        if connect(fd, &address(CID_HOST, port), 16) < 0 {
            return Err(std::io::Error::last_os_error());
        }
        Ok(file)
    }
}

fn serve(port: u32, handle: fn(File)) {
    // SAFETY: as above.
    let listener = unsafe {
        let fd = socket(AF_VSOCK, SOCK_STREAM, 0);
        assert_eq!(bind(fd, &address(CID_ANY, port), 16), 0);
        assert_eq!(listen(fd, 128), 0);
        fd
    };
    std::thread::spawn(move || {
        loop {
            // SAFETY: the peer's address is not wanted; the descriptor is new.
            let fd = unsafe { accept(listener, std::ptr::null_mut(), std::ptr::null_mut()) };
            if fd >= 0 {
                let stream = unsafe { File::from_raw_fd(fd) };
                std::thread::spawn(move || handle(stream));
            }
        }
    });
}

fn half_close(stream: &File) {
    // SAFETY: a plain system call.
    unsafe { shutdown(stream.as_raw_fd(), SHUT_WR) };
}

fn hash(bytes: &[u8], state: u64) -> u64 {
    bytes.iter().fold(state, |state, byte| {
        (state ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    })
}

fn echo(mut stream: File) {
    let mut bytes = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = stream.read(&mut bytes) {
        if stream.write_all(&bytes[..count]).is_err() {
            return;
        }
    }
}

fn count(mut stream: File) {
    let (mut bytes, mut total, mut state) = (vec![0; 64 * 1024], 0, 0xcbf2_9ce4_8422_2325);
    while let Ok(count @ 1..) = stream.read(&mut bytes) {
        total += count;
        state = hash(&bytes[..count], state);
    }
    let _ = writeln!(stream, "{total} {state:x}");
}

fn send(stream: File) {
    let mut line = String::new();
    let mut reader = BufReader::new(stream);
    let _ = reader.read_line(&mut line);
    let mut left: usize = line.trim().parse().unwrap_or(0);
    let bytes = vec![b'x'; 64 * 1024];
    while left > 0 {
        let part = left.min(bytes.len());
        if reader.get_mut().write_all(&bytes[..part]).is_err() {
            return;
        }
        left -= part;
    }
}

fn drain(mut stream: File) {
    let total = drained(&mut stream).unwrap_or(0);
    let _ = writeln!(stream, "{total}");
}

fn drained(stream: &mut impl Read) -> std::io::Result<usize> {
    let (mut bytes, mut total) = (vec![0; 256 * 1024], 0);
    loop {
        match stream.read(&mut bytes)? {
            0 => return Ok(total),
            count => total += count,
        }
    }
}

/// Sends over TCP for so many milliseconds.
fn pour(to: &str, milliseconds: u64) -> std::io::Result<String> {
    let mut stream = std::net::TcpStream::connect(to)?;
    let end = std::time::Instant::now() + std::time::Duration::from_millis(milliseconds);
    let bytes = vec![b'p'; 256 * 1024];
    while std::time::Instant::now() < end {
        stream.write_all(&bytes)?;
    }
    Ok("ok".to_owned())
}

/// Answers each byte over TCP by one.
fn respond(to: &str) -> std::io::Result<String> {
    let mut stream = std::net::TcpStream::connect(to)?;
    stream.set_nodelay(true)?;
    let mut byte = [0];
    while stream.read(&mut byte)? == 1 {
        stream.write_all(&byte)?;
    }
    Ok("ok".to_owned())
}

/// Sends small packets over UDP for so many milliseconds, and then answers how many.
fn pelt(to: &str, milliseconds: u64) -> std::io::Result<String> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(to)?;
    let end = std::time::Instant::now() + std::time::Duration::from_millis(milliseconds);
    let mut count = 0_u64;
    while std::time::Instant::now() < end {
        // Whether it arrives is what the other side counts.
        count += u64::from(socket.send(&[b'u'; 64]).is_ok());
    }
    Ok(count.to_string())
}

/// Connects over TCP, reads to the end and closes, again and again; answers how often and in how many
/// microseconds.
fn greet(to: &str, milliseconds: u64) -> std::io::Result<String> {
    let began = std::time::Instant::now();
    let mut count = 0_u64;
    while began.elapsed().as_millis() < u128::from(milliseconds) {
        let mut stream = std::net::TcpStream::connect(to)?;
        stream.read_to_end(&mut Vec::new())?;
        count += 1;
    }
    Ok(format!("{count} {}", began.elapsed().as_micros()))
}

/// The connections of a flood.
static HELD: std::sync::Mutex<Vec<File>> = std::sync::Mutex::new(Vec::new());

/// Opens connections to a port of the host until one is refused, fills each until it takes no more, and
/// keeps them. Answers how many there were and how many bytes they took.
fn flood(port: u32) -> std::io::Result<String> {
    const NOFILE: i32 = 7;
    const DONTWAIT: i32 = 0x40;
    // SAFETY: reads two numbers.
    unsafe { setrlimit(NOFILE, &[4096, 4096]) };
    let mut held = HELD.lock().unwrap();
    let bytes = vec![b'z'; 64 * 1024];
    let mut total = 0;
    while let Ok(stream) = dial(port) {
        let (fd, none) = (stream.as_raw_fd(), std::ptr::null());
        // SAFETY: the bytes are there.
        while let count @ 1.. = unsafe { sendto(fd, bytes.as_ptr(), bytes.len(), DONTWAIT, none, 0) } {
            total += count;
        }
        held.push(stream);
    }
    Ok(format!("{} {total}", held.len()))
}

/// Opens this many connections to a port of the host, one after the other, and says something on each.
fn knock(port: u32, count: u32) -> std::io::Result<String> {
    for _ in 0..count {
        dial(port)?.write_all(b"knock")?;
    }
    Ok("ok".to_owned())
}

/// Has the driver look at a slot that has none yet, as the agent does.
fn give_driver(serial: &str) -> Option<()> {
    let slot = fs::read_dir("/sys/bus/platform/devices").ok()?.flatten().find(|entry| {
        let id = fs::read_to_string(entry.path().join("firmware_node/uid"));
        id.is_ok_and(|id| id.trim_end() == serial)
    })?;
    fs::write("/sys/bus/platform/drivers/virtio-mmio/bind", slot.file_name().as_encoded_bytes()).ok()
}

/// The path of the disk with a serial, or what is a path already.
fn path(place: &str) -> std::io::Result<String> {
    if place.starts_with('/') {
        return Ok(place.to_owned());
    }
    let name = disk(place).ok_or(std::io::ErrorKind::NotFound)?;
    Ok(format!("/dev/{name}"))
}

/// Mounts a file system of a disk by its serial, or of a tag.
fn mount_at(kind: &str, from: &str, to: &str) -> std::io::Result<String> {
    fs::create_dir_all(to)?;
    let from = path(from).unwrap_or_else(|_| from.to_owned());
    let [from, to, kind] = [from.as_str(), to, kind].map(|text| CString::new(text).unwrap_or_default());
    // SAFETY: the strings end with a zero and outlive the call.
    match unsafe { mount(from.as_ptr(), to.as_ptr(), kind.as_ptr(), 0, std::ptr::null()) } {
        0 => Ok("ok".to_owned()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// How many bytes a disk has.
fn size(serial: &str) -> u64 {
    sectors(serial).unwrap_or(0) * 512
}

fn disk(serial: &str) -> Option<String> {
    find_disk(serial).or_else(|| {
        give_driver(serial)?;
        find_disk(serial)
    })
}

fn find_disk(serial: &str) -> Option<String> {
    fs::read_dir("/sys/block").ok()?.find_map(|entry| {
        let path = entry.ok()?.path();
        let found = fs::read_to_string(path.join("serial")).ok()?;
        (found.trim() == serial).then(|| path.file_name()?.to_str().map(str::to_owned))?
    })
}

fn sectors(serial: &str) -> Option<u64> {
    let name = disk(serial)?;
    let text = fs::read_to_string(format!("/sys/block/{name}/size")).ok()?;
    text.trim().parse().ok()
}

fn open(serial: &str, write: bool) -> std::io::Result<File> {
    let name = disk(serial).ok_or(std::io::ErrorKind::NotFound)?;
    let path = format!("/dev/{name}");
    let flags = if write { O_DIRECT } else { 0 };
    OpenOptions::new().read(true).write(write).custom_flags(flags).open(path)
}

fn digest(serial: &str) -> std::io::Result<String> {
    let mut file = open(serial, false)?;
    let (mut bytes, mut total, mut state) = (vec![0; 1 << 20], 0, 0xcbf2_9ce4_8422_2325);
    loop {
        let count = file.read(&mut bytes)?;
        if count == 0 {
            return Ok(format!("{total} {state:x}"));
        }
        total += count;
        state = hash(&bytes[..count], state);
    }
}

/// Fills a disk with a byte, past the page cache, and flushes it.
fn fill(serial: &str, byte: u8) -> std::io::Result<String> {
    let mut file = open(serial, true)?;
    let mut bytes = vec![byte; (1 << 20) + 4096];
    let start = bytes.as_ptr().align_offset(4096);
    let part = &mut bytes[start..start + (1 << 20)];
    let mut left = sectors(serial).unwrap_or(0) * 512;
    while left > 0 {
        let count = left.min(part.len() as u64) as usize;
        file.write_all(&part[..count])?;
        left -= count as u64;
    }
    file.sync_all()?;
    Ok("ok".to_owned())
}

/// Gives eth0 an address (network 255.255.255.0) and brings it up.
fn configure(last: u8) -> std::io::Result<String> {
    const SET_FLAGS: u64 = 0x8914;
    const SET_ADDRESS: u64 = 0x8916;
    const SET_MASK: u64 = 0x891c;
    // SAFETY: requests on a `struct ifreq` of 40 bytes.
    unsafe {
        let fd = socket(2, 2, 0);
        let call = |request: u64, content: &[u8]| {
            let mut ifreq = [0_u8; 40];
            ifreq[..4].copy_from_slice(b"eth0");
            ifreq[16..16 + content.len()].copy_from_slice(content);
            match ioctl(fd, request, ifreq.as_mut_ptr()) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        };
        call(SET_ADDRESS, &[2, 0, 0, 0, 10, 99, 0, last])?;
        call(SET_MASK, &[2, 0, 0, 0, 255, 255, 255, 0])?;
        call(SET_FLAGS, &[0x41, 0])?;
    }
    Ok("ok".to_owned())
}

/// Sends bytes over TCP, half-closes, and answers the hash of what comes back.
fn tcp(to: &str, count: usize) -> std::io::Result<String> {
    let mut stream = std::net::TcpStream::connect(to)?;
    let mut sender = stream.try_clone()?;
    let thread = std::thread::spawn(move || {
        let _ = sender.write_all(&vec![b'y'; count]);
        let _ = sender.shutdown(std::net::Shutdown::Write);
    });
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    let _ = thread.join();
    Ok(format!("{} {:x}", bytes.len(), hash(&bytes, 0xcbf2_9ce4_8422_2325)))
}

fn obey(line: &str) -> std::io::Result<String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words[..] {
        ["sectors", serial] => Ok(sectors(serial).map_or("none".to_owned(), |n| n.to_string())),
        ["slots"] => {
            let count = fs::read_dir("/sys/block")?
                .flatten()
                .filter(|entry| entry.file_name().to_string_lossy().starts_with("vd"))
                .count();
            Ok(count.to_string())
        }
        ["read-only", serial] => {
            let name = disk(serial).unwrap_or_default();
            let text = fs::read_to_string(format!("/sys/block/{name}/ro"))?;
            Ok(text.trim().to_owned())
        }
        ["digest", serial] => digest(serial),
        ["fill", serial, byte] => fill(serial, byte.parse().unwrap_or(0)),
        ["cpus"] => Ok(std::thread::available_parallelism()?.to_string()),
        ["memory"] => {
            let text = fs::read_to_string("/proc/meminfo")?;
            Ok(text.split_whitespace().nth(1).unwrap_or("0").to_owned())
        }
        ["free"] => {
            let text = fs::read_to_string("/proc/meminfo")?;
            let wanted = ["MemFree", "Slab", "SUnreclaim", "Percpu"];
            let lines = text.lines().filter(|line| wanted.iter().any(|name| line.starts_with(name)));
            let words = lines.flat_map(str::split_whitespace);
            Ok(words.collect::<Vec<_>>().join(" "))
        }
        // Large enough to be a mapping of its own, which goes when it is dropped.
        ["touch", mebibytes] => {
            let bytes = vec![1_u8; mebibytes.parse::<usize>().unwrap_or(0) << 20];
            Ok(bytes.iter().step_by(4096).map(|byte| usize::from(*byte)).sum::<usize>().to_string())
        }
        // How many devices an ACPI driver has, which since Linux 6.10 may be a platform driver.
        ["driver", name] => {
            let folders = ["acpi", "platform"].map(|bus| format!("/sys/bus/{bus}/drivers/{name}"));
            let entries = folders.iter().flat_map(fs::read_dir).flatten().flatten();
            let devices = entries.filter(|entry| entry.path().join("uevent").exists() && entry.path().is_symlink());
            Ok(devices.count().to_string())
        }
        ["interrupts"] => Ok(fs::read_to_string("/proc/interrupts")?.replace('\n', "|")),
        ["uptime"] => Ok(fs::read_to_string("/proc/uptime")?.trim().to_owned()),
        ["clocksource"] => {
            let path = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
            Ok(fs::read_to_string(path)?.trim().to_owned())
        }
        ["entropy"] => {
            let mut bytes = [0; 64];
            File::open("/dev/hwrng")?.read_exact(&mut bytes)?;
            Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
        }
        ["dmesg"] => {
            let mut text = String::new();
            let mut log = OpenOptions::new().read(true).custom_flags(0o4000).open("/dev/kmsg")?;
            let mut record = vec![0; 8192];
            while let Ok(count) = log.read(&mut record) {
                text.push_str(&String::from_utf8_lossy(&record[..count]).replace('\n', "|"));
            }
            Ok(text)
        }
        ["print", text] => {
            println!("{text}");
            Ok("ok".to_owned())
        }
        ["carrier"] => Ok(fs::read_to_string("/sys/class/net/eth0/carrier")?.trim().to_owned()),
        ["configure", last] => configure(last.parse().unwrap_or(0)),
        ["tcp", to, count, streams] => {
            let (to, count) = (to.to_owned(), count.parse().unwrap_or(0));
            let threads: Vec<_> = (0..streams.parse().unwrap_or(1))
                .map(|_| {
                    let to = to.clone();
                    std::thread::spawn(move || tcp(&to, count))
                })
                .collect();
            let answers = threads.into_iter().map(|thread| thread.join().unwrap());
            Ok(answers.collect::<Result<Vec<_>, _>>()?.join(", "))
        }
        ["pour", to, milliseconds] => pour(to, milliseconds.parse().unwrap_or(0)),
        ["pelt", to, milliseconds] => pelt(to, milliseconds.parse().unwrap_or(0)),
        ["greet", to, milliseconds] => greet(to, milliseconds.parse().unwrap_or(0)),
        ["respond", to] => respond(to),
        ["drain", to] => Ok(drained(&mut std::net::TcpStream::connect(to)?)?.to_string()),
        ["sequential", place] => disk::read(&path(place)?),
        ["write", serial] => disk::write(&path(serial)?, size(serial)),
        ["random", serial, depth, milliseconds] => {
            let depth = depth.parse().unwrap_or(0);
            disk::random(&path(serial)?, size(serial), depth, milliseconds.parse().unwrap_or(0), false)
        }
        ["fill-file", path, size] => disk::write(path, size.parse().unwrap_or(0)),
        ["random-in-file", path, way, depth, milliseconds] => {
            let (depth, size) = (depth.parse().unwrap_or(0), fs::metadata(path)?.len());
            disk::random(path, size, depth, milliseconds.parse().unwrap_or(0), way == "write")
        }
        ["many-files", directory, count] => files::many(directory, count.parse().unwrap_or(0)),
        ["mount", kind, from, to] => mount_at(kind, from, to),
        ["link", to, from] => std::os::unix::fs::symlink(to, from).map(|()| "ok".to_owned()),
        // How many receive and transmit queues the interface has.
        ["queues"] => {
            let names: Vec<_> = fs::read_dir("/sys/class/net/eth0/queues")?
                .flatten()
                .map(|entry| entry.file_name().to_string_lossy().into_owned())
                .collect();
            let count = |kind: &str| names.iter().filter(|name| name.starts_with(kind)).count();
            Ok(format!("{} {}", count("rx-"), count("tx-")))
        }
        ["dial", port, text] => {
            let mut stream = dial(port.parse().unwrap_or(0))?;
            stream.write_all(text.as_bytes())?;
            half_close(&stream);
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        }
        ["flood", port] => flood(port.parse().unwrap_or(0)),
        ["let-go"] => {
            HELD.lock().unwrap().clear();
            Ok("ok".to_owned())
        }
        ["knock", port, count] => knock(port.parse().unwrap_or(0), count.parse().unwrap_or(0)),
        ["off"] => power(0x4321_fedc),
        ["reboot"] => power(0x0123_4567),
        ["panic"] => {
            fs::write("/proc/sysrq-trigger", "c")?;
            Ok("still here".to_owned())
        }
        _ => Ok("what?".to_owned()),
    }
}

fn power(command: i32) -> std::io::Result<String> {
    // SAFETY: ends this guest.
    unsafe { reboot(command) };
    Err(std::io::Error::last_os_error())
}

fn commands(stream: File) {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    while let Ok(1..) = reader.read_line(&mut line) {
        let answer = obey(line.trim()).unwrap_or_else(|error| format!("error: {error}"));
        if writeln!(reader.get_mut(), "{answer}").is_err() {
            return;
        }
        line.clear();
    }
}

fn main() {
    if std::process::id() != 1 {
        let words: Vec<String> = std::env::args().skip(1).collect();
        match obey(&words.join(" ")) {
            Ok(answer) => println!("{answer}"),
            Err(error) => {
                eprintln!("error: {error}");
                std::process::exit(1);
            }
        }
        return;
    }
    for (kind, path) in [(c"devtmpfs", c"/dev"), (c"proc", c"/proc"), (c"sysfs", c"/sys")] {
        let _ = fs::create_dir_all(path.to_str().unwrap());
        // SAFETY: mounts with constant strings.
        unsafe {
            mount(kind.as_ptr(), path.as_ptr(), kind.as_ptr(), 0, std::ptr::null());
        }
    }
    serve(5000, commands);
    serve(5001, echo);
    serve(5002, count);
    serve(5003, send);
    serve(5004, drain);
    let uptime = fs::read_to_string("/proc/uptime").unwrap_or_default();
    match dial(1024) {
        Ok(mut stream) => {
            let _ = writeln!(stream, "ready {}", uptime.trim());
        }
        Err(error) => println!("nobody listens on port 1024: {error}"),
    }
    loop {
        std::thread::park();
    }
}
