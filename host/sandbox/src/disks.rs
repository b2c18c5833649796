//! Which image stands behind which read-only slot of a pod.
//!
//! Containers of one image share its slot; it is emptied when the last of them is removed.

use crate::place::Place;
use crate::{Result, SandboxError};
use bulkhead_vmm_api::DiskSlot;
use std::collections::BTreeMap;
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
    users: usize,
}

impl ImageDisks {
    pub(crate) fn new(pod: &str, count: u8) -> Self {
        Self {
            pod: pod.to_owned(),
            count,
            slots: Mutex::default(),
        }
    }

    /// Binds an image for one more container and tells the slot. The lock is held over the VMM's
    /// answer: a second container of the image must not start before the disk is there.
    pub(crate) async fn take(
        &self,
        place: &dyn Place,
        image_id: &str,
        disk: OwnedFd,
    ) -> Result<DiskSlot> {
        let mut slots = self.slots.lock().await;
        let found = slots
            .iter_mut()
            .find(|(_, bound)| bound.image_id == image_id);
        if let Some((index, bound)) = found {
            bound.users += 1;
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
                users: 1,
            },
        );
        Ok(DiskSlot::ReadOnly(index))
    }

    /// Notes a container that was there before this daemon started.
    pub(crate) async fn adopt(&self, index: u8, image_id: &str) {
        let mut slots = self.slots.lock().await;
        slots
            .entry(index)
            .or_insert_with(|| Bound {
                image_id: image_id.to_owned(),
                users: 0,
            })
            .users += 1;
    }

    /// Gives an image back; the guest must have unmounted it when the last user goes.
    pub(crate) async fn give_back(&self, place: &dyn Place, image_id: &str) -> Result<()> {
        let mut slots = self.slots.lock().await;
        let found = slots
            .iter_mut()
            .find(|(_, bound)| bound.image_id == image_id);
        let Some((&index, bound)) = found else {
            return Ok(());
        };
        bound.users -= 1;
        if bound.users > 0 {
            return Ok(());
        }
        place.unbind_disk(DiskSlot::ReadOnly(index)).await?;
        slots.remove(&index);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
