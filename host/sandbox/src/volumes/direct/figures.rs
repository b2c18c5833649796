//! What CSI drivers ask of direct volumes, whose files they cannot see: how full they are, and to grow.

use crate::sandbox::Running;
use crate::{Result, SandboxError, Sandboxes};
use bulkhead_agent_api::agent::VolumeFigures;
use bulkhead_vmm_api::DiskSlot;
use std::path::Path;
use std::sync::Arc;

impl Sandboxes {
    /// How full a direct volume is, by its path on the node: its directory, or `mount` in it.
    ///
    /// # Errors
    /// [`SandboxError::NotFound`] if no pod has it; those of the agent.
    pub async fn volume_figures(&self, path: &str) -> Result<VolumeFigures> {
        let (running, slot) = self.find_volume(path)?;
        running.agent.volume_stats(&slot.serial()).await
    }

    /// Grows a direct volume to the size that its device has now, while containers use it, and tells how full it is.
    ///
    /// # Errors
    /// As for [`Self::volume_figures`], and those of the VMM.
    pub async fn grow_volume(&self, path: &str) -> Result<VolumeFigures> {
        let (running, slot) = self.find_volume(path)?;
        let bytes = running.place.measure_disk(slot).await?;
        running.agent.grow_volume(&slot.serial(), bytes).await
    }

    /// A device is one pod's at a time, and so is a volume.
    fn find_volume(&self, path: &str) -> Result<(Arc<Running>, DiskSlot)> {
        let whole = Path::new(path);
        let volume = match whole.file_name().is_some_and(|name| name == "mount") {
            true => whole.parent().unwrap_or(whole),
            false => whole,
        };
        let slot_of = |sandbox: &crate::Sandbox| {
            sandbox.read(|record, _| {
                let mut all = record.block_volumes.iter();
                let is_it = |one: &str| Path::new(one) == volume || Path::new(one) == whole;
                let found = all.find(|one| one.volume.as_deref().is_some_and(is_it));
                found.map(|one| one.slot)
            })
        };
        let found = self.sandboxes().into_iter().find_map(|sandbox| {
            let slot = slot_of(&sandbox)?;
            Some((sandbox.running().ok()?, slot))
        });
        found.ok_or_else(|| SandboxError::NotFound {
            what: "pod with the direct volume",
            id: path.to_owned(),
        })
    }
}
