//! Memory that can be larger than what may be used: pages that have not been touched for a while
//! go to a file without a name.

use super::spool::temporary;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

const PAGE: usize = 16 << 10;

/// Bytes with addresses from 0, all zero at first.
pub(super) struct Pager {
    pages: Vec<Page>,
    /// Pages in memory, and how many there may be.
    resident: usize,
    most: usize,
    /// Where to look for a page to evict.
    hand: usize,
    directory: PathBuf,
    file: Option<File>,
}

#[derive(Default)]
struct Page {
    bytes: Option<Box<[u8]>>,
    /// Touched since the hand passed.
    touched: bool,
    dirty: bool,
    /// The file has its content.
    stored: bool,
}

impl Pager {
    /// Keeps `memory` bytes at most; the rest goes to a file in `directory`.
    pub(super) fn new(memory: usize, directory: PathBuf) -> Self {
        Self {
            pages: Vec::new(),
            resident: 0,
            most: (memory / PAGE).max(2),
            hand: 0,
            directory,
            file: None,
        }
    }

    pub(super) fn read(&mut self, mut at: u64, mut out: &mut [u8]) -> io::Result<()> {
        while !out.is_empty() {
            let (page, offset, count) = split(at, out.len());
            let (now, later) = out.split_at_mut(count);
            let page = self.page(page)?.bytes.as_deref();
            if let Some(from) = page.and_then(|page| page.get(offset..offset.saturating_add(count)))
            {
                now.copy_from_slice(from);
            }
            (out, at) = (later, at.saturating_add(count as u64));
        }
        Ok(())
    }

    pub(super) fn write(&mut self, mut at: u64, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let (page, offset, count) = split(at, bytes.len());
            let (now, later) = bytes.split_at(count);
            let page = self.page(page)?;
            page.dirty = true;
            let to = page.bytes.as_deref_mut();
            if let Some(to) = to.and_then(|to| to.get_mut(offset..offset.saturating_add(count))) {
                to.copy_from_slice(now);
            }
            (bytes, at) = (later, at.saturating_add(count as u64));
        }
        Ok(())
    }

    fn page(&mut self, index: usize) -> io::Result<&mut Page> {
        if index >= self.pages.len() {
            self.pages
                .resize_with(index.saturating_add(1), Page::default);
        }
        if self
            .pages
            .get(index)
            .is_none_or(|page| page.bytes.is_none())
        {
            let mut bytes = match self.resident < self.most {
                true => {
                    self.resident = self.resident.saturating_add(1);
                    vec![0; PAGE].into_boxed_slice()
                }
                false => self.evict()?,
            };
            let stored = self.pages.get(index).is_some_and(|page| page.stored);
            match &self.file {
                Some(file) if stored => {
                    file.read_exact_at(&mut bytes, (index as u64).saturating_mul(PAGE as u64))?;
                }
                _ => bytes.fill(0),
            }
            if let Some(page) = self.pages.get_mut(index) {
                page.bytes = Some(bytes);
            }
        }
        match self.pages.get_mut(index) {
            Some(page) => {
                page.touched = true;
                Ok(page)
            }
            None => Err(io::ErrorKind::OutOfMemory.into()),
        }
    }

    /// Takes the memory of the next page that was not touched since the last round.
    fn evict(&mut self) -> io::Result<Box<[u8]>> {
        loop {
            let index = self.hand;
            self.hand = match index.saturating_add(1) {
                next if next < self.pages.len() => next,
                _ => 0,
            };
            let Some(page) = self.pages.get_mut(index) else {
                continue;
            };
            if page.bytes.is_none() || std::mem::take(&mut page.touched) {
                continue;
            }
            if page.dirty {
                if self.file.is_none() {
                    self.file = Some(temporary(&self.directory)?);
                }
                if let (Some(file), Some(bytes)) = (&self.file, &page.bytes) {
                    file.write_all_at(bytes, (index as u64).saturating_mul(PAGE as u64))?;
                }
                (page.dirty, page.stored) = (false, true);
            }
            if let Some(bytes) = page.bytes.take() {
                return Ok(bytes);
            }
        }
    }
}

/// Page, offset in it and bytes up to its end or the wanted ones.
fn split(at: u64, wanted: usize) -> (usize, usize, usize) {
    let page = usize::try_from(at / PAGE as u64).unwrap_or(usize::MAX);
    let offset = usize::try_from(at % PAGE as u64).unwrap_or(0);
    (page, offset, wanted.min(PAGE - offset))
}
