//! A reader of tar archives: `ustar`, GNU long names and pax extended headers.
//!
//! Only the field decoding of the `tar` crate is used. Its entries split extended headers at line
//! feeds, which cuts binary attributes such as `security.capability`.

use super::content::{Content, unreadable};
use super::pax::Extensions;
use super::sparse::{self, SparseMap};
use super::{LayerResult, invalid};
use tar::{EntryType, GnuExtSparseHeader, Header};

const BLOCK: usize = 512;
/// Where a header's checksum is; it counts as spaces in its own sum.
const CHECKSUM: std::ops::Range<usize> = 148..156;
/// The most bytes of one extended header or long name.
const MAX_EXTENSION: u64 = 1 << 20;

/// One file, directory, link or device.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) kind: Kind,
    pub(super) path: Vec<u8>,
    /// Permission bits, set-user-ID, set-group-ID and sticky bit.
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Seconds since 1970 and nanoseconds.
    pub(super) mtime: (i64, u32),
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    /// Bytes of data in the archive.
    File {
        size: u64,
    },
    /// A file with holes; the data of its segments follows.
    Sparse(SparseMap),
    Directory,
    Symlink(Vec<u8>),
    HardLink(Vec<u8>),
    CharDevice(u32, u32),
    BlockDevice(u32, u32),
    Fifo,
}

/// Reads entry after entry of a layer.
pub(super) struct Archive<'scope> {
    content: Content<'scope>,
    /// Data and padding of the current entry that have not been read.
    left: u64,
    padding: u64,
}

impl<'scope> Archive<'scope> {
    pub(super) fn new(content: Content<'scope>) -> Self {
        Self {
            content,
            left: 0,
            padding: 0,
        }
    }

    pub(super) fn into_content(self) -> Content<'scope> {
        self.content
    }

    /// The next entry; nothing at the end of the archive.
    pub(super) fn next(&mut self) -> LayerResult<Option<Entry>> {
        let mut extensions = Extensions::default();
        loop {
            self.skip_rest()?;
            let Some(header) = self.header()? else {
                return Ok(None);
            };
            let size = match header.entry_size() {
                Ok(size) => size,
                Err(_) => return invalid("a header has a size that is none"),
            };
            match header.entry_type() {
                EntryType::XHeader => extensions.read(&self.extension(size)?)?,
                EntryType::GNULongName => {
                    extensions.path = Some(until_nul(&self.extension(size)?).to_vec());
                }
                EntryType::GNULongLink => {
                    extensions.link = Some(until_nul(&self.extension(size)?).to_vec());
                }
                // Its records are for archives, not for images; containerd skips it too.
                EntryType::XGlobalHeader => drop(self.extension(size)?),
                kind => return self.entry(&header, kind, size, extensions).map(Some),
            }
        }
    }

    /// The next data of the current entry, as much as is at hand; nothing at its end.
    pub(super) fn data(&mut self) -> LayerResult<&[u8]> {
        if self.left == 0 {
            return Ok(&[]);
        }
        let left = usize::try_from(self.left).unwrap_or(usize::MAX);
        let bytes = self.content.fill()?;
        if bytes.is_empty() {
            return invalid("it ends in the middle of a file");
        }
        Ok(bytes.get(..left).unwrap_or(bytes))
    }

    /// Goes on behind so many bytes of what [`Archive::data`] returned.
    pub(super) fn consume(&mut self, count: usize) {
        self.content.consume(count);
        self.left = self.left.saturating_sub(count as u64);
    }

    fn entry(
        &mut self,
        header: &Header,
        kind: EntryType,
        size: u64,
        extensions: Extensions,
    ) -> LayerResult<Entry> {
        let path = extensions
            .path
            .unwrap_or_else(|| header.path_bytes().into_owned());
        let link = || match &extensions.link {
            Some(link) => link.clone(),
            None => header.link_name_bytes().unwrap_or_default().into_owned(),
        };
        let device = || match (header.device_major(), header.device_minor()) {
            (Ok(Some(major)), Ok(Some(minor))) => Ok((major, minor)),
            _ => invalid("a device has no usable number"),
        };
        let size = extensions.size.unwrap_or(size);
        let (uid, gid) = (
            owner(extensions.uid, header.uid())?,
            owner(extensions.gid, header.gid())?,
        );
        if kind == EntryType::GNUSparse {
            let sparse = self.old_sparse(header, size)?;
            let entry = Entry {
                kind: Kind::Sparse(sparse),
                ..describe(header, path, uid, gid, extensions.mtime, extensions.xattrs)?
            };
            return Ok(entry);
        }
        if let (Some(sparse), EntryType::Regular | EntryType::Continuous) =
            (&extensions.sparse, kind)
        {
            self.begin_data(size)?;
            let path = sparse.name.clone().unwrap_or(path);
            let map = sparse::from_pax(sparse, size, self)?;
            return Ok(Entry {
                kind: Kind::Sparse(map),
                ..describe(header, path, uid, gid, extensions.mtime, extensions.xattrs)?
            });
        }
        let kind = match kind {
            // Archives before POSIX mark a directory by its name only.
            EntryType::Regular if path.ends_with(b"/") => Kind::Directory,
            EntryType::Regular | EntryType::Continuous => Kind::File { size },
            EntryType::Directory => Kind::Directory,
            EntryType::Symlink => Kind::Symlink(link()),
            EntryType::Link => Kind::HardLink(link()),
            EntryType::Char => device().map(|(major, minor)| Kind::CharDevice(major, minor))?,
            EntryType::Block => device().map(|(major, minor)| Kind::BlockDevice(major, minor))?,
            EntryType::Fifo => Kind::Fifo,
            other => {
                let byte = other.as_byte().escape_ascii();
                return invalid(format!("it has an entry of the unknown type '{byte}'"));
            }
        };
        self.begin_data(size)?;
        // Some writers give links the size of their target; no data follows.
        if !matches!(kind, Kind::File { .. } | Kind::Directory) {
            self.begin_data(0)?;
        }
        Ok(Entry {
            kind,
            ..describe(header, path, uid, gid, extensions.mtime, extensions.xattrs)?
        })
    }

    /// The map of GNU tar's own format: in the header and in blocks that follow it.
    fn old_sparse(&mut self, header: &Header, size: u64) -> LayerResult<SparseMap> {
        let Some(gnu) = header.as_gnu() else {
            return invalid("a sparse file is not in GNU tar's format");
        };
        let real = gnu.real_size().map_err(unreadable)?;
        let mut segments = Vec::new();
        sparse::add_all(&mut segments, &gnu.sparse)?;
        let mut more = gnu.is_extended();
        while more {
            let Some(block) = self.block()? else {
                return invalid("it ends in the middle of a header");
            };
            let mut extension = GnuExtSparseHeader::new();
            extension.as_mut_bytes().copy_from_slice(&block);
            sparse::add_all(&mut segments, extension.sparse())?;
            more = extension.is_extended();
        }
        self.begin_data(size)?;
        SparseMap::new(real, segments, size)
    }

    fn begin_data(&mut self, size: u64) -> LayerResult<()> {
        if size > self.content.budget() {
            return invalid("it unpacks to more bytes than an image may have");
        }
        self.left = size;
        self.padding = size.wrapping_neg() % BLOCK as u64;
        Ok(())
    }

    fn skip_rest(&mut self) -> LayerResult<()> {
        self.left = self.left.saturating_add(self.padding);
        self.padding = 0;
        while self.left > 0 {
            let count = self.data()?.len();
            self.consume(count);
        }
        Ok(())
    }

    /// The data of an extended header.
    fn extension(&mut self, size: u64) -> LayerResult<Vec<u8>> {
        if size > MAX_EXTENSION {
            return invalid(format!(
                "an extended header has more than {MAX_EXTENSION} bytes"
            ));
        }
        self.begin_data(size)?;
        let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
        while self.left > 0 {
            let data = self.data()?;
            let count = data.len();
            bytes.extend_from_slice(data);
            self.consume(count);
        }
        Ok(bytes)
    }

    /// One block; nothing at the end of the layer.
    fn block(&mut self) -> LayerResult<Option<[u8; BLOCK]>> {
        let mut block = [0_u8; BLOCK];
        let mut filled = 0_usize;
        while let Some(rest) = block.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            let bytes = self.content.fill()?;
            let count = bytes.len().min(rest.len());
            let (Some(to), Some(from)) = (rest.get_mut(..count), bytes.get(..count)) else {
                break;
            };
            to.copy_from_slice(from);
            self.content.consume(count);
            filled = filled.saturating_add(count);
            match count {
                0 if filled == 0 => return Ok(None),
                0 => return invalid("it ends in the middle of a header"),
                _ => {}
            }
        }
        Ok(Some(block))
    }

    /// The next header; nothing at a block of zeros or the end of the layer.
    fn header(&mut self) -> LayerResult<Option<Header>> {
        let Some(block) = self.block()? else {
            return Ok(None);
        };
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let sum = block.iter().enumerate().fold(0_u32, |sum, (at, byte)| {
            let value = if CHECKSUM.contains(&at) { b' ' } else { *byte };
            sum.wrapping_add(u32::from(value))
        });
        let header = Header::from_byte_slice(&block).clone();
        match header.cksum() {
            Ok(expected) if expected == sum => Ok(Some(header)),
            // A fuzzer would spend its time on sums.
            _ if cfg!(fuzzing) => Ok(Some(header)),
            _ => invalid("it is not a tar archive or is damaged"),
        }
    }
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

fn owner(value: Option<u64>, field: std::io::Result<u64>) -> LayerResult<u32> {
    match value.map_or(field, Ok).map(u32::try_from) {
        // The last one means "leave it" to chown(2).
        Ok(Ok(id)) if id != u32::MAX => Ok(id),
        _ => invalid("a file has an owner that is none"),
    }
}

fn describe(
    header: &Header,
    path: Vec<u8>,
    uid: u32,
    gid: u32,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
) -> LayerResult<Entry> {
    Ok(Entry {
        kind: Kind::Fifo,
        mode: header.mode().map_err(unreadable)? & 0o7777,
        uid,
        gid,
        mtime: mtime.unwrap_or_else(|| {
            let seconds = header.mtime().ok().and_then(|s| i64::try_from(s).ok());
            (seconds.unwrap_or(0), 0)
        }),
        xattrs,
        path,
    })
}
