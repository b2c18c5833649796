//! Which image stands behind which read-only slot of a pod.
//!
//! Containers of one image share its slot; it is emptied when the last of them is removed.

use crate::place::Place;
use crate::{Result, SandboxError};
use bulkhead_vmm_api::DiskSlot;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use tokio::sync::Mutex;

/// The read-only slots of one pod.
pub(crate) struct ImageDisks {
    pod: String,
    count: u8,
    slots: Mutex<BTreeMap<u8, Bound>>,
}

struct Bound {
    image_id: String,
    /// The ids of those who use it. Empty only while emptying the slot has failed.
    containers: BTreeSet<String>,
}

impl ImageDisks {
    pub(crate) fn new(pod: &str, count: u8) -> Self {
        Self {
            pod: pod.to_owned(),
            count,
            slots: Mutex::default(),
        }
    }

    /// Binds an image for a container, which may have it already, and tells the slot. The lock is held
    /// over the VMM's answer: a second container of the image must not start before the disk is there.
    pub(crate) async fn take(
        &self,
        place: &dyn Place,
        container: &str,
        image_id: &str,
        disk: OwnedFd,
    ) -> Result<DiskSlot> {
        let mut slots = self.slots.lock().await;
        let found = slots
            .iter_mut()
            .find(|(_, bound)| bound.image_id == image_id);
        if let Some((index, bound)) = found {
            bound.containers.insert(container.to_owned());
            return Ok(DiskSlot::ReadOnly(*index));
        }
        let free = (0..self.count).find(|index| !slots.contains_key(index));
        let index = free.ok_or_else(|| SandboxError::NoSlot {
            pod: self.pod.clone(),
            kind: "read-only",
            count: self.count,
            option: "read_only_slots",
        })?;
        place.bind_disk(DiskSlot::ReadOnly(index), disk).await?;
        slots.insert(
            index,
            Bound {
                image_id: image_id.to_owned(),
                containers: [container.to_owned()].into(),
            },
        );
        Ok(DiskSlot::ReadOnly(index))
    }

    /// Notes a container that was there before this daemon started.
    pub(crate) async fn adopt(&self, index: u8, container: &str, image_id: &str) {
        let mut slots = self.slots.lock().await;
        slots
            .entry(index)
            .or_insert_with(|| Bound {
                image_id: image_id.to_owned(),
                containers: BTreeSet::new(),
            })
            .containers
            .insert(container.to_owned());
    }

    /// Gives back all that a container has; the guest must have unmounted what nobody else uses. Can be
    /// called again after it has failed.
    pub(crate) async fn give_back(&self, place: &dyn Place, container: &str) -> Result<()> {
        let mut slots = self.slots.lock().await;
        let mut unused = Vec::new();
        for (index, bound) in slots.iter_mut() {
            bound.containers.remove(container);
            if bound.containers.is_empty() {
                unused.push(*index);
            }
        }
        for index in unused {
            place.unbind_disk(DiskSlot::ReadOnly(index)).await?;
            slots.remove(&index);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
