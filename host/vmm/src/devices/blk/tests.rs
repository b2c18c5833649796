//! The disk slots with a driver in plain memory, for both engines.

mod chains;
mod flight;

use super::engine::Engine;
use super::{BindError, Disk, Ended, EngineKind, Service, eventfd};
use crate::machine::memory::GuestRam;
use crate::virtio::Device;
use crate::virtio::notify::Notifier;
use crate::virtio::testing::{Raised, Ring, get, notifier, put, ram};
use bulkhead_vmm_api::{DiskSlot, Rate, RateLimits};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;
const F_FLUSH: u64 = 1 << 9;

struct Setup {
    ram: GuestRam,
    ring: Ring,
    disk: Arc<Disk>,
    notifier: Arc<Notifier>,
    raised: Arc<Raised>,
    ended: Ended,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// A slot with its own service, which runs in a thread of its own as in the VMM.
fn setup_with(slot: DiskSlot, engine: Engine) -> Setup {
    let ram = ram();
    let (notifier, raised) = notifier();
    let disk = Arc::new(Disk::new(slot, Arc::clone(&notifier)).unwrap());
    let mut service = Service::with_engine(ram.clone(), vec![Arc::clone(&disk)], engine).unwrap();
    let stop = Arc::<AtomicBool>::default();
    let stopped = Arc::clone(&stop);
    let thread = std::thread::spawn(move || {
        while !stopped.load(Ordering::SeqCst) {
            service.turn().unwrap();
        }
    });
    let mut setup = Setup {
        ring: Ring::new(&ram, 0x1_0000, 64),
        ram,
        disk,
        notifier,
        raised,
        ended: Arc::new(eventfd().unwrap()),
        stop,
        thread: Some(thread),
    };
    setup.activate();
    setup
}

/// One for each engine that this host has.
fn setups(slot: DiskSlot) -> Vec<Setup> {
    [EngineKind::Uring, EngineKind::Pool]
        .into_iter()
        .filter_map(|kind| match Engine::new(Some(kind)) {
            Ok(engine) => Some(setup_with(slot, engine)),
            Err(error) => {
                assert_eq!(kind, EngineKind::Uring);
                eprintln!("not tested with io_uring: {error:?}");
                None
            }
        })
        .collect()
}

impl Drop for Setup {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        self.disk.kick().write(1).unwrap();
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking());
    }
}

fn wait<T>(mut ask: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(start.elapsed() < Duration::from_secs(10));
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A request's memory: its header, status and data.
const HEADERS: u64 = 0x2_0000;
const STATUS: u64 = 0x3_0000;
const DATA: u64 = 0x4_0000;

impl Setup {
    /// A driver that begins anew, with an empty queue, as after a reset.
    fn activate(&mut self) {
        self.ring = Ring::new(&self.ram, 0x1_0000, 64);
        put(&self.ram, 0x1_0000, &[0; 0xc000]);
        self.notifier.activate();
        self.disk.activate(vec![self.ring.queue()], F_FLUSH);
        self.kick();
    }

    fn reset(&mut self) {
        self.disk.reset();
        self.notifier.reset();
        self.activate();
    }

    fn kick(&self) {
        self.disk.kick().write(1).unwrap();
    }

    fn header(&self, kind: u32, sector: u64) {
        put(&self.ram, HEADERS, &header(kind, sector));
    }

    /// A request with this data in or out; answers the status byte and the used length.
    fn ask(&mut self, kind: u32, sector: u64, data: u32, device_writes: bool) -> (u8, u32) {
        self.header(kind, sector);
        put(&self.ram, STATUS, &[0xee]);
        let mut buffers = vec![(HEADERS, 16, false)];
        if data > 0 {
            buffers.push((DATA, data, device_writes));
        }
        buffers.push((STATUS, 1, true));
        self.ring.add(&buffers);
        self.kick();
        let (_, length) = wait(|| self.ring.used());
        (get(&self.ram, STATUS, 1)[0], length)
    }

    /// DISCARD or WRITE_ZEROES; answers the status.
    fn clear(&mut self, kind: u32, sector: u64, count: u32, flags: u32) -> u8 {
        let mut segment = sector.to_le_bytes().to_vec();
        segment.extend(count.to_le_bytes());
        segment.extend(flags.to_le_bytes());
        put(&self.ram, DATA, &segment);
        self.ask(kind, 0, 16, false).0
    }

    fn bind(&self, file: &File) -> Result<(), BindError> {
        self.bind_limited(file, RateLimits::default())
    }

    fn bind_limited(&self, file: &File, limits: RateLimits) -> Result<(), BindError> {
        self.disk.bind(file.try_clone().unwrap(), &limits)
    }

    fn unbind(&self) {
        if !self.disk.unbind(&self.ended) {
            wait(|| self.ended.read().ok());
        }
        assert!(self.disk.is_empty());
    }

    fn capacity(&self) -> u64 {
        let mut bytes = [0; 8];
        self.disk.read_config(0, &mut bytes);
        u64::from_le_bytes(bytes)
    }
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    let mut header = kind.to_le_bytes().to_vec();
    header.extend([0; 4]);
    header.extend(sector.to_le_bytes());
    header
}

fn file(sectors: usize) -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(sectors as u64 * 512).unwrap();
    file
}

fn read_only(file: &File) -> File {
    use std::os::fd::AsRawFd;
    File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap()
}

fn content(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

#[test]
fn a_slot_is_a_device_once_it_was_bound() {
    for s in setups(DiskSlot::ReadWrite(0)) {
        assert_eq!(s.disk.id(), 0);
        s.bind(&file(8)).unwrap();
        assert_eq!(s.disk.id(), 2);
        s.unbind();
        assert_eq!((s.disk.id(), s.capacity()), (2, 0));
    }
}

#[test]
fn an_empty_slot_tells_its_name_and_nothing_else() {
    for mut s in setups(DiskSlot::ReadOnly(3)) {
        assert_eq!(s.capacity(), 0);
        assert_eq!(s.ask(GET_ID, 0, 20, true), (0, 21));
        assert_eq!(get(&s.ram, DATA, 4), b"ro3\0");
        assert_eq!(s.ask(GET_ID, 0, 19, true), (1, 1));
        assert_eq!(s.ask(IN, 0, 512, true), (1, 1));
        assert_eq!(s.ask(IN, 0, 0, true), (1, 1));
        assert_eq!(s.ask(FLUSH, 0, 0, true), (1, 1));
        assert_eq!(s.ask(99, 0, 0, true), (2, 1));
    }
}

#[test]
fn data_goes_both_ways_within_the_capacity() {
    for mut s in setups(DiskSlot::ReadWrite(0)) {
        let file = file(8);
        s.bind(&file).unwrap();
        assert_eq!(s.capacity(), 8);
        assert_eq!(s.raised.counts().1, 1);
        put(&s.ram, DATA, &[7; 1024]);
        assert_eq!(s.ask(OUT, 6, 1024, false), (0, 1));
        assert_eq!(content(&file)[6 * 512..], [7; 1024]);
        put(&s.ram, DATA, &[0; 1024]);
        assert_eq!(s.ask(IN, 6, 1024, true), (0, 1025));
        assert_eq!(get(&s.ram, DATA, 1024), [7; 1024]);
        assert_eq!(s.ask(FLUSH, 0, 0, true), (0, 1));
        assert_eq!(s.ask(IN, 0, 0, true), (0, 1));
        assert_eq!(s.ask(OUT, 8, 0, true), (0, 1));

        for (kind, sector, length) in [
            (IN, 7, 1024),
            (OUT, 8, 512),
            (IN, u64::MAX, 512),
            (OUT, u64::MAX / 512, 512),
            (IN, 0, 511),
            (OUT, 0, 1),
            (IN, 9, 0),
        ] {
            let (status, used) = s.ask(kind, sector, length, kind == IN);
            assert_eq!((status, used), (1, 1), "{kind} {sector} {length}");
        }
        assert_eq!(file.metadata().unwrap().len(), 8 * 512);
        s.unbind();
        assert_eq!(s.capacity(), 0);
        assert_eq!(s.raised.counts().1, 2);
        assert_eq!(s.ask(IN, 0, 512, true).0, 1);
    }
}

#[test]
fn ranges_are_cleared() {
    for mut s in setups(DiskSlot::ReadWrite(0)) {
        let file = file(64);
        file.write_all_at(&[9; 64 * 512], 0).unwrap();
        s.bind(&file).unwrap();
        for (kind, sector, count, flags, status) in [
            (WRITE_ZEROES, 8, 8, 0, 0),
            (WRITE_ZEROES, 24, 8, 1, 0),
            (DISCARD, 40, 8, 0, 0),
            (DISCARD, 40, 0, 0, 0),
            (DISCARD, 40, 8, 1, 2),
            (WRITE_ZEROES, 40, 8, 2, 2),
            (WRITE_ZEROES, 40, 8, u32::MAX, 2),
            (DISCARD, 60, 8, 0, 1),
            (WRITE_ZEROES, 60, 8, 1, 1),
            (WRITE_ZEROES, 0, u32::MAX, 0, 1),
            (DISCARD, u64::MAX, 8, 0, 1),
            (DISCARD, u64::MAX, 0, 0, 1),
        ] {
            let got = s.clear(kind, sector, count, flags);
            assert_eq!(got, status, "{kind} {sector} {count} {flags}");
        }
        assert_eq!(s.ask(DISCARD, 0, 32, false).0, 2);
        assert_eq!(s.ask(DISCARD, 0, 8, false).0, 2);
        assert_eq!(s.ask(WRITE_ZEROES, 0, 0, false).0, 2);
        for (sector, bytes) in content(&file).chunks(512).enumerate() {
            let cleared = matches!(sector, 8..16 | 24..32 | 40..48);
            assert_eq!(bytes[0], if cleared { 0 } else { 9 }, "{sector}");
        }
        s.unbind();
    }
}

/// A tmpfs can punch holes but has no other way to clear a range: zeroes are written there.
#[test]
fn zeroes_are_written_where_the_file_system_cannot_clear() {
    use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, memfd_create};
    for mut s in setups(DiskSlot::ReadWrite(0)) {
        let file = File::from(memfd_create("disk", MemfdFlags::CLOEXEC).unwrap());
        let length = 9 << 20;
        file.write_all_at(&vec![9; length], 0).unwrap();
        let zero = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        assert!(
            fallocate(&file, zero, 0, 512).is_err(),
            "tmpfs has learnt it"
        );
        s.bind(&file).unwrap();
        // More than goes in one operation, and no whole number of buffers.
        let sectors = (8 << 20) / 512 + 3;
        assert_eq!(s.clear(WRITE_ZEROES, 1, sectors, 0), 0);
        let bytes = content(&file);
        let end = 512 * (1 + sectors as usize);
        assert!(bytes[..512].iter().all(|byte| *byte == 9));
        assert!(bytes[512..end].iter().all(|byte| *byte == 0));
        assert!(bytes[end..].iter().all(|byte| *byte == 9));
        assert_eq!(bytes.len(), length);
    }
}

#[test]
fn a_read_only_slot_never_writes() {
    for mut s in setups(DiskSlot::ReadOnly(0)) {
        let file = file(8);
        // A descriptor that could be written through is not even taken.
        assert!(matches!(s.bind(&file), Err(BindError::Access)));
        s.bind(&read_only(&file)).unwrap();
        assert_eq!(s.disk.features() & (1 << 5), 1 << 5);
        assert_eq!(s.ask(OUT, 0, 512, false).0, 1);
        assert_eq!(s.ask(OUT, 0, 0, false).0, 1);
        assert_eq!(s.clear(WRITE_ZEROES, 0, 8, 0), 2);
        assert_eq!(s.clear(DISCARD, 0, 8, 0), 2);
        assert_eq!(s.ask(IN, 0, 512, true).0, 0);
        assert_eq!(s.ask(FLUSH, 0, 0, true).0, 0);
        s.unbind();
    }
}

#[test]
fn only_whole_files_of_the_right_kind_are_bound() {
    for s in setups(DiskSlot::ReadWrite(0)) {
        for length in [0, 1, 511, 513] {
            let file = tempfile::tempfile().unwrap();
            file.set_len(length).unwrap();
            assert!(matches!(s.bind(&file), Err(BindError::Size(_))), "{length}");
        }
        let refused = s.bind(&read_only(&file(1)));
        assert!(matches!(refused, Err(BindError::Access)));
        let null = File::options().read(true).write(true).open("/dev/null");
        assert!(matches!(s.bind(&null.unwrap()), Err(BindError::Kind)));
        let never = Some(Rate {
            per_second: 0,
            burst: 1,
        });
        let limits = RateLimits {
            ops: never,
            bytes: None,
        };
        let refused = s.bind_limited(&file(1), limits);
        assert!(matches!(refused, Err(BindError::Limits)));
        assert_eq!(s.disk.id(), 0);
        s.bind(&file(1)).unwrap();
        assert!(matches!(s.bind(&file(1)), Err(BindError::NotEmpty)));
        for _ in 0..20 {
            s.unbind();
            s.bind(&file(1)).unwrap();
        }
        s.unbind();
        assert!(s.disk.unbind(&s.ended));
    }
}

#[test]
fn a_disk_grows_with_its_file_and_never_shrinks() {
    for mut s in setups(DiskSlot::ReadWrite(0)) {
        assert!(matches!(s.disk.measure(), Err(BindError::Empty)));
        let file = file(8);
        s.bind(&file).unwrap();
        assert_eq!(s.disk.measure().unwrap(), 8 * 512);
        assert_eq!(s.raised.counts().1, 1, "nothing has changed");
        assert_eq!(s.ask(OUT, 8, 512, false), (1, 1));
        file.set_len(16 * 512).unwrap();
        assert_eq!(s.disk.measure().unwrap(), 16 * 512);
        assert_eq!((s.capacity(), s.raised.counts().1), (16, 2));
        assert_eq!(s.ask(OUT, 15, 512, false), (0, 1));
        for (length, whole) in [(8 * 512, true), (16 * 512 + 1, false)] {
            file.set_len(length).unwrap();
            let refused = s.disk.measure();
            let shrunk = matches!(
                refused,
                Err(BindError::Shrunk {
                    before: 8192,
                    now: 4096
                })
            );
            assert!(shrunk == whole && refused.is_err(), "{refused:?}");
            assert_eq!((s.capacity(), s.raised.counts().1), (16, 2));
        }
        s.unbind();
        assert!(matches!(s.disk.measure(), Err(BindError::Empty)));
    }
}

#[test]
fn a_file_that_shrinks_gives_errors() {
    for mut s in setups(DiskSlot::ReadWrite(0)) {
        let file = file(8);
        s.bind(&file).unwrap();
        file.set_len(512).unwrap();
        assert_eq!(s.ask(IN, 0, 1024, true), (1, 1));
        assert_eq!(s.ask(IN, 4, 512, true), (1, 1));
        assert_eq!(s.ask(IN, 0, 512, true), (0, 513));
        s.unbind();
    }
}

/// `/dev/full` is what a full disk is to a writer; it is no file that could be bound, so it is put into
/// the slot past the check.
#[test]
fn a_full_disk_gives_errors() {
    for mut s in setups(DiskSlot::ReadWrite(0)) {
        let full = File::options().read(true).write(true).open("/dev/full");
        let bound = super::Bound {
            file: Arc::new(full.unwrap()),
            sectors: 8,
        };
        crate::sync::lock(&s.disk.state).bound = Some(bound);
        assert_eq!(s.ask(OUT, 0, 512, false), (1, 1));
        assert_eq!(s.ask(IN, 0, 512, true), (0, 513));
        s.unbind();
    }
}

#[test]
fn the_configuration_space_tells_the_limits() {
    let (notifier, _) = notifier();
    for (slot, features) in [
        (DiskSlot::ReadOnly(0), 1 << 2 | 1 << 5 | 1 << 6 | 1 << 9),
        (
            DiskSlot::ReadWrite(0),
            1 << 2 | 1 << 6 | 1 << 9 | 1 << 13 | 1 << 14,
        ),
    ] {
        let disk = Disk::new(slot, Arc::clone(&notifier)).unwrap();
        assert_eq!(disk.features(), features);
        let field = |offset| {
            let mut bytes = [0; 4];
            disk.read_config(offset, &mut bytes);
            u32::from_le_bytes(bytes)
        };
        assert_eq!(field(12), u32::from(disk.queue_sizes()[0]) - 2, "seg_max");
        assert_eq!(field(20), 512, "blk_size");
        assert_eq!(field(36), 1 << 21, "max_discard_sectors");
        assert_eq!(field(40), 1, "max_discard_seg");
        assert_eq!(field(44), 8, "discard_sector_alignment");
        assert_eq!(field(48), 1 << 15, "max_write_zeroes_sectors");
        assert_eq!(field(52), 1, "max_write_zeroes_seg");
        assert_eq!(field(56), 1, "write_zeroes_may_unmap");
        assert_eq!(field(60), 0);
    }
}
