//! What a file system can do, one line each: `posix all DIRECTORY` prints `NAME: ok`, or what went wrong instead. A
//! static program, for it runs in whatever image, and on the node beside it.
//!
//! `posix hold KIND FILE` takes a lock (`flock`, `posix`) on a file, says so, and keeps it until its standard input
//! ends; `posix try KIND FILE` says whether it gets one.

use std::ffi::{CString, c_char, c_int, c_long, c_void};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Error, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, SystemTime};

// <fcntl.h>, <linux/fs.h>, <linux/falloc.h>, <sys/mman.h> of Linux on x86-64.
const AT_FDCWD: c_int = -100;
const AT_SYMLINK_FOLLOW: c_int = 0x400;
const O_DIRECT: i32 = 0o40_000;
const O_TMPFILE: i32 = 0o20_200_000;
const O_NOFOLLOW: i32 = 0o400_000;
const O_DIRECTORY: i32 = 0o200_000;
const RENAME_NOREPLACE: u32 = 1;
const RENAME_EXCHANGE: u32 = 2;
const KEEP_SIZE: c_int = 1;
const PUNCH_HOLE: c_int = 2;
const SEEK_DATA: c_int = 3;
const SEEK_HOLE: c_int = 4;
const PAGE: usize = 4096;
/// More than one answer to getdents64(2) holds.
const ENTRIES: usize = 200;
const EACCES: i32 = 13;
const EEXIST: i32 = 17;
const ENOTDIR: i32 = 20;
const EISDIR: i32 = 21;
const EINVAL: i32 = 22;
const ENAMETOOLONG: i32 = 36;
const ENOTEMPTY: i32 = 39;
const ELOOP: i32 = 40;
const ENODATA: i32 = 61;

unsafe extern "C" {
    fn setxattr(path: *const c_char, name: *const c_char, value: *const c_void, size: usize, flags: c_int) -> c_int;
    fn getxattr(path: *const c_char, name: *const c_char, value: *mut c_void, size: usize) -> isize;
    fn listxattr(path: *const c_char, list: *mut c_char, size: usize) -> isize;
    fn removexattr(path: *const c_char, name: *const c_char) -> c_int;
    fn mmap(address: *mut c_void, length: usize, protection: c_int, flags: c_int, fd: c_int, offset: i64) -> *mut c_void;
    fn msync(address: *mut c_void, length: usize, flags: c_int) -> c_int;
    fn munmap(address: *mut c_void, length: usize) -> c_int;
    fn lseek(fd: c_int, offset: i64, whence: c_int) -> i64;
    fn fallocate(fd: c_int, mode: c_int, offset: i64, length: i64) -> c_int;
    fn syscall(number: c_long, ...) -> c_long;
    fn linkat(from: c_int, old: *const c_char, to: c_int, new: *const c_char, flags: c_int) -> c_int;
    fn mkfifo(path: *const c_char, mode: u32) -> c_int;
    fn flock(fd: c_int, operation: c_int) -> c_int;
    fn fcntl(fd: c_int, command: c_int, ...) -> c_int;
    fn copy_file_range(from: c_int, at: *mut i64, to: c_int, to_at: *mut i64, length: usize, flags: u32) -> isize;
    fn inotify_init() -> c_int;
    fn inotify_add_watch(fd: c_int, path: *const c_char, mask: u32) -> c_int;
    fn umask(mask: u32) -> u32;
    fn syncfs(fd: c_int) -> c_int;
    fn setfsuid(user: u32) -> c_int;
    fn setfsgid(group: u32) -> c_int;
}

fn text(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).expect("a path has no zero byte")
}

/// What a system call has answered.
fn done(result: i64) -> io::Result<i64> {
    if result < 0 { Err(Error::last_os_error()) } else { Ok(result) }
}

fn must(holds: bool, what: &str) -> io::Result<()> {
    if holds { Ok(()) } else { Err(Error::other(what.to_owned())) }
}

fn fails<T>(result: io::Result<T>, with: i32) -> io::Result<()> {
    match result {
        Ok(_) => Err(Error::other(format!("no error instead of {with}"))),
        Err(error) if error.raw_os_error() == Some(with) => Ok(()),
        Err(error) => Err(error),
    }
}

fn file(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)
}

fn get_attribute(path: &Path, name: &str) -> io::Result<Vec<u8>> {
    let (path, name) = (text(path), CString::new(name)?);
    let mut value = vec![0; 256];
    // SAFETY: the strings end with a zero, and there is room for so many bytes.
    let got = done(unsafe { getxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) } as i64)?;
    value.truncate(got as usize);
    Ok(value)
}

fn set_attribute(path: &Path, name: &str, value: &[u8]) -> io::Result<()> {
    let (path, name) = (text(path), CString::new(name)?);
    // SAFETY: as above; the value is only read.
    let set = unsafe { setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    done(set.into()).map(drop)
}

fn attributes(at: &Path) -> io::Result<()> {
    file(at)?;
    set_attribute(at, "user.colour", b"blue\0green")?;
    must(get_attribute(at, "user.colour")? == b"blue\0green", "another value")?;
    let (path, name) = (text(at), CString::new("user.colour")?);
    let mut list = vec![0; 256];
    // SAFETY: as above.
    let length = done(unsafe { listxattr(path.as_ptr(), list.as_mut_ptr().cast(), list.len()) } as i64)?;
    must(list[..length as usize].starts_with(b"user.colour\0"), "it is not in the list")?;
    // SAFETY: as above.
    done(unsafe { removexattr(path.as_ptr(), name.as_ptr()) }.into())?;
    fails(get_attribute(at, "user.colour"), ENODATA)
}

/// Version 2 of `struct vfs_cap_data` with CAP_NET_BIND_SERVICE.
fn file_capabilities(at: &Path) -> io::Result<()> {
    file(at)?;
    let mut data = [0_u8; 20];
    data[..8].copy_from_slice(&[1, 0, 0, 2, 0, 4, 0, 0]);
    set_attribute(at, "security.capability", &data)?;
    must(get_attribute(at, "security.capability")? == data, "another value")?;
    // Whoever writes takes them away.
    OpenOptions::new().append(true).open(at)?.write_all(b"x")?;
    fails(get_attribute(at, "security.capability"), ENODATA)
}

/// `struct posix_acl_xattr_header` and entries: owner, a user, group, mask, others.
fn access_list(at: &Path) -> io::Result<()> {
    file(at)?;
    let mut value = vec![2, 0, 0, 0];
    for (tag, bits, id) in [(1_u16, 6_u16, u32::MAX), (2, 6, 1234), (4, 4, u32::MAX), (16, 6, u32::MAX), (32, 0, u32::MAX)] {
        value.extend(tag.to_le_bytes());
        value.extend(bits.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    set_attribute(at, "system.posix_acl_access", &value)?;
    must(get_attribute(at, "system.posix_acl_access")? == value, "another list")?;
    must(fs::metadata(at)?.mode() & 0o777 == 0o660, "the mask is not the group's mode")?;
    must(is_writable_by(1234, at)?, "a user of the list may not write")?;
    must(!is_writable_by(4321, at)?, "a user who is not on the list may write")?;
    // What is made in a directory with a default list gets that, and no umask.
    let directory = at.with_extension("d");
    fs::create_dir(&directory)?;
    set_attribute(&directory, "system.posix_acl_default", &value)?;
    // SAFETY: changes a number.
    let before = unsafe { umask(0o077) };
    let made = file(&directory.join("made"));
    // SAFETY: as above.
    unsafe { umask(before) };
    made?;
    let mode = fs::metadata(directory.join("made"))?.mode() & 0o777;
    must(mode == 0o660, &format!("a default list gives mode {mode:o}"))?;
    fs::remove_dir_all(directory)
}

/// Whether a user without groups may write. Only the last directory is asked.
fn is_writable_by(user: u32, at: &Path) -> io::Result<bool> {
    let (Some(directory), Some(name)) = (at.parent(), at.file_name()) else {
        return Err(Error::other("no path of a file"));
    };
    std::env::set_current_dir(directory)?;
    let become_user = |user| {
        // SAFETY: changes two numbers of this thread.
        unsafe { (setfsgid(user), setfsuid(user)) }
    };
    become_user(user);
    let opened = OpenOptions::new().write(true).open(name);
    become_user(0);
    std::env::set_current_dir("/")?;
    match opened {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(EACCES) => Ok(false),
        Err(error) => Err(error),
    }
}

fn shared_mapping(at: &Path) -> io::Result<()> {
    let file = file(at)?;
    file.set_len(2 * PAGE as u64)?;
    let map = || {
        // SAFETY: a new mapping of the whole file, readable and writable, shared.
        let memory = unsafe { mmap(std::ptr::null_mut(), 2 * PAGE, 3, 1, file.as_raw_fd(), 0) };
        if memory as isize == -1 { Err(Error::last_os_error()) } else { Ok(memory.cast::<u8>()) }
    };
    let (one, other) = (map()?, map()?);
    // SAFETY: both mappings have so many bytes; nobody else has them.
    unsafe {
        one.add(PAGE).write_volatile(7);
        must(other.add(PAGE).read_volatile() == 7, "the other mapping has another byte")?;
        done(msync(one.cast(), 2 * PAGE, 4).into())?;
        done(munmap(one.cast(), 2 * PAGE).into())?;
        done(munmap(other.cast(), 2 * PAGE).into())?;
    }
    let mut byte = [0];
    file.read_exact_at(&mut byte, PAGE as u64)?;
    must(byte == [7], "the file has another byte")?;
    must(fs::read(at)?.len() == 2 * PAGE, "another length")
}

fn direct(at: &Path) -> io::Result<()> {
    file(at)?;
    let file = OpenOptions::new().read(true).write(true).custom_flags(O_DIRECT).open(at)?;
    let mut bytes = vec![0x3c_u8; 66 * PAGE];
    let start = bytes.as_ptr().align_offset(PAGE);
    // One block, several, and more than a message of a page or two.
    for (blocks, byte) in [(1, 1), (3, 2), (64, 3)] {
        let part = &mut bytes[start..start + blocks * PAGE];
        part.fill(byte);
        file.write_all_at(part, PAGE as u64)?;
        part.fill(0);
        file.read_exact_at(part, PAGE as u64)?;
        must(part.iter().all(|read| *read == byte), "another content")?;
    }
    Ok(())
}

fn holes(at: &Path) -> io::Result<()> {
    let file = file(at)?;
    file.set_len(1 << 30)?;
    file.write_all_at(b"data", 512 << 20)?;
    file.sync_all()?;
    must(file.metadata()?.blocks() < 1024, "it is not sparse")?;
    let seek = |from: i64, whence| {
        // SAFETY: a plain system call.
        done(unsafe { lseek(file.as_raw_fd(), from, whence) })
    };
    must(seek(0, SEEK_DATA)? == 512 << 20, "the data is elsewhere")?;
    must(seek(512 << 20, SEEK_HOLE)? == (512 << 20) + PAGE as i64, "the hole is elsewhere")
}

fn allocation(at: &Path) -> io::Result<()> {
    let file = file(at)?;
    let allocate = |mode, offset, length| {
        // SAFETY: a plain system call.
        done(unsafe { fallocate(file.as_raw_fd(), mode, offset, length) }.into())
    };
    allocate(0, 0, 1 << 20)?;
    must(file.metadata()?.len() == 1 << 20, "it has not grown")?;
    allocate(KEEP_SIZE, 1 << 20, 1 << 20)?;
    must(file.metadata()?.len() == 1 << 20, "it has grown")?;
    file.write_all_at(&[9; 2 * PAGE], 0)?;
    allocate(KEEP_SIZE | PUNCH_HOLE, 0, PAGE as i64)?;
    let mut bytes = [1; 2 * PAGE];
    file.read_exact_at(&mut bytes, 0)?;
    must(bytes[..PAGE] == [0; PAGE] && bytes[PAGE..] == [9; PAGE], "the hole is elsewhere")
}

fn rename2(from: &Path, to: &Path, flags: u32) -> io::Result<()> {
    let (from, to) = (text(from), text(to));
    // SAFETY: renameat2(2) with strings that end with a zero.
    done(unsafe { syscall(316, AT_FDCWD, from.as_ptr(), AT_FDCWD, to.as_ptr(), flags) }).map(drop)
}

fn renames(at: &Path) -> io::Result<()> {
    let other = at.with_extension("other");
    fs::write(at, "one")?;
    fs::write(&other, "two")?;
    fails(rename2(at, &other, RENAME_NOREPLACE), EEXIST)?;
    rename2(at, &other, RENAME_EXCHANGE)?;
    must(fs::read_to_string(at)? == "two", "nothing was exchanged")?;
    let mut open = File::open(&other)?;
    fs::rename(at, &other)?;
    let mut still = String::new();
    open.read_to_string(&mut still)?;
    must(still == "one" && fs::read_to_string(&other)? == "two", "what was open has changed")?;
    let directory = at.with_extension("d");
    fs::create_dir_all(directory.join("inner"))?;
    fails(fs::rename(&directory, directory.join("inner/itself")), EINVAL)?;
    fs::remove_dir_all(directory)
}

fn nameless(at: &Path) -> io::Result<()> {
    let directory = at.parent().expect("a directory");
    let mut file = OpenOptions::new().write(true).custom_flags(O_TMPFILE).open(directory)?;
    file.write_all(b"named later")?;
    let (from, to) = (CString::new(format!("/proc/self/fd/{}", file.as_raw_fd()))?, text(at));
    // SAFETY: the strings end with a zero.
    done(unsafe { linkat(AT_FDCWD, from.as_ptr(), AT_FDCWD, to.as_ptr(), AT_SYMLINK_FOLLOW) }.into())?;
    must(fs::read_to_string(at)? == "named later", "another content")
}

fn times(at: &Path) -> io::Result<()> {
    let file = file(at)?;
    let (accessed, modified) = (Duration::new(1_000_000_001, 123_456_789), Duration::new(4_000_000_000, 987_654_321));
    let times = fs::FileTimes::new()
        .set_accessed(SystemTime::UNIX_EPOCH + accessed)
        .set_modified(SystemTime::UNIX_EPOCH + modified);
    file.set_times(times)?;
    let got = fs::metadata(at)?;
    must((got.atime(), got.atime_nsec()) == (1_000_000_001, 123_456_789), "another time of access")?;
    must((got.mtime(), got.mtime_nsec()) == (4_000_000_000, 987_654_321), "another time of change")
}

fn links(at: &Path) -> io::Result<()> {
    let (hard, soft) = (at.with_extension("hard"), at.with_extension("soft"));
    fs::write(at, "content")?;
    fs::hard_link(at, &hard)?;
    let [one, two] = [fs::metadata(at)?, fs::metadata(&hard)?];
    must(one.ino() == two.ino() && one.nlink() == 2, "they are two files")?;
    symlink("links", &soft)?;
    must(fs::read_link(&soft)? == Path::new("links"), "another target")?;
    fails(OpenOptions::new().read(true).custom_flags(O_NOFOLLOW).open(&soft), ELOOP)?;
    fs::remove_file(at)?;
    must(fs::metadata(&hard)?.nlink() == 1, "the count stays")?;
    let mut open = File::open(&hard)?;
    fs::remove_file(&hard)?;
    let mut content = String::new();
    open.read_to_string(&mut content)?;
    must(content == "content" && open.metadata()?.nlink() == 0, "what is open is lost")
}

fn refusals(at: &Path) -> io::Result<()> {
    let directory = at.with_extension("d");
    fs::create_dir(&directory)?;
    fs::write(directory.join("file"), "")?;
    let create = |path: &Path| OpenOptions::new().write(true).create_new(true).open(path);
    fails(create(&directory.join("file")), EEXIST)?;
    fails(fs::remove_dir(&directory), ENOTEMPTY)?;
    fails(OpenOptions::new().write(true).open(&directory), EISDIR)?;
    fails(fs::remove_file(&directory), EISDIR)?;
    fails(fs::metadata(directory.join("file/below")), ENOTDIR)?;
    fails(OpenOptions::new().read(true).custom_flags(O_DIRECTORY).open(directory.join("file")), ENOTDIR)?;
    create(&directory.join("n".repeat(255)))?;
    fails(create(&directory.join("n".repeat(256))), ENAMETOOLONG)?;
    symlink("loop", directory.join("loop"))?;
    fails(fs::metadata(directory.join("loop")), ELOOP)?;
    fs::remove_dir_all(directory)
}

fn owners(at: &Path) -> io::Result<()> {
    file(at)?;
    fs::set_permissions(at, fs::Permissions::from_mode(0o4751))?;
    must(fs::metadata(at)?.mode() & 0o7777 == 0o4751, "another mode")?;
    std::os::unix::fs::chown(at, Some(1234), Some(4321))?;
    let got = fs::metadata(at)?;
    must((got.uid(), got.gid()) == (1234, 4321), "another owner")?;
    must(got.mode() & 0o7777 == 0o751, "set-user-id outlives a new owner")?;
    // What is made below a directory with set-group-id has its group.
    let directory = at.with_extension("d");
    fs::create_dir(&directory)?;
    std::os::unix::fs::chown(&directory, None, Some(777))?;
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o2775))?;
    fs::create_dir(directory.join("below"))?;
    let got = fs::metadata(directory.join("below"))?;
    must(got.gid() == 777 && got.mode() & 0o2000 != 0, "the group is not inherited")?;
    fs::remove_dir_all(directory)
}

fn appends(at: &Path) -> io::Result<()> {
    file(at)?;
    let writers: Vec<_> = (0..4_u8)
        .map(|writer| {
            let mut file = OpenOptions::new().append(true).open(at).expect("it can be opened");
            std::thread::spawn(move || (0..50).try_for_each(|_| file.write_all(&[writer; 100])))
        })
        .collect();
    for writer in writers {
        writer.join().map_err(|_| Error::other("a thread has failed"))??;
    }
    let content = fs::read(at)?;
    let whole = content.chunks(100).all(|chunk| chunk.iter().all(|byte| *byte == chunk[0]));
    must(content.len() == 20_000 && whole, "lines are lost or torn")
}

fn copies(at: &Path) -> io::Result<()> {
    let other = at.with_extension("other");
    let content: Vec<u8> = (0..300_000_u32).map(|number| number as u8).collect();
    fs::write(at, &content)?;
    let (from, to) = (File::open(at)?, file(&other)?);
    let mut left = content.len();
    while left > 0 {
        let none = std::ptr::null_mut();
        // SAFETY: both are open; the offsets are the files' own.
        let call = unsafe { copy_file_range(from.as_raw_fd(), none, to.as_raw_fd(), std::ptr::null_mut(), left, 0) };
        match done(call as i64)? {
            0 => break,
            count => left -= count as usize,
        }
    }
    must(fs::read(&other)? == content, "another content")
}

fn many_entries(at: &Path) -> io::Result<()> {
    let directory = at.with_extension("d");
    fs::create_dir(&directory)?;
    for number in 0..ENTRIES {
        fs::write(directory.join(format!("entry-{number}")), "")?;
    }
    // Removed while they are listed: each is seen once.
    let mut seen = 0;
    for entry in fs::read_dir(&directory)? {
        fs::remove_file(entry?.path())?;
        seen += 1;
    }
    must(seen == ENTRIES, &format!("{seen} of {ENTRIES}"))?;
    fs::remove_dir(directory)
}

fn special_files(at: &Path) -> io::Result<()> {
    let (fifo, socket) = (at.with_extension("fifo"), at.with_extension("socket"));
    // SAFETY: the string ends with a zero.
    done(unsafe { mkfifo(text(&fifo).as_ptr(), 0o600) }.into())?;
    let mut both = OpenOptions::new().read(true).write(true).open(&fifo)?;
    both.write_all(b"x")?;
    both.read_exact(&mut [0])?;
    let listener = UnixListener::bind(&socket)?;
    let mut sender = UnixStream::connect(&socket)?;
    sender.write_all(b"x")?;
    listener.accept()?.0.read_exact(&mut [0])
}

fn synchronisation(at: &Path) -> io::Result<()> {
    let mut file = file(at)?;
    file.write_all(b"to the disk")?;
    file.sync_data()?;
    file.sync_all()?;
    // SAFETY: a plain system call.
    done(unsafe { syncfs(file.as_raw_fd()) }.into())?;
    File::open(at.parent().expect("a directory"))?.sync_all()?;
    file.seek(SeekFrom::Start(0))?;
    let mut content = String::new();
    file.read_to_string(&mut content)?;
    must(content == "to the disk", "another content")
}

fn events(at: &Path) -> io::Result<()> {
    let directory = text(at.parent().expect("a directory"));
    // SAFETY: the string ends with a zero; the new descriptor is nobody else's.
    let mut events = unsafe {
        let fd = inotify_init();
        done(fd.into())?;
        done(inotify_add_watch(fd, directory.as_ptr(), 0x100).into())?;
        File::from_raw_fd(fd)
    };
    file(at)?;
    let mut buffer = [0; 4096];
    let count = events.read(&mut buffer)?;
    let name = at.file_name().expect("a name").as_bytes();
    must(buffer[..count].windows(name.len()).any(|part| part == name), "no event of it")
}

/// `struct flock`: a lock of the whole file.
#[repr(C)]
struct WholeFile {
    kind: i16,
    whence: i16,
    start: i64,
    length: i64,
    pid: i32,
}

fn lock(file: &File, kind: &str) -> io::Result<()> {
    let whole = WholeFile { kind: 1, whence: 0, start: 0, length: 0, pid: 0 };
    // SAFETY: the structure is the one of F_SETLK (6) for writing; LOCK_EX | LOCK_NB.
    let result = unsafe {
        match kind {
            "flock" => flock(file.as_raw_fd(), 2 | 4),
            _ => fcntl(file.as_raw_fd(), 6, &raw const whole),
        }
    };
    done(result.into()).map(drop)
}

/// Another process, which is this program too, does not get a lock that this one has.
fn locks(at: &Path) -> io::Result<()> {
    let file = file(at)?;
    for kind in ["flock", "posix"] {
        let tried = || {
            let mut other = std::process::Command::new(std::env::current_exe()?);
            let output = other.args(["try", kind]).arg(at).output()?;
            io::Result::Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        };
        must(tried()? == "free", "it is held by nobody")?;
        lock(&file, kind)?;
        must(tried()? == "held", "two have the same lock")?;
    }
    Ok(())
}

const ALL: [(&str, fn(&Path) -> io::Result<()>); 19] = [
    ("attributes", attributes),
    ("file_capabilities", file_capabilities),
    ("access_list", access_list),
    ("shared_mapping", shared_mapping),
    ("direct", direct),
    ("holes", holes),
    ("allocation", allocation),
    ("renames", renames),
    ("nameless", nameless),
    ("times", times),
    ("links", links),
    ("refusals", refusals),
    ("owners", owners),
    ("appends", appends),
    ("copies", copies),
    ("many_entries", many_entries),
    ("special_files", special_files),
    ("synchronisation", synchronisation),
    ("events", events),
];

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["all", directory] => {
            for (name, check) in ALL.into_iter().chain([("locks", locks as fn(&Path) -> io::Result<()>)]) {
                let place = Path::new(directory).join(name);
                fs::create_dir(&place)?;
                match check(&place.join(name)) {
                    Ok(()) => println!("{name}: ok"),
                    Err(error) => println!("{name}: {error}"),
                }
            }
        }
        ["hold", kind, path] => {
            let file = OpenOptions::new().read(true).write(true).open(path)?;
            lock(&file, kind)?;
            println!("held");
            io::stdin().read_to_end(&mut Vec::new())?;
        }
        ["try", kind, path] => {
            let file = OpenOptions::new().read(true).write(true).open(path)?;
            println!("{}", if lock(&file, kind).is_ok() { "free" } else { "held" });
        }
        _ => panic!("posix all DIRECTORY, posix hold|try flock|posix FILE"),
    }
    Ok(())
}
