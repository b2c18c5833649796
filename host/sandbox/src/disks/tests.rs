use super::ImageDisks;
use crate::place::Place;
use crate::{Result, SandboxError};
use async_trait::async_trait;
use bulkhead_vmm_api::DiskSlot;
use std::os::fd::OwnedFd;
use std::sync::Mutex;
use tokio::net::UnixStream;

/// Notes what is bound and unbound; only the slots of a place matter here.
#[derive(Default)]
struct Slots(Mutex<Vec<String>>);

#[async_trait]
impl Place for Slots {
    async fn dial(&self, _port: u32) -> Result<UnixStream> {
        Err(SandboxError::NotFound {
            what: "agent",
            id: String::new(),
        })
    }
    async fn bind_disk(&self, slot: DiskSlot, _disk: OwnedFd) -> Result<()> {
        self.0.lock().unwrap().push(format!("+{}", slot.serial()));
        Ok(())
    }
    async fn unbind_disk(&self, slot: DiskSlot) -> Result<()> {
        self.0.lock().unwrap().push(format!("-{}", slot.serial()));
        Ok(())
    }
    async fn ended(&self) -> String {
        std::future::pending().await
    }
    async fn end(&self) {}
}

fn disk() -> OwnedFd {
    std::fs::File::open("/dev/null").unwrap().into()
}

#[tokio::test]
async fn containers_of_an_image_share_a_slot_until_the_last_is_removed() {
    let (place, disks) = (Slots::default(), ImageDisks::new("pod", 2));
    assert_eq!(
        disks.take(&place, "a", disk()).await.unwrap(),
        DiskSlot::ReadOnly(0)
    );
    assert_eq!(
        disks.take(&place, "a", disk()).await.unwrap(),
        DiskSlot::ReadOnly(0)
    );
    assert_eq!(
        disks.take(&place, "b", disk()).await.unwrap(),
        DiskSlot::ReadOnly(1)
    );
    let full = disks.take(&place, "c", disk()).await.unwrap_err();
    assert!(full.to_string().contains("read_only_slots"), "{full}");
    disks.give_back(&place, "a").await.unwrap();
    disks.give_back(&place, "a").await.unwrap();
    disks.give_back(&place, "a").await.unwrap();
    assert_eq!(
        disks.take(&place, "c", disk()).await.unwrap(),
        DiskSlot::ReadOnly(0)
    );
    assert_eq!(*place.0.lock().unwrap(), ["+ro0", "+ro1", "-ro0", "+ro0"]);
}

#[tokio::test]
async fn an_adopted_slot_is_in_use() {
    let (place, disks) = (Slots::default(), ImageDisks::new("pod", 2));
    disks.adopt(0, "a").await;
    assert_eq!(
        disks.take(&place, "b", disk()).await.unwrap(),
        DiskSlot::ReadOnly(1)
    );
    disks.give_back(&place, "a").await.unwrap();
    assert_eq!(*place.0.lock().unwrap(), ["+ro1", "-ro0"]);
}
