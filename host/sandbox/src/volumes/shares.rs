//! Which mounts of the pod's file daemon its containers have in common.
//!
//! To the guest's kernel two mounts of one directory are two file systems: locks, mappings and caches would not be
//! common. Containers that mount the same place in the same way therefore have the same mount, as long as one of them
//! is there.

use serde::{Deserialize, Serialize};

/// A mount of the file daemon's that a container has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedVolume {
    /// Which of the container's volumes.
    pub index: usize,
    /// What it is called below the daemon's root.
    pub name: String,
    /// What it is on the node and how it is mounted; absent of one that is not shared with other containers.
    pub place: Option<String>,
}

/// The mounts and who has them.
#[derive(Debug, Default)]
pub(super) struct Shares(Vec<Share>);

#[derive(Debug)]
struct Share {
    name: String,
    place: Option<String>,
    containers: Vec<String>,
}

impl Shares {
    /// The mount of a place that is there.
    pub(super) fn of_place(&self, place: &str) -> Option<String> {
        let mut shares = self.0.iter();
        let found = shares.find(|share| share.place.as_deref() == Some(place));
        found.map(|share| share.name.clone())
    }

    /// A container has a mount.
    pub(super) fn join(&mut self, container: &str, volume: &SharedVolume) {
        let container = container.to_owned();
        match self.0.iter_mut().find(|share| share.name == volume.name) {
            Some(share) => share.containers.push(container),
            None => self.0.push(Share {
                name: volume.name.clone(),
                place: volume.place.clone(),
                containers: vec![container],
            }),
        }
    }

    /// Mounts that a container has and nobody else.
    pub(super) fn only_of(&self, container: &str) -> Vec<String> {
        let shares = self.0.iter();
        let own = shares.filter(|share| {
            !share.containers.is_empty() && share.containers.iter().all(|one| one == container)
        });
        own.map(|share| share.name.clone()).collect()
    }

    /// A container has gone, and mounts that only it had.
    pub(super) fn leave(&mut self, container: &str) {
        for share in &mut self.0 {
            share.containers.retain(|one| one != container);
        }
        self.0.retain(|share| !share.containers.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use super::{SharedVolume, Shares};

    fn volume(name: &str, place: Option<&str>) -> SharedVolume {
        SharedVolume {
            index: 0,
            name: name.to_owned(),
            place: place.map(str::to_owned),
        }
    }

    #[test]
    fn a_mount_stays_as_long_as_anybody_has_it() {
        let mut shares = Shares::default();
        shares.join("one", &volume("one-0", Some("here")));
        shares.join("one", &volume("one-1", None));
        assert_eq!(shares.of_place("here").as_deref(), Some("one-0"));
        assert_eq!(shares.of_place("there"), None);
        // Twice in one container is once in the file daemon.
        shares.join("one", &volume("one-0", Some("here")));
        shares.join("two", &volume("one-0", Some("here")));
        assert_eq!(shares.only_of("one"), ["one-1"]);
        shares.leave("one");
        assert_eq!(shares.of_place("here").as_deref(), Some("one-0"));
        assert_eq!(shares.only_of("two"), ["one-0"]);
        shares.leave("two");
        assert_eq!(shares.of_place("here"), None);
        assert!(shares.only_of("two").is_empty());
    }
}
