//! Archives that are well-formed, with contents that go to the limits of the format.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;

#[derive(Debug, Arbitrary)]
struct Entry<'a> {
    /// Directories and name, from few letters so that entries meet.
    path: [u8; 3],
    depth: u8,
    name: &'a [u8],
    kind: u8,
    link: &'a [u8],
    size: u16,
    mode: u16,
    owner: u32,
    mtime: i32,
    device: (u16, u32),
    xattrs: Vec<(u8, u16, u8)>,
    sparse: Vec<(u32, u16)>,
    next_layer: bool,
}

fn record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length.to_string().len() + rest != length {
        length += 1;
    }
    out.extend(format!("{length} ").bytes());
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}

fn block(out: &mut Vec<u8>, kind: u8, data: &[u8], entry: &Entry<'_>) {
    let mut header = [0_u8; 512];
    header[0] = b'x';
    header[100..107].copy_from_slice(format!("{:07o}", entry.mode & 0o7777).as_bytes());
    header[108..115].copy_from_slice(b"0000000");
    header[116..123].copy_from_slice(b"0000000");
    header[124..135].copy_from_slice(format!("{:011o}", data.len()).as_bytes());
    header[136..147].copy_from_slice(b"00000000000");
    header[156] = kind;
    header[257..265].copy_from_slice(b"ustar\x0000");
    header[329..336].copy_from_slice(format!("{:07o}", entry.device.0).as_bytes());
    header[337..344].copy_from_slice(format!("{:07o}", entry.device.1 & 0x1f_ffff).as_bytes());
    out.extend(header);
    out.extend_from_slice(data);
    out.resize(out.len().next_multiple_of(512), 0);
}

fuzz_target!(|entries: Vec<Entry<'_>>| {
    let mut layers: Vec<Vec<u8>> = vec![Vec::new()];
    for entry in entries.iter().take(64) {
        if entry.next_layer && layers.len() < 4 {
            layers.push(Vec::new());
        }
        let kind = b"0000555512346"[usize::from(entry.kind) % 13];
        let mut path: Vec<u8> = Vec::new();
        for part in entry.path.iter().take(usize::from(entry.depth % 3)) {
            path.extend([b'a' + part % 3, b'/']);
        }
        match entry.name {
            b"" => path.push(b'a' + entry.path[2] % 3),
            name => path.extend(name.iter().take(300)),
        }
        let mut records = Vec::new();
        record(&mut records, b"path", &path);
        record(&mut records, b"linkpath", entry.link);
        record(
            &mut records,
            b"uid",
            (entry.owner >> 8).to_string().as_bytes(),
        );
        record(
            &mut records,
            b"mtime",
            format!("{}.5", entry.mtime).as_bytes(),
        );
        for (name, length, byte) in entry.xattrs.iter().take(8) {
            let key = format!("SCHILY.xattr.user.{}", name % 8);
            record(
                &mut records,
                key.as_bytes(),
                &vec![*byte; usize::from(*length)],
            );
        }
        let mut data = vec![entry.kind; usize::from(entry.size)];
        if kind == b'0' && !entry.sparse.is_empty() {
            let (mut at, mut sum, mut map) = (0_u64, 0, Vec::new());
            for (gap, length) in entry.sparse.iter().take(40) {
                at += u64::from(*gap);
                map.push(format!("{at},{length}"));
                at += u64::from(*length);
                sum += usize::from(*length);
            }
            data.resize(sum, 1);
            record(&mut records, b"GNU.sparse.size", at.to_string().as_bytes());
            record(&mut records, b"GNU.sparse.map", map.join(",").as_bytes());
        }
        let Some(layer) = layers.last_mut() else {
            return;
        };
        block(layer, b'x', &records, entry);
        block(layer, kind, if kind == b'0' { &data } else { b"" }, entry);
    }
    let layers: Vec<&[u8]> = layers.iter().map(Vec::as_slice).collect();
    bulkhead_image_fuzz::round_trip(&layers);
});
