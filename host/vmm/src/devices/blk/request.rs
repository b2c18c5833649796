//! Serving one virtio-blk request (virtio 1.2, 5.2.6).
//!
//! A request is a 16-byte header, data, and a status byte at the end of the writable part. The
//! header is copied once. Positions are checked against the capacity in sectors without overflow.

use super::{MAX_DISCARD, MAX_ZEROES, SECTOR};
use crate::machine::memory::GuestRam;
use crate::virtio::buffers::{Buffers, Call, Chain};
use rustix::fs::FallocateFlags;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;
const FLAG_UNMAP: u32 = 1;

/// Length of the answer to GET_ID.
const ID_LENGTH: usize = 20;

/// How a request ended, as its status byte says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Status {
    Ok = 0,
    IoError = 1,
    Unsupported = 2,
}

/// What requests work on.
#[derive(Debug)]
pub(super) struct Target<'a> {
    pub(super) ram: &'a GuestRam,
    /// Nothing when the slot is empty.
    pub(super) file: Option<&'a File>,
    pub(super) read_only: bool,
    pub(super) sectors: u64,
    pub(super) name: &'a str,
}

/// A request that was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Served {
    /// Bytes written to the guest, with the status byte.
    pub(super) written: u32,
    /// Bytes of data moved either way.
    pub(super) moved: u64,
    /// Whether the status was OK.
    pub(super) ok: bool,
}

/// Serves a request; `None` when there is no header or no room for a status, so that it cannot be
/// answered.
pub(super) fn serve(target: &Target<'_>, chain: &mut Chain) -> Option<Served> {
    let mut status = chain.writable.take_back(1)?;
    let mut header = [0; 16];
    chain.readable.read(target.ram, &mut header).ok()?;
    let [t0, t1, t2, t3, _, _, _, _, s @ ..] = header;
    let (kind, sector) = (u32::from_le_bytes([t0, t1, t2, t3]), u64::from_le_bytes(s));

    let readable = chain.readable.len();
    let outcome = match kind {
        IN => read(target, sector, &mut chain.writable),
        OUT => write(target, sector, &mut chain.readable).map(|()| 0),
        FLUSH => flush(target).map(|()| 0),
        GET_ID => identify(target, &mut chain.writable),
        DISCARD | WRITE_ZEROES => clear(target, kind, &mut chain.readable).map(|()| 0),
        _ => Err(Status::Unsupported),
    };
    let (filled, code) = match outcome {
        Ok(filled) => (filled, Status::Ok),
        Err(code) => (0, code),
    };
    status.write(target.ram, &[code as u8]).ok()?;
    let ok = code == Status::Ok;
    let moved = match kind {
        OUT if ok => u64::from(readable),
        _ => u64::from(filled),
    };
    Some(Served {
        written: filled.saturating_add(1),
        moved,
        ok,
    })
}

fn io_error(_: io::Error) -> Status {
    Status::IoError
}

/// The file, if `length` bytes at `sector` lie within it, and the byte offset.
fn locate<'a>(target: &Target<'a>, sector: u64, length: u64) -> Result<(&'a File, u64), Status> {
    let file = target.file.ok_or(Status::IoError)?;
    let end = sector.checked_add(length.div_ceil(SECTOR));
    let inside = length.is_multiple_of(SECTOR) && end.is_some_and(|end| end <= target.sectors);
    if inside {
        Ok((file, sector * SECTOR))
    } else {
        Err(Status::IoError)
    }
}

fn read(target: &Target<'_>, sector: u64, buffers: &mut Buffers) -> Result<u32, Status> {
    let length = buffers.len();
    let (file, offset) = locate(target, sector, u64::from(length))?;
    transfer(target, file, offset, buffers, Call::ReadAt)?;
    Ok(length)
}

fn write(target: &Target<'_>, sector: u64, buffers: &mut Buffers) -> Result<(), Status> {
    if target.read_only {
        return Err(Status::IoError);
    }
    let (file, offset) = locate(target, sector, u64::from(buffers.len()))?;
    transfer(target, file, offset, buffers, Call::WriteAt)
}

/// Moves all of the buffers, however many calls it takes.
fn transfer(
    target: &Target<'_>,
    file: &File,
    mut offset: u64,
    buffers: &mut Buffers,
    call: impl Fn(i64) -> Call,
) -> Result<(), Status> {
    while !buffers.is_empty() {
        let position = i64::try_from(offset).map_err(|_| Status::IoError)?;
        let done = buffers
            .vectored(target.ram, file.as_fd(), call(position))
            .map_err(io_error)?;
        if done == 0 {
            // The file has become shorter than the capacity.
            return Err(Status::IoError);
        }
        buffers.take_front(done);
        offset += u64::from(done);
    }
    Ok(())
}

fn flush(target: &Target<'_>) -> Result<(), Status> {
    match target.file {
        Some(_) if target.read_only => Ok(()),
        Some(file) => file.sync_data().map_err(io_error),
        None => Err(Status::IoError),
    }
}

fn identify(target: &Target<'_>, buffers: &mut Buffers) -> Result<u32, Status> {
    let mut id = [0; ID_LENGTH];
    for (to, from) in id.iter_mut().zip(target.name.bytes()) {
        *to = from;
    }
    buffers.write(target.ram, &id).map_err(io_error)?;
    Ok(ID_LENGTH as u32)
}

/// DISCARD and WRITE_ZEROES: one segment of 16 bytes (sector, number of sectors, flags).
fn clear(target: &Target<'_>, kind: u32, buffers: &mut Buffers) -> Result<(), Status> {
    if target.read_only {
        return Err(Status::Unsupported);
    }
    let mut segment = [0; 16];
    if buffers.len() as usize != segment.len() {
        return Err(Status::Unsupported);
    }
    buffers.read(target.ram, &mut segment).map_err(io_error)?;
    let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, f @ ..] = segment;
    let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
    let count = u32::from_le_bytes([n0, n1, n2, n3]);
    let flags = u32::from_le_bytes(f);
    let (most, allowed) = if kind == DISCARD {
        (MAX_DISCARD, 0)
    } else {
        (MAX_ZEROES, FLAG_UNMAP)
    };
    if count > most {
        return Err(Status::IoError);
    }
    if flags & !allowed != 0 {
        return Err(Status::Unsupported);
    }
    let length = u64::from(count) * SECTOR;
    let (file, offset) = locate(target, sector, length)?;
    if length == 0 {
        return Ok(());
    }
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let zero = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
    let how = if kind == DISCARD || flags & FLAG_UNMAP != 0 {
        punch
    } else {
        zero
    };
    match rustix::fs::fallocate(file, how, offset, length) {
        Ok(()) => Ok(()),
        // A discard is a hint; zeroes are not.
        Err(rustix::io::Errno::OPNOTSUPP) if kind == DISCARD => Ok(()),
        Err(rustix::io::Errno::OPNOTSUPP) => write_zeroes(file, offset, length),
        Err(_) => Err(Status::IoError),
    }
}

fn write_zeroes(file: &File, offset: u64, length: u64) -> Result<(), Status> {
    static ZEROES: [u8; 64 * 1024] = [0; 64 * 1024];
    let end = offset + length;
    let mut offset = offset;
    while offset < end {
        let size = usize::try_from(end - offset)
            .unwrap_or(usize::MAX)
            .min(ZEROES.len());
        let part = ZEROES.get(..size).unwrap_or_default();
        file.write_all_at(part, offset).map_err(io_error)?;
        offset += size as u64;
    }
    Ok(())
}
