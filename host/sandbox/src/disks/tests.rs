use super::PodDisks;
use crate::error::Kind;
use crate::place::Place;
use crate::volumes::DirectDevice;
use crate::{Result, SandboxError};
use async_trait::async_trait;
use bulkhead_vmm_api::{DiskSlot, NetworkLimits};
use std::os::fd::OwnedFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::net::UnixStream;

/// Notes what is bound and unbound; only the slots of a place matter here.
#[derive(Default)]
struct Slots {
    bound: Mutex<Vec<String>>,
    refuses: AtomicBool,
}

#[async_trait]
impl Place for Slots {
    async fn dial(&self, _port: u32) -> Result<UnixStream> {
        Err(SandboxError::NotFound {
            what: "agent",
            id: String::new(),
        })
    }
    async fn bind_disk(&self, slot: DiskSlot, _disk: OwnedFd) -> Result<()> {
        self.bound
            .lock()
            .unwrap()
            .push(format!("+{}", slot.serial()));
        Ok(())
    }
    async fn unbind_disk(&self, slot: DiskSlot) -> Result<()> {
        if self.refuses.load(Ordering::Relaxed) {
            return Err(SandboxError::Unsupported { what: "this" });
        }
        self.bound
            .lock()
            .unwrap()
            .push(format!("-{}", slot.serial()));
        Ok(())
    }
    async fn measure_disk(&self, _: DiskSlot) -> Result<u64> {
        unreachable!("nobody grows a disk")
    }
    async fn bind_tap(&self, _: u8, _: Vec<OwnedFd>, _: NetworkLimits) -> Result<()> {
        unreachable!("disks have no network")
    }
    async fn bind_file_daemon(&self, _: Vec<OwnedFd>) -> Result<()> {
        unreachable!("disks have no file daemon")
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
    let (place, disks) = (Slots::default(), PodDisks::new("pod", 2, 2));
    let take = async |container, image| disks.take_image(&place, container, image, disk()).await;
    assert_eq!(take("one", "a").await.unwrap(), DiskSlot::ReadOnly(0));
    // As its root and as a volume.
    assert_eq!(take("one", "a").await.unwrap(), DiskSlot::ReadOnly(0));
    assert_eq!(take("two", "a").await.unwrap(), DiskSlot::ReadOnly(0));
    assert_eq!(take("two", "b").await.unwrap(), DiskSlot::ReadOnly(1));
    let full = take("three", "c").await.unwrap_err();
    assert!(full.to_string().contains("read_only_slots"), "{full}");
    disks.give_back(&place, "one").await.unwrap();
    disks.give_back(&place, "one").await.unwrap();
    assert_eq!(*place.bound.lock().unwrap(), ["+ro0", "+ro1"]);
    disks.give_back(&place, "two").await.unwrap();
    assert_eq!(take("three", "c").await.unwrap(), DiskSlot::ReadOnly(0));
    assert_eq!(
        *place.bound.lock().unwrap(),
        ["+ro0", "+ro1", "-ro0", "-ro1", "+ro0"]
    );
}

#[tokio::test]
async fn giving_back_can_be_tried_again() {
    let (place, disks) = (Slots::default(), PodDisks::new("pod", 2, 2));
    for (container, image) in [("one", "a"), ("two", "a"), ("one", "b")] {
        disks
            .take_image(&place, container, image, disk())
            .await
            .unwrap();
    }
    place.refuses.store(true, Ordering::Relaxed);
    disks.give_back(&place, "one").await.unwrap_err();
    disks.give_back(&place, "one").await.unwrap_err();
    place.refuses.store(false, Ordering::Relaxed);
    disks.give_back(&place, "one").await.unwrap();
    // The other container still has the first.
    assert_eq!(*place.bound.lock().unwrap(), ["+ro0", "+ro1", "-ro1"]);
    disks.give_back(&place, "two").await.unwrap();
    assert_eq!(
        *place.bound.lock().unwrap(),
        ["+ro0", "+ro1", "-ro1", "-ro0"]
    );
}

#[tokio::test]
async fn an_adopted_slot_is_in_use() {
    let (place, disks) = (Slots::default(), PodDisks::new("pod", 2, 2));
    disks.adopt_image(0, "one", "a").await;
    assert_eq!(
        disks.take_image(&place, "two", "b", disk()).await.unwrap(),
        DiskSlot::ReadOnly(1)
    );
    disks.give_back(&place, "one").await.unwrap();
    assert_eq!(*place.bound.lock().unwrap(), ["+ro1", "-ro0"]);
}

#[tokio::test]
async fn a_device_keeps_its_slot_whoever_asks_again() {
    let (place, disks) = (Slots::default(), PodDisks::new("pod", 2, 2));
    let take = async |number, write| disks.take_device(&place, number, write, disk()).await;
    // The first read-write slot is the scratch disk's.
    assert_eq!(take(7, true).await.unwrap(), DiskSlot::ReadWrite(1));
    assert_eq!(take(7, true).await.unwrap(), DiskSlot::ReadWrite(1));
    assert_eq!(take(7, false).await.unwrap(), DiskSlot::ReadOnly(0));
    let full = take(8, true).await.unwrap_err();
    assert!(full.to_string().contains("read_write_slots"), "{full}");
    let image = disks.take_image(&place, "one", "a", disk()).await.unwrap();
    assert_eq!(image, DiskSlot::ReadOnly(1));
    disks.give_back(&place, "one").await.unwrap();
    assert_eq!(
        *place.bound.lock().unwrap(),
        ["+rw1", "+ro0", "+ro1", "-ro1"]
    );
    let volumes = disks.devices().await;
    let adopted = PodDisks::new("pod", 2, 2);
    adopted.adopt_devices(&volumes).await;
    assert_eq!(adopted.devices().await, volumes);
    adopted.empty_unknown(&place).await.unwrap();
    // Neither the devices nor the scratch disk.
    assert_eq!(place.bound.lock().unwrap()[4..], ["-ro1"]);
}

#[tokio::test]
async fn a_direct_volume_has_its_device_alone() {
    let place = Slots::default();
    let disks = PodDisks::new("pod", 2, 4);
    assert!(!disks.writes_devices().await);
    let data = DirectDevice::fake("/data", 7, true);
    let slot = disks.take_volume(&place, &data).await.unwrap();
    assert_eq!(slot, DiskSlot::ReadWrite(1));
    assert_eq!(disks.take_volume(&place, &data).await.unwrap(), slot);
    disks.take_device(&place, 8, true, disk()).await.unwrap();
    // A daemon that finds the pod again knows the same.
    let adopted = PodDisks::new("pod", 2, 4);
    adopted.adopt_devices(&disks.devices().await).await;
    for disks in [disks, adopted] {
        assert!(disks.writes_devices().await);
        assert_eq!(disks.take_volume(&place, &data).await.unwrap(), slot);
        for (device, words) in [
            (DirectDevice::fake("/data", 7, false), "same access"),
            (
                DirectDevice::fake("/other", 7, true),
                "that of /data already",
            ),
            (DirectDevice::fake("/other", 8, true), "as a device"),
        ] {
            let error = disks.take_volume(&place, &device).await.unwrap_err();
            assert_eq!(error.kind(), Kind::FailedPrecondition);
            assert!(error.to_string().contains(words), "{error}");
        }
        for write in [false, true] {
            let refused = disks.take_device(&place, 7, write, disk()).await;
            let error = refused.unwrap_err();
            assert!(
                error.to_string().contains("/data cannot be used"),
                "{error}"
            );
        }
    }
    assert_eq!(*place.bound.lock().unwrap(), ["+rw1", "+rw2"]);
}
