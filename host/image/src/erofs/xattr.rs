//! Extended attributes: behind their inode, or shared by many.

use super::format::BLOCK;
use super::{ErofsResult, FileKind, limit};
use std::collections::HashMap;

/// Name and value.
pub(crate) type Xattr = (Vec<u8>, Vec<u8>);
/// Sorted by name, each name once.
pub(crate) type Xattrs = Vec<Xattr>;

/// Of one inode. The format's own end is at 256 KiB.
const MAX_BYTES: usize = 128 << 10;
const HEADER: usize = 12;
const MAX_SHARED: usize = 255;
/// What a layer remembers to find attributes that come again.
const MAX_REMEMBERED: usize = 1 << 20;

/// Attributes that mean something in a guest. `trusted.overlay.*` steers the overlay above the
/// image and is not the image's to set; labels of the build machine's security modules are void.
/// The kernel knows `user.*` for files and directories only, access lists for all but links and
/// default lists for directories.
pub(crate) fn is_kept(key: &[u8], kind: FileKind) -> bool {
    let is = |prefix: &[u8]| key.len() > prefix.len() && key.starts_with(prefix);
    match key {
        b"security.capability" => true,
        b"system.posix_acl_access" => kind != FileKind::Symlink,
        b"system.posix_acl_default" => kind == FileKind::Directory,
        _ if is(b"user.") => matches!(kind, FileKind::File | FileKind::Directory),
        _ => is(b"trusted.") && !key.starts_with(b"trusted.overlay."),
    }
}

/// The number that stands for the start of the name, and the rest of it.
fn split(name: &[u8]) -> Option<(u8, &[u8])> {
    Some(match name {
        b"system.posix_acl_access" => (2, b""),
        b"system.posix_acl_default" => (3, b""),
        _ => [
            (1, b"user.".as_slice()),
            (4, b"trusted."),
            (6, b"security."),
        ]
        .into_iter()
        .find_map(|(index, prefix)| Some((index, name.strip_prefix(prefix)?)))?,
    })
}

/// One entry, padded to 4 bytes.
fn entry((name, value): &Xattr) -> ErofsResult<Vec<u8>> {
    let Some((index, rest)) = split(name) else {
        return limit("an extended attribute has a name that no file system knows");
    };
    let (Ok(name_length), Ok(value_length)) =
        (u8::try_from(rest.len()), u16::try_from(value.len()))
    else {
        return limit("an extended attribute has more than 65,535 bytes");
    };
    let mut out = vec![name_length, index];
    out.extend(value_length.to_le_bytes());
    out.extend_from_slice(rest);
    out.extend_from_slice(value);
    out.resize(out.len().next_multiple_of(4), 0);
    Ok(out)
}

/// Where an attribute that came before is.
#[derive(Clone, Copy)]
enum Seen {
    /// Behind one inode.
    Once,
    /// In 4 bytes from the start of the file.
    Shared(u32),
}

/// Finds attributes that come again within one layer.
#[derive(Default)]
pub(super) struct Sharing {
    seen: HashMap<Vec<u8>, Seen>,
    remembered: usize,
}

impl Sharing {
    /// What stands behind an inode with these attributes. `store` puts the bytes of a shared
    /// entry into the file and returns where, or nothing if there is no place for it.
    pub(super) fn encode(
        &mut self,
        xattrs: &[Xattr],
        mut store: impl FnMut(&[u8]) -> ErofsResult<u64>,
    ) -> ErofsResult<Vec<u8>> {
        if xattrs.is_empty() {
            return Ok(Vec::new());
        }
        let mut shared: Vec<u32> = Vec::new();
        let mut own = Vec::new();
        for xattr in xattrs {
            let bytes = entry(xattr)?;
            match self.place(&bytes, &mut store)? {
                Some(id) if shared.len() < MAX_SHARED => shared.push(id),
                _ => own.extend(bytes),
            }
        }
        let mut out = vec![0; HEADER];
        if let Some(count) = out.get_mut(4) {
            *count = u8::try_from(shared.len()).unwrap_or(0);
        }
        out.extend(shared.iter().flat_map(|id| id.to_le_bytes()));
        out.extend(own);
        if out.len() > MAX_BYTES {
            return limit(format!(
                "a file has more than {MAX_BYTES} bytes of extended attributes"
            ));
        }
        Ok(out)
    }

    fn place(
        &mut self,
        bytes: &[u8],
        store: &mut impl FnMut(&[u8]) -> ErofsResult<u64>,
    ) -> ErofsResult<Option<u32>> {
        match self.seen.get(bytes).copied() {
            Some(Seen::Shared(id)) => Ok(Some(id)),
            Some(Seen::Once) => {
                let at = store(bytes)?;
                // Numbers of shared entries reach 16 GiB.
                let id = u32::try_from(at / 4).ok();
                if let (Some(id), Some(seen)) = (id, self.seen.get_mut(bytes)) {
                    *seen = Seen::Shared(id);
                }
                Ok(id)
            }
            None => {
                let cost = bytes.len().saturating_add(64);
                let total = self.remembered.saturating_add(cost);
                // A short entry costs less behind its inode than a number and a look elsewhere.
                if bytes.len() > 16 && bytes.len() <= BLOCK as usize && total <= MAX_REMEMBERED {
                    self.remembered = total;
                    self.seen.insert(bytes.to_vec(), Seen::Once);
                }
                Ok(None)
            }
        }
    }
}
