//! Sparse files: GNU tar's own format and its three formats in extended headers.

use super::archive::Archive;
use super::content::unreadable;
use super::pax::number;
use super::{LayerResult, invalid};
use tar::GnuSparseHeader;

/// Segments of one file.
pub(super) const MAX_SEGMENTS: usize = 128 << 10;
/// Digits of a number in a map.
const MAX_DIGITS: usize = 20;
const BLOCK: u64 = 512;

/// Where a sparse file has data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SparseMap {
    /// Bytes of the file, holes included.
    pub(super) size: u64,
    /// Offset and bytes, in order.
    pub(super) segments: Vec<(u64, u64)>,
}

/// What extended headers say about a sparse file.
#[derive(Debug, Default)]
pub(super) struct SparseRecords {
    pub(super) name: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    /// Offsets and sizes in turn.
    pub(super) numbers: Vec<u64>,
    /// 1 when the map stands before the data.
    pub(super) major: u64,
}

impl SparseMap {
    /// Checks a map against the size of the file and the bytes of data that follow.
    pub(super) fn new(size: u64, segments: Vec<(u64, u64)>, data: u64) -> LayerResult<Self> {
        let mut end = 0_u64;
        let mut sum = 0_u64;
        for (offset, bytes) in &segments {
            match offset.checked_add(*bytes) {
                Some(next) if *offset >= end && next <= size => end = next,
                _ => return invalid("a sparse file has segments that are not in order"),
            }
            sum = sum.saturating_add(*bytes);
        }
        if sum != data {
            return invalid("a sparse file has other data than its map says");
        }
        Ok(Self { size, segments })
    }

    /// No part of the file is a hole.
    pub(super) fn is_dense(&self) -> bool {
        let data: u64 = self.segments.iter().map(|(_, bytes)| *bytes).sum();
        data == self.size
    }
}

/// Adds the segments of a header of GNU tar's own format.
pub(super) fn add_all(
    segments: &mut Vec<(u64, u64)>,
    headers: &[GnuSparseHeader],
) -> LayerResult<()> {
    for header in headers.iter().filter(|header| !header.is_empty()) {
        if segments.len() >= MAX_SEGMENTS {
            return invalid("a sparse file has too many segments");
        }
        let offset = header.offset().map_err(unreadable)?;
        segments.push((offset, header.length().map_err(unreadable)?));
    }
    Ok(())
}

/// The map of a file whose extended headers say that it is sparse. `size` counts what follows in
/// the archive.
pub(super) fn from_pax(
    records: &SparseRecords,
    size: u64,
    archive: &mut Archive<'_>,
) -> LayerResult<SparseMap> {
    let Some(real) = records.size else {
        return invalid("a sparse file has no size");
    };
    if records.major > 1 {
        return invalid("a sparse file has a newer format than 1.0");
    }
    if records.major == 0 {
        return SparseMap::new(real, pairs(&records.numbers)?, size);
    }
    let mut lines = Lines { archive, read: 0 };
    let count = lines.number()?;
    let count = match usize::try_from(count) {
        Ok(count) if count <= MAX_SEGMENTS => count,
        _ => return invalid("a sparse file has too many segments"),
    };
    let mut numbers = Vec::new();
    for _ in 0..count.saturating_mul(2) {
        numbers.push(lines.number()?);
    }
    lines.skip_padding()?;
    let data = size.saturating_sub(lines.read);
    SparseMap::new(real, pairs(&numbers)?, data)
}

fn pairs(numbers: &[u64]) -> LayerResult<Vec<(u64, u64)>> {
    let (pairs, rest) = numbers.as_chunks::<2>();
    if !rest.is_empty() || pairs.len() > MAX_SEGMENTS {
        return invalid("a sparse file's map is not well-formed");
    }
    Ok(pairs
        .iter()
        .map(|[offset, bytes]| (*offset, *bytes))
        .collect())
}

/// Decimal numbers, each on a line, before a file's data.
struct Lines<'a, 'scope> {
    archive: &'a mut Archive<'scope>,
    read: u64,
}

impl Lines<'_, '_> {
    fn number(&mut self) -> LayerResult<u64> {
        let mut digits = Vec::new();
        loop {
            match self.byte()? {
                b'\n' => return number(&digits),
                _ if digits.len() >= MAX_DIGITS => {
                    return invalid("a sparse file's map is not well-formed");
                }
                byte => digits.push(byte),
            }
        }
    }

    fn skip_padding(&mut self) -> LayerResult<()> {
        while !self.read.is_multiple_of(BLOCK) {
            self.byte()?;
        }
        Ok(())
    }

    fn byte(&mut self) -> LayerResult<u8> {
        match self.archive.data()?.first().copied() {
            Some(byte) => {
                self.archive.consume(1);
                self.read = self.read.saturating_add(1);
                Ok(byte)
            }
            None => invalid("a sparse file's map is not complete"),
        }
    }
}
