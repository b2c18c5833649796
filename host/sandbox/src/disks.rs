//! What stands behind which disk slot of a pod.
//!
//! Containers of one image share its read-only slot; it is emptied when the last of them is removed. A
//! raw block volume keeps its slot until the pod ends: a later container that asks for the same device
//! of the node finds it there.

use crate::place::Place;
use crate::record::BlockVolume;
use crate::store::blocking;
use crate::volumes::DirectDevice;
use crate::{Result, SandboxError};
use bulkhead_vmm_api::DiskSlot;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use tokio::sync::Mutex;

/// The read-write slot of the pod's scratch disk.
pub(crate) const SCRATCH: DiskSlot = DiskSlot::ReadWrite(0);

/// The slots of one pod, but for that of the scratch disk.
pub(crate) struct PodDisks {
    pod: String,
    read_only: u8,
    read_write: u8,
    slots: Mutex<BTreeMap<DiskSlot, Bound>>,
}

enum Bound {
    Image {
        id: String,
        /// The ids of those who use it. Empty only while emptying the slot has failed.
        containers: BTreeSet<String>,
    },
    Device {
        /// `st_rdev` on the node.
        number: u64,
        /// The directory of the direct volume that it is.
        volume: Option<String>,
    },
}

impl PodDisks {
    /// A pod with so many slots of each kind.
    pub(crate) fn new(pod: &str, read_only: u8, read_write: u8) -> Self {
        Self {
            pod: pod.to_owned(),
            read_only,
            read_write,
            slots: Mutex::default(),
        }
    }

    /// Binds an image for a container, which may have it already, and tells the slot. The lock is held
    /// over the VMM's answer: a second container of the image must not start before the disk is there.
    pub(crate) async fn take_image(
        &self,
        place: &dyn Place,
        container: &str,
        image_id: &str,
        disk: OwnedFd,
    ) -> Result<DiskSlot> {
        let mut slots = self.slots.lock().await;
        for (slot, bound) in slots.iter_mut() {
            if let Bound::Image { id, containers } = bound
                && id == image_id
            {
                containers.insert(container.to_owned());
                return Ok(*slot);
            }
        }
        let slot = self.free(&slots, false)?;
        place.bind_disk(slot, disk).await?;
        let bound = Bound::Image {
            id: image_id.to_owned(),
            containers: [container.to_owned()].into(),
        };
        slots.insert(slot, bound);
        Ok(slot)
    }

    /// Binds a block device of the node, unless the pod has it already, and tells the slot. One that was
    /// asked for once to be read and once to be written has two slots.
    pub(crate) async fn take_device(
        &self,
        place: &dyn Place,
        number: u64,
        write: bool,
        device: OwnedFd,
    ) -> Result<DiskSlot> {
        let mut slots = self.slots.lock().await;
        for (slot, volume) in of_device(&slots, number) {
            if let Some(volume) = volume {
                let problem = "a container asks for its device as a device".to_owned();
                let volume = volume.to_owned();
                return Err(SandboxError::DirectVolume { volume, problem });
            }
            if matches!(slot, DiskSlot::ReadWrite(_)) == write {
                return Ok(slot);
            }
        }
        let slot = self.free(&slots, write)?;
        place.bind_disk(slot, device).await?;
        let volume = None;
        slots.insert(slot, Bound::Device { number, volume });
        Ok(slot)
    }

    /// Binds the device of a direct volume, unless the pod has it already, and tells the slot.
    pub(crate) async fn take_volume(
        &self,
        place: &dyn Place,
        device: &Arc<DirectDevice>,
    ) -> Result<DiskSlot> {
        let mut slots = self.slots.lock().await;
        let bound = of_device(&slots, device.number).next();
        if let Some((slot, volume)) = bound {
            let same_access = matches!(slot, DiskSlot::ReadWrite(_)) == device.write;
            return match volume {
                Some(volume) if volume != device.volume => {
                    Err(device.refused(format!("its device is that of {volume} already")))
                }
                Some(_) if same_access => Ok(slot),
                Some(_) => Err(device.refused(
                    "the pod has it already, and not with the same access (ro, rw)".to_owned(),
                )),
                None => {
                    Err(device
                        .refused("a container of the pod has its device as a device".to_owned()))
                }
            };
        }
        let slot = self.free(&slots, device.write)?;
        let opening = Arc::clone(device);
        let opened = blocking(move || opening.open()).await?;
        place.bind_disk(slot, opened).await?;
        let (number, volume) = (device.number, Some(device.volume.clone()));
        slots.insert(slot, Bound::Device { number, volume });
        Ok(slot)
    }

    /// Whether there is a device of the node that the guest may write to.
    pub(crate) async fn writes_devices(&self) -> bool {
        BlockVolume::any_is_written(&self.devices().await)
    }

    fn free(&self, slots: &BTreeMap<DiskSlot, Bound>, write: bool) -> Result<DiskSlot> {
        self.row()
            .filter(|slot| matches!(slot, DiskSlot::ReadWrite(_)) == write)
            .find(|slot| !slots.contains_key(slot))
            .ok_or_else(|| SandboxError::NoSlot {
                pod: self.pod.clone(),
                kind: if write { "read-write" } else { "read-only" },
                count: if write {
                    self.read_write
                } else {
                    self.read_only
                },
                option: if write {
                    "read_write_slots"
                } else {
                    "read_only_slots"
                },
            })
    }

    /// All slots that there are.
    fn row(&self) -> impl Iterator<Item = DiskSlot> {
        let read_only = (0..self.read_only).map(DiskSlot::ReadOnly);
        let read_write = (0..self.read_write).map(DiskSlot::ReadWrite);
        let all = read_only.chain(read_write);
        all.filter(|slot| *slot != SCRATCH)
    }

    /// Notes a container that was there before this daemon started.
    pub(crate) async fn adopt_image(&self, slot: u8, container: &str, image_id: &str) {
        let mut slots = self.slots.lock().await;
        let bound = slots
            .entry(DiskSlot::ReadOnly(slot))
            .or_insert_with(|| Bound::Image {
                id: image_id.to_owned(),
                containers: BTreeSet::new(),
            });
        if let Bound::Image { containers, .. } = bound {
            containers.insert(container.to_owned());
        }
    }

    /// Notes the devices that were bound before this daemon started.
    pub(crate) async fn adopt_devices(&self, volumes: &[BlockVolume]) {
        let mut slots = self.slots.lock().await;
        for BlockVolume {
            slot,
            number,
            volume,
        } in volumes
        {
            let (number, volume) = (*number, volume.clone());
            slots.insert(*slot, Bound::Device { number, volume });
        }
    }

    /// Empties what nobody is known to use: an earlier daemon ended between binding a disk and
    /// remembering it, and so has told nobody of it.
    pub(crate) async fn empty_unknown(&self, place: &dyn Place) -> Result<()> {
        let slots = self.slots.lock().await;
        for slot in self.row().filter(|slot| !slots.contains_key(slot)) {
            place.unbind_disk(slot).await?;
        }
        Ok(())
    }

    /// The devices that are bound.
    pub(crate) async fn devices(&self) -> Vec<BlockVolume> {
        let slots = self.slots.lock().await;
        let devices = slots.iter().filter_map(|(slot, bound)| match bound {
            Bound::Device { number, volume } => Some(BlockVolume {
                slot: *slot,
                number: *number,
                volume: volume.clone(),
            }),
            Bound::Image { .. } => None,
        });
        devices.collect()
    }

    /// Gives back the images that a container has; the guest must have unmounted what nobody else uses.
    /// Can be called again after it has failed.
    pub(crate) async fn give_back(&self, place: &dyn Place, container: &str) -> Result<()> {
        let mut slots = self.slots.lock().await;
        let mut unused = Vec::new();
        for (slot, bound) in slots.iter_mut() {
            if let Bound::Image { containers, .. } = bound {
                containers.remove(container);
                if containers.is_empty() {
                    unused.push(*slot);
                }
            }
        }
        for slot in unused {
            place.unbind_disk(slot).await?;
            slots.remove(&slot);
        }
        Ok(())
    }
}

/// The slots of a device of the node, with the direct volume that each is.
fn of_device(
    slots: &BTreeMap<DiskSlot, Bound>,
    number: u64,
) -> impl Iterator<Item = (DiskSlot, Option<&str>)> {
    slots.iter().filter_map(move |(slot, bound)| match bound {
        Bound::Device {
            number: other,
            volume,
        } if *other == number => Some((*slot, volume.as_deref())),
        _ => None,
    })
}

#[cfg(test)]
mod tests;
