//! Disks: fixed virtio-blk slots that boot empty and get their content later.
//!
//! A slot that was never used has no driver, which spares the guest's memory: its window says that there
//! is no device, until the host has put something behind it. Then the driver must be told to look again.
//! The slot's platform device is found by its ACPI unique ID, which is the serial.
//!
//! A disk is found by the serial that the VMM gives it (`/sys/block/*/serial`, which asks the
//! device each time). Something is bound to it when its capacity is not zero. The kernel sends no
//! uevent for a change from or to zero (`set_capacity_and_notify` in block/genhd.c returns before
//! it); what it does send is a log record, "detected capacity change". So a waiter sleeps on
//! `/dev/kmsg` and looks again at sysfs, which alone is believed, whenever anything was logged.

use crate::deadline::Deadline;
use crate::error::Context;
use crate::sys::fd::Fd;
use crate::{Error, Result, id};
use rustix::fs::{Mode, OFlags, SeekFrom};
use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// A disk with something bound to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Its node, as `/dev/vda`.
    pub node: PathBuf,
    /// Capacity in bytes.
    pub size: u64,
}

/// Where disks are looked for.
#[derive(Debug, Clone)]
pub struct Disks {
    sys_block: PathBuf,
    dev: PathBuf,
    /// Where the windows of the machine are, and their driver.
    platform: PathBuf,
}

impl Default for Disks {
    fn default() -> Self {
        Self {
            sys_block: "/sys/block".into(),
            dev: "/dev".into(),
            platform: "/sys/bus/platform".into(),
        }
    }
}

impl Disks {
    /// Disks that are shown in a directory as `/sys/block` shows a guest's, for an agent that is not in one.
    /// Their nodes are where a guest's are; none of them waits for its driver.
    #[must_use]
    pub fn shown_in(directory: &Path) -> Self {
        Self {
            sys_block: directory.join("block"),
            platform: directory.join("platform"),
            ..Self::default()
        }
    }

    /// The disk with this serial, once something is bound to it. That the host must have done before, if it
    /// is for the first time.
    pub async fn wait(&self, serial: &str, deadline: Deadline) -> Result<Disk> {
        check_serial(serial)?;
        if let Some(disk) = self.find(serial)? {
            return Ok(disk);
        }
        if self.give_driver(serial)?
            && let Some(disk) = self.find(serial)?
        {
            return Ok(disk);
        }
        let waited = || format!("Disk {serial} is still empty or missing");
        deadline.limit(waited, self.wait_by_log(serial, 1)).await?
    }

    /// The disk with this serial, once it has at least `bytes`.
    pub async fn wait_for_size(
        &self,
        serial: &str,
        bytes: u64,
        deadline: Deadline,
    ) -> Result<Disk> {
        check_serial(serial)?;
        let waited = || format!("Disk {serial} still has less than {bytes} bytes");
        let grown = self.wait_by_log(serial, bytes);
        deadline.limit(waited, grown).await?
    }

    /// Has the driver look at a slot that has none; answers whether it took it. The disk is there then.
    fn give_driver(&self, serial: &str) -> Result<bool> {
        let Some(device) = self.without_driver(serial)? else {
            return Ok(false);
        };
        let bind = self.platform.join("drivers/virtio-mmio/bind");
        let written = File::options()
            .write(true)
            .open(bind)
            .and_then(|mut bind| bind.write_all(device.as_encoded_bytes()));
        match written {
            Ok(()) => Ok(true),
            Err(error) => match error.raw_os_error() {
                // The window says that there is no device.
                Some(libc::ENODEV) => Err(Error::Precondition(format!(
                    "Nothing was ever bound to disk slot {serial}"
                ))),
                // Somebody was quicker.
                Some(libc::EBUSY) => Ok(true),
                _ => Err(error).context(|| format!("Cannot give disk slot {serial} its driver")),
            },
        }
    }

    /// The name of the slot's platform device, if it has no driver.
    fn without_driver(&self, serial: &str) -> Result<Option<OsString>> {
        let entries = std::fs::read_dir(self.platform.join("devices"))
            .context(|| "Cannot list the devices")?;
        for entry in entries.flatten() {
            let path = entry.path();
            let id = read(&path.join("firmware_node/uid"));
            if id.is_some_and(|id| id.trim_end() == serial) {
                let free = !path.join("driver").exists();
                return Ok(free.then(|| entry.file_name()));
            }
        }
        Ok(None)
    }

    async fn wait_by_log(&self, serial: &str, bytes: u64) -> Result<Disk> {
        let what = || "Cannot watch the kernel log for disks";
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let log = rustix::fs::open("/dev/kmsg", flags, Mode::empty()).context(what)?;
        rustix::fs::seek(&log, SeekFrom::End(0)).context(what)?;
        let log = Fd::new(log).context(what)?;
        let mut record = vec![0; 8192];
        loop {
            let disk = self.find(serial)?;
            if let Some(disk) = disk.filter(|disk| disk.size >= bytes) {
                return Ok(disk);
            }
            // EPIPE says that records were overwritten unread: as good as a record.
            if let Err(error) = log.read(&mut record).await
                && error.raw_os_error() != Some(libc::EPIPE)
            {
                return Err(error).context(what);
            }
            while matches!(log.read_now(&mut record), Ok(Some(1..))) {}
        }
    }

    /// The disk with this serial, if something is bound to it now.
    pub fn find(&self, serial: &str) -> Result<Option<Disk>> {
        let entries = std::fs::read_dir(&self.sys_block).context(|| "Cannot list the disks")?;
        for entry in entries.flatten() {
            let path = entry.path();
            let is_it = read(&path.join("serial")).is_some_and(|text| text.trim_end() == serial);
            if !is_it {
                continue;
            }
            let sectors = read(&path.join("size")).and_then(|text| text.trim().parse::<u64>().ok());
            if let Some(sectors @ 1..) = sectors {
                return Ok(Some(Disk {
                    node: self.dev.join(entry.file_name()),
                    size: sectors.saturating_mul(512),
                }));
            }
        }
        Ok(None)
    }
}

/// Checks a serial: a name, and no longer than what virtio-blk can carry.
pub fn check_serial(serial: &str) -> Result<()> {
    if serial.len() <= 20 && id::check(serial) {
        return Ok(());
    }
    Err(Error::Invalid(format!(
        "Disk serial {} is not valid",
        id::quote(serial)
    )))
}

fn read(path: &Path) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

#[cfg(test)]
mod tests;
