//! Writes tar archives for tests, hostile ones included.

use tar::{EntryType, Header};

/// An archive under construction.
#[derive(Default)]
pub(crate) struct Tarball(pub(crate) Vec<u8>);

/// One entry, without checks of any field.
#[derive(Clone)]
pub(crate) struct Item<'a> {
    pub(crate) path: &'a str,
    pub(crate) kind: u8,
    pub(crate) link: &'a str,
    pub(crate) data: &'a [u8],
    pub(crate) mode: u32,
    pub(crate) owner: (u64, u64),
    pub(crate) mtime: u64,
    pub(crate) device: (u32, u32),
}

impl Default for Item<'_> {
    fn default() -> Self {
        Self {
            path: "",
            kind: b'0',
            link: "",
            data: b"",
            mode: 0o644,
            owner: (0, 0),
            mtime: 1_000_000_000,
            device: (0, 0),
        }
    }
}

impl Tarball {
    pub(crate) fn item(mut self, item: &Item<'_>) -> Self {
        let mut header = Header::new_ustar();
        let fields = header.as_ustar_mut().unwrap();
        fields.name[..item.path.len()].copy_from_slice(item.path.as_bytes());
        fields.linkname[..item.link.len()].copy_from_slice(item.link.as_bytes());
        header.set_entry_type(EntryType::new(item.kind));
        header.set_size(item.data.len() as u64);
        header.set_mode(item.mode);
        header.set_uid(item.owner.0);
        header.set_gid(item.owner.1);
        header.set_mtime(item.mtime);
        header.set_device_major(item.device.0).unwrap();
        header.set_device_minor(item.device.1).unwrap();
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(item.data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(crate) fn file(self, path: &str, data: &[u8]) -> Self {
        let item = Item {
            path,
            data,
            ..Item::default()
        };
        self.item(&item)
    }

    pub(crate) fn dir(self, path: &str) -> Self {
        let item = Item {
            path,
            kind: b'5',
            mode: 0o755,
            ..Item::default()
        };
        self.item(&item)
    }

    pub(crate) fn link(self, kind: u8, path: &str, link: &str) -> Self {
        let item = Item {
            path,
            kind,
            link,
            mode: 0o777,
            ..Item::default()
        };
        self.item(&item)
    }

    /// An extended header for the entry that follows.
    pub(crate) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            // The length counts its own digits.
            let mut length = rest + 1;
            while length.to_string().len() + rest != length {
                length += 1;
            }
            data.extend_from_slice(format!("{length} {key}=").as_bytes());
            data.extend_from_slice(value);
            data.push(b'\n');
        }
        let item = Item {
            path: "PaxHeaders/x",
            kind: b'x',
            data: &data,
            ..Item::default()
        };
        self.item(&item)
    }

    pub(crate) fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}
