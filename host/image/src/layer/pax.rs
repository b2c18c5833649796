//! Extended headers of POSIX.1-2001 archives (`pax(1)`, "pax Header Block").
//!
//! Values of extended attributes are binary: only the record's length says where it ends.

use super::sparse::{MAX_SEGMENTS, SparseRecords};
use super::{LayerResult, invalid};

const MAX_XATTR_NAME: usize = 255;
/// `XATTR_SIZE_MAX` of the kernel.
const MAX_XATTR_VALUE: usize = 64 << 10;
const MAX_XATTRS: usize = 256;

/// What extended headers say about the next entry.
#[derive(Debug, Default)]
pub(super) struct Extensions {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    /// Seconds and nanoseconds.
    pub(super) mtime: Option<(i64, u32)>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Says that the file is sparse.
    pub(super) sparse: Option<SparseRecords>,
}

impl Extensions {
    /// Adds the records of one header.
    pub(super) fn read(&mut self, mut bytes: &[u8]) -> LayerResult<()> {
        while !bytes.is_empty() {
            let Some((key, value, rest)) = record(bytes) else {
                return invalid("an extended header is not well-formed");
            };
            self.record(key, value)?;
            bytes = rest;
        }
        Ok(())
    }

    fn record(&mut self, key: &[u8], value: &[u8]) -> LayerResult<()> {
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(number(value)?),
            b"uid" => self.uid = Some(number(value)?),
            b"gid" => self.gid = Some(number(value)?),
            b"mtime" => self.mtime = Some(time(value)?),
            _ => {
                if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                    let sparse = self.sparse.get_or_insert_default();
                    return Self::sparse(sparse, key, value);
                }
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattr(name, value)?;
                }
            }
        }
        Ok(())
    }

    /// GNU tar's formats 0.0, 0.1 and 1.0 (its manual, "PAX Format").
    fn sparse(sparse: &mut SparseRecords, key: &[u8], value: &[u8]) -> LayerResult<()> {
        if sparse.numbers.len() >= MAX_SEGMENTS.saturating_mul(2) {
            return invalid("a sparse file has too many segments");
        }
        match key {
            b"name" => sparse.name = Some(value.to_vec()),
            b"size" | b"realsize" => sparse.size = Some(number(value)?),
            b"offset" | b"numbytes" => sparse.numbers.push(number(value)?),
            b"map" => {
                let numbers = value.split(|byte| *byte == b',').take(MAX_SEGMENTS * 2 + 1);
                sparse.numbers = numbers.map(number).collect::<LayerResult<_>>()?;
            }
            b"major" => sparse.major = number(value)?,
            _ => {}
        }
        Ok(())
    }

    fn xattr(&mut self, name: &[u8], value: &[u8]) -> LayerResult<()> {
        if name.is_empty() || name.len() > MAX_XATTR_NAME || name.contains(&0) {
            return invalid("an extended attribute has no usable name");
        }
        if value.len() > MAX_XATTR_VALUE || self.xattrs.len() >= MAX_XATTRS {
            return invalid("a file has too many or too large extended attributes");
        }
        self.xattrs.push((name.to_vec(), value.to_vec()));
        Ok(())
    }
}

/// Splits `length SP key=value LF` from what follows.
fn record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().take(20).position(|byte| *byte == b' ')?;
    let length: usize = std::str::from_utf8(bytes.get(..space)?)
        .ok()?
        .parse()
        .ok()?;
    let rest = bytes.get(length..)?;
    let body = bytes
        .get(space.checked_add(1)?..length)?
        .strip_suffix(b"\n")?;
    let equals = body.iter().position(|byte| *byte == b'=')?;
    Some((
        body.get(..equals)?,
        body.get(equals.checked_add(1)?..)?,
        rest,
    ))
}

pub(super) fn number(value: &[u8]) -> LayerResult<u64> {
    match std::str::from_utf8(value)
        .ok()
        .and_then(|text| text.parse().ok())
    {
        Some(number) => Ok(number),
        None => invalid("an extended header has a number that is none"),
    }
}

/// Decimal seconds with an optional fraction, as seconds rounded down and nanoseconds.
fn time(value: &[u8]) -> LayerResult<(i64, u32)> {
    let parse = || {
        let text = std::str::from_utf8(value).ok()?;
        let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
        let digits: String = fraction
            .chars()
            .chain("000000000".chars())
            .take(9)
            .collect();
        let seconds: i64 = seconds.parse().ok()?;
        let nanoseconds: u32 = digits.parse().ok()?;
        if text.starts_with('-') && nanoseconds > 0 {
            return Some((
                seconds.checked_sub(1)?,
                1_000_000_000_u32.checked_sub(nanoseconds)?,
            ));
        }
        Some((seconds, nanoseconds))
    };
    match parse() {
        Some(time) => Ok(time),
        None => invalid("an extended header has a time that is none"),
    }
}
