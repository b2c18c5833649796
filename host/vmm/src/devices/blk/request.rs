//! A virtio-blk request (virtio 1.2, 5.2.6), from its chain to its status.
//!
//! A request is a 16-byte header, data, and a status byte at the end of the writable part. The
//! header is copied once. Positions are checked against the capacity in sectors without overflow.

use super::{MAX_DISCARD, MAX_ZEROES, SECTOR};
use crate::machine::memory::GuestRam;
use crate::virtio::buffers::{Buffers, Chain};
use std::io;

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
pub(super) enum Status {
    Ok = 0,
    IoError = 1,
    Unsupported = 2,
}

/// What requests are held against.
#[derive(Debug, Clone, Copy)]
pub(super) struct Target<'a> {
    pub(super) ram: &'a GuestRam,
    pub(super) read_only: bool,
    /// The capacity; 0 when the slot is empty.
    pub(super) sectors: u64,
}

/// A request that was understood.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) head: u16,
    /// Where the status goes: one byte.
    pub(super) status: Buffers,
    /// What is to be done, or why not.
    pub(super) work: Result<Work, Status>,
}

/// What a request wants. Offsets and lengths are in bytes and within the capacity.
#[derive(Debug)]
pub(super) enum Work {
    /// Fill the buffers.
    Read { to: Buffers, offset: u64 },
    /// Write the buffers.
    Write { from: Buffers, offset: u64 },
    /// What was written before must survive a crash of the host.
    Flush,
    /// The name of the disk.
    Identify { to: Buffers },
    /// The content of the range does not matter any more.
    Discard { offset: u64, length: u64 },
    /// The range reads as zeroes from now on.
    Zero {
        offset: u64,
        length: u64,
        /// Whether its space may be given back.
        unmap: bool,
    },
}

impl Work {
    /// Bytes of data that this moves, for limits.
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Self::Read { to, .. } => to.len().into(),
            Self::Write { from, .. } => from.len().into(),
            // They may have to be written.
            Self::Zero { length, .. } => *length,
            Self::Flush | Self::Identify { .. } | Self::Discard { .. } => 0,
        }
    }
}

/// Reads a request; nothing is done yet. `None` when there is no header or no room for a status, so
/// that it cannot be answered.
pub(super) fn parse(target: &Target<'_>, chain: &mut Chain) -> Option<Request> {
    let status = chain.writable.take_back(1)?;
    let mut header = [0; 16];
    chain.readable.read(target.ram, &mut header).ok()?;
    let [t0, t1, t2, t3, _, _, _, _, s @ ..] = header;
    let (kind, sector) = (u32::from_le_bytes([t0, t1, t2, t3]), u64::from_le_bytes(s));
    let work = match kind {
        IN => {
            let to = std::mem::take(&mut chain.writable);
            locate(target, sector, to.len().into()).map(|offset| Work::Read { to, offset })
        }
        OUT if target.read_only => Err(Status::IoError),
        OUT => {
            let from = std::mem::take(&mut chain.readable);
            locate(target, sector, from.len().into()).map(|offset| Work::Write { from, offset })
        }
        FLUSH if target.sectors == 0 => Err(Status::IoError),
        FLUSH => Ok(Work::Flush),
        GET_ID if chain.writable.len() as usize >= ID_LENGTH => Ok(Work::Identify {
            to: std::mem::take(&mut chain.writable),
        }),
        GET_ID => Err(Status::IoError),
        DISCARD | WRITE_ZEROES => range(target, kind, &mut chain.readable),
        _ => Err(Status::Unsupported),
    };
    Some(Request {
        head: chain.head,
        status,
        work,
    })
}

/// The byte offset, if `length` bytes at `sector` lie within the disk.
fn locate(target: &Target<'_>, sector: u64, length: u64) -> Result<u64, Status> {
    let end = sector.checked_add(length.div_ceil(SECTOR));
    let inside = length.is_multiple_of(SECTOR) && end.is_some_and(|end| end <= target.sectors);
    // A disk is not empty, and no file is longer than an offset can say.
    let offset = sector.checked_mul(SECTOR);
    match offset {
        Some(offset) if inside && target.sectors > 0 => Ok(offset),
        _ => Err(Status::IoError),
    }
}

/// DISCARD and WRITE_ZEROES: one segment of 16 bytes (sector, number of sectors, flags).
fn range(target: &Target<'_>, kind: u32, buffers: &mut Buffers) -> Result<Work, Status> {
    if target.read_only {
        return Err(Status::Unsupported);
    }
    let mut segment = [0; 16];
    if buffers.len() as usize != segment.len() {
        return Err(Status::Unsupported);
    }
    buffers
        .read(target.ram, &mut segment)
        .map_err(|_| Status::IoError)?;
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
    // An unknown flag, or `unmap` in a discard, must be refused like this (5.2.6.2).
    if flags & !allowed != 0 {
        return Err(Status::Unsupported);
    }
    let length = u64::from(count) * SECTOR;
    let offset = locate(target, sector, length)?;
    if kind == DISCARD {
        Ok(Work::Discard { offset, length })
    } else {
        let unmap = flags & FLAG_UNMAP != 0;
        Ok(Work::Zero {
            offset,
            length,
            unmap,
        })
    }
}

/// Writes the disk's name, cut or filled with zeroes to 20 bytes; answers how many were written.
pub(super) fn identify(ram: &GuestRam, name: &str, to: &mut Buffers) -> Result<u32, io::Error> {
    let mut id = [0; ID_LENGTH];
    for (to, from) in id.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    to.write(ram, &id)?;
    Ok(ID_LENGTH as u32)
}
