//! What is behind a VM's slots: loop devices, shown as `/sys/block` shows disks.
#![allow(unsafe_code)] // The requests of loop devices have no safe wrapper.

use crate::DISKS;
use anyhow::{Context, Result};
use bulkhead_agent::sys::ioctl::block_size;
use bulkhead_vmm_api::DiskSlot;
use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// The largest unit of a disk's size.
const SECTOR: u64 = 512;

// loop(4), include/uapi/linux/loop.h.
const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4C82;
const LOOP_CONFIGURE: libc::c_ulong = 0x4C0A;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;

#[repr(C)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

/// The disks that are bound.
#[derive(Default)]
pub(crate) struct Disks {
    bound: HashMap<DiskSlot, Bound>,
}

/// A loop device, which its kernel frees when nobody has it open or mounted.
struct Bound {
    _device: File,
    shown: PathBuf,
}

impl Disks {
    /// The directories in which they are shown.
    pub(crate) fn new() -> Result<Self> {
        for name in ["block", "platform/devices"] {
            fs::create_dir_all(Path::new(DISKS).join(name))?;
        }
        Ok(Self::default())
    }

    pub(crate) fn bind(&mut self, slot: DiskSlot, file: &OwnedFd) -> Result<()> {
        anyhow::ensure!(!self.bound.contains_key(&slot), "The slot is not empty");
        let (number, device) = attach(file, matches!(slot, DiskSlot::ReadOnly(_)))
            .context("Cannot set a loop device up")?;
        let sectors = block_size(&device)? / SECTOR;
        let shown = Path::new(DISKS).join(format!("block/loop{number}"));
        fs::create_dir(&shown)?;
        fs::write(shown.join("size"), sectors.to_string())?;
        // Last: with it the disk is found.
        fs::write(shown.join("serial"), slot.serial())?;
        let bound = Bound {
            _device: device,
            shown,
        };
        self.bound.insert(slot, bound);
        Ok(())
    }

    pub(crate) fn unbind(&mut self, slot: DiskSlot) -> Result<()> {
        if let Some(bound) = self.bound.remove(&slot) {
            fs::remove_dir_all(&bound.shown)?;
        }
        Ok(())
    }
}

/// Finds a free loop device for a file.
fn attach(file: &OwnedFd, read_only: bool) -> io::Result<(i32, File)> {
    let control = File::options()
        .read(true)
        .write(true)
        .open("/dev/loop-control")?;
    let access = if read_only { LO_FLAGS_READ_ONLY } else { 0 };
    let raw = u32::try_from(file.as_raw_fd()).map_err(io::Error::other)?;
    loop {
        // SAFETY: the request takes no argument.
        let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
        if number < 0 {
            return Err(io::Error::last_os_error());
        }
        let device = File::options()
            .read(true)
            .write(!read_only)
            .open(format!("/dev/loop{number}"))?;
        // SAFETY: a structure of numbers, for which all zeroes is a value.
        let mut config: LoopConfig = unsafe { std::mem::zeroed() };
        config.fd = raw;
        config.info.flags = access | LO_FLAGS_AUTOCLEAR;
        // SAFETY: the pointer is to the structure that the request reads.
        let done = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) };
        if done >= 0 {
            return Ok((number, device));
        }
        let error = io::Error::last_os_error();
        // Another pod was quicker, and has that one.
        if error.raw_os_error() != Some(libc::EBUSY) {
            return Err(error);
        }
    }
}
