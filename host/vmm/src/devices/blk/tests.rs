use super::{BindError, Disk, Ended, Served, eventfd, request};
use crate::events::{Events, Source};
use crate::machine::memory::GuestRam;
use crate::virtio::Device;
use crate::virtio::notify::Notifier;
use crate::virtio::testing::{Raised, Ring, activate, get, notifier, put, ram};
use bulkhead_vmm_api::DiskSlot;
use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

struct Setup {
    ram: GuestRam,
    ring: Ring,
    disk: Arc<Disk>,
    notifier: Arc<Notifier>,
    raised: Arc<Raised>,
    events: Events,
    source: Source,
    ended: Ended,
}

fn setup(slot: DiskSlot) -> Setup {
    let ram = ram();
    let (notifier, raised) = notifier();
    let disk = Arc::new(Disk::new(slot, ram.clone(), Arc::clone(&notifier)).unwrap());
    let ring = Ring::new(&ram, 0x1_0000, 64);
    activate(disk.as_ref(), &notifier, &[&ring]);
    let events = Events::new().unwrap();
    let source = events.add(disk.as_fd(), Arc::new(|| {})).unwrap();
    Setup {
        ram,
        ring,
        disk,
        notifier,
        raised,
        events,
        source,
        ended: Arc::new(eventfd().unwrap()),
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

impl Setup {
    fn header(&self, kind: u32, sector: u64) {
        let mut header = kind.to_le_bytes().to_vec();
        header.extend([0; 4]);
        header.extend(sector.to_le_bytes());
        put(&self.ram, 0x2_0000, &header);
    }

    /// A request with this data in or out; answers the status byte and the used length.
    fn ask(&mut self, kind: u32, sector: u64, data: u32, device_writes: bool) -> (u8, u32) {
        self.header(kind, sector);
        put(&self.ram, 0x3_0000, &[0xee]);
        let mut buffers = vec![(0x2_0000, 16, false)];
        if data > 0 {
            buffers.push((0x4_0000, data, device_writes));
        }
        buffers.push((0x3_0000, 1, true));
        self.ring.add(&buffers);
        self.disk.kick().write(1).unwrap();
        if self.disk.capacity.load(std::sync::atomic::Ordering::SeqCst) == 0 {
            self.disk.serve_empty();
        }
        let (_, length) = wait(|| self.ring.used());
        (get(&self.ram, 0x3_0000, 1)[0], length)
    }

    fn bind(&self, file: &File) -> Result<(), BindError> {
        let file = file.try_clone().unwrap();
        self.disk.bind(file, &self.events, &self.ended)
    }

    fn unbind(&self) {
        if !self.disk.unbind() {
            wait(|| self.ended.read().ok());
            assert!(self.disk.collect(&self.events, self.source).unwrap());
        }
    }

    fn capacity(&self) -> u64 {
        let mut bytes = [0; 8];
        self.disk.read_config(0, &mut bytes);
        u64::from_le_bytes(bytes)
    }
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

#[test]
fn an_empty_slot_tells_its_name_and_nothing_else() {
    let mut s = setup(DiskSlot::ReadOnly(3));
    assert_eq!(s.capacity(), 0);
    assert_eq!(s.ask(GET_ID, 0, 20, true), (0, 21));
    assert_eq!(get(&s.ram, 0x4_0000, 4), b"ro3\0");
    assert_eq!(s.ask(IN, 0, 512, true), (1, 1));
    assert_eq!(s.ask(FLUSH, 0, 0, true).0, 1);
    assert_eq!(s.ask(99, 0, 0, true).0, 2);
}

#[test]
fn data_goes_both_ways_within_the_capacity() {
    use std::os::unix::fs::FileExt;
    let mut s = setup(DiskSlot::ReadWrite(0));
    let file = file(8);
    s.bind(&file).unwrap();
    assert_eq!(s.capacity(), 8);
    assert_eq!(s.raised.counts().1, 1);
    put(&s.ram, 0x4_0000, &[7; 1024]);
    assert_eq!(s.ask(OUT, 6, 1024, false), (0, 1));
    let mut bytes = [0; 1024];
    file.read_exact_at(&mut bytes, 6 * 512).unwrap();
    assert_eq!(bytes, [7; 1024]);
    put(&s.ram, 0x4_0000, &[0; 1024]);
    assert_eq!(s.ask(IN, 6, 1024, true), (0, 1025));
    assert_eq!(get(&s.ram, 0x4_0000, 1024), [7; 1024]);
    assert_eq!(s.ask(FLUSH, 0, 0, true), (0, 1));

    for (kind, sector, length) in [
        (IN, 7, 1024),
        (OUT, 8, 512),
        (IN, u64::MAX, 512),
        (OUT, u64::MAX / 512, 512),
        (IN, 0, 511),
        (OUT, 0, 1),
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

#[test]
fn ranges_are_cleared() {
    use std::os::unix::fs::FileExt;
    let mut s = setup(DiskSlot::ReadWrite(0));
    let file = file(64);
    file.write_all_at(&[9; 64 * 512], 0).unwrap();
    s.bind(&file).unwrap();
    let segment = |sector: u64, count: u32, flags: u32| {
        let mut bytes = sector.to_le_bytes().to_vec();
        bytes.extend(count.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes
    };
    for (kind, sector, count, flags, status) in [
        (WRITE_ZEROES, 8, 8, 0, 0),
        (WRITE_ZEROES, 24, 8, 1, 0),
        (DISCARD, 40, 8, 0, 0),
        (DISCARD, 40, 0, 0, 0),
        (DISCARD, 40, 8, 1, 2),
        (WRITE_ZEROES, 40, 8, 2, 2),
        (DISCARD, 60, 8, 0, 1),
        (WRITE_ZEROES, 0, u32::MAX, 0, 1),
        (DISCARD, u64::MAX, 8, 0, 1),
    ] {
        put(&s.ram, 0x4_0000, &segment(sector, count, flags));
        let got = s.ask(kind, 0, 16, false).0;
        assert_eq!(got, status, "{kind} {sector} {count} {flags}");
    }
    assert_eq!(s.ask(DISCARD, 0, 32, false).0, 2);
    assert_eq!(s.ask(DISCARD, 0, 8, false).0, 2);
    let mut bytes = vec![0; 64 * 512];
    file.read_exact_at(&mut bytes, 0).unwrap();
    for (sector, bytes) in bytes.chunks(512).enumerate() {
        let cleared = matches!(sector, 8..16 | 24..32 | 40..48);
        assert_eq!(bytes[0], if cleared { 0 } else { 9 }, "{sector}");
    }
    s.unbind();
}

#[test]
fn a_read_only_slot_never_writes() {
    let mut s = setup(DiskSlot::ReadOnly(0));
    let file = file(8);
    // A descriptor that could be written through is not even taken.
    assert!(matches!(s.bind(&file), Err(BindError::Access)));
    s.bind(&read_only(&file)).unwrap();
    assert_eq!(s.disk.features() & (1 << 5), 1 << 5);
    assert_eq!(s.ask(OUT, 0, 512, false).0, 1);
    assert_eq!(s.ask(WRITE_ZEROES, 0, 16, false).0, 2);
    assert_eq!(s.ask(IN, 0, 512, true).0, 0);
    assert_eq!(s.ask(FLUSH, 0, 0, true).0, 0);
    s.unbind();
}

#[test]
fn only_whole_files_of_the_right_kind_are_bound() {
    let s = setup(DiskSlot::ReadWrite(0));
    for length in [0, 1, 511, 513] {
        let file = tempfile::tempfile().unwrap();
        file.set_len(length).unwrap();
        assert!(matches!(s.bind(&file), Err(BindError::Size(_))), "{length}");
    }
    assert!(matches!(
        s.bind(&read_only(&file(1))),
        Err(BindError::Access)
    ));
    let null = File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .unwrap();
    assert!(matches!(s.bind(&null), Err(BindError::Kind)));
    s.bind(&file(1)).unwrap();
    assert!(matches!(s.bind(&file(1)), Err(BindError::NotEmpty)));
    for _ in 0..20 {
        s.unbind();
        s.bind(&file(1)).unwrap();
    }
    s.unbind();
    assert!(s.disk.unbind());
}

#[test]
fn a_file_that_shrinks_gives_errors() {
    let mut s = setup(DiskSlot::ReadWrite(0));
    let file = file(8);
    s.bind(&file).unwrap();
    file.set_len(512).unwrap();
    assert_eq!(s.ask(IN, 0, 1024, true).0, 1);
    s.unbind();
}

#[test]
fn requests_that_cannot_be_answered_ask_for_a_reset() {
    type Buffers = &'static [(u64, u32, bool)];
    let cases: [(&str, Buffers); 5] = [
        ("no status", &[(0x2_0000, 16, false)]),
        ("no header", &[(0x3_0000, 1, true)]),
        (
            "short header",
            &[(0x2_0000, 15, false), (0x3_0000, 1, true)],
        ),
        (
            "empty status",
            &[(0x2_0000, 16, false), (0x3_0000, 0, true)],
        ),
        ("nothing", &[(0x2_0000, 0, false)]),
    ];
    for (name, buffers) in cases {
        let mut s = setup(DiskSlot::ReadOnly(0));
        s.ring.add(buffers);
        s.disk.serve_empty();
        assert!(s.notifier.needs_reset(), "{name}");
        assert_eq!(s.ring.used(), None, "{name}");
        // It stays silent until it is reset.
        s.ring.add(&[(0x2_0000, 16, false), (0x3_0000, 1, true)]);
        s.disk.serve_empty();
        assert_eq!(s.ring.used(), None, "{name}");
    }
}

#[test]
fn a_header_in_pieces_is_understood() {
    let ram = ram();
    let mut ring = Ring::new(&ram, 0x1_0000, 8);
    put(&ram, 0x2_0000, &GET_ID.to_le_bytes());
    ring.add(&[
        (0x2_0000, 3, false),
        (0x2_0003, 5, false),
        (0x2_0008, 8, false),
        (0x4_0000, 19, true),
        (0x4_0013, 2, true),
    ]);
    let mut chain = ring.queue().pop(&ram).unwrap().unwrap();
    let target = request::Target {
        ram: &ram,
        file: None,
        read_only: true,
        sectors: 0,
        name: "rw12",
    };
    let served = request::serve(&target, &mut chain).unwrap();
    assert_eq!(
        served,
        Served {
            written: 21,
            moved: 20,
            ok: true
        }
    );
    assert_eq!(get(&ram, 0x4_0000, 5), b"rw12\0");
}
