use super::give;
use crate::init::plan::FsGroup;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

/// A directory with one thing of each kind; gone at the end.
struct Volume(PathBuf);

impl Volume {
    fn new(name: &str) -> Self {
        let name = format!("bulkhead-fs-group-{name}-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(path.join("volume/in/deep")).unwrap();
        fs::write(path.join("outside"), "").unwrap();
        fs::write(path.join("volume/in/program"), "").unwrap();
        fs::write(path.join("volume/in/deep/secret"), "").unwrap();
        symlink("../outside", path.join("volume/link")).unwrap();
        symlink("..", path.join("volume/up")).unwrap();
        for (name, mode) in [
            ("volume", 0o755),
            ("volume/in", 0o700),
            ("volume/in/deep", 0o1711),
            ("volume/in/program", 0o4755),
            ("volume/in/deep/secret", 0o400),
            ("outside", 0o600),
        ] {
            fs::set_permissions(path.join(name), fs::Permissions::from_mode(mode)).unwrap();
        }
        Self(path)
    }

    fn root(&self) -> PathBuf {
        self.0.join("volume")
    }

    fn look(&self, name: &str) -> (u32, u32) {
        let found = fs::symlink_metadata(self.0.join(name)).unwrap();
        (found.gid(), found.mode() & 0o7777)
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A group that the tests can give files to: any if they are root, otherwise their own.
fn group() -> u32 {
    match rustix::process::geteuid().is_root() {
        true => 4321,
        false => rustix::process::getegid().as_raw(),
    }
}

fn give_now(root: &Path, on_root_mismatch: bool) -> std::io::Result<()> {
    let group = FsGroup {
        gid: group(),
        on_root_mismatch,
    };
    give(root, group, &AtomicBool::new(false))
}

#[test]
fn all_that_is_in_the_volume_is_the_groups_and_nothing_else() {
    let volume = Volume::new("all");
    let outside = volume.look("outside");
    give_now(&volume.root(), false).unwrap();
    for (name, mode) in [
        ("volume", 0o2775),
        ("volume/in", 0o2770),
        ("volume/in/deep", 0o3771),
        ("volume/in/program", 0o4775),
        ("volume/in/deep/secret", 0o660),
    ] {
        assert_eq!(volume.look(name), (group(), mode), "{name}");
    }
    assert_eq!(volume.look("volume/link").0, group());
    assert_eq!(volume.look("outside"), outside);
}

#[test]
fn a_root_that_is_right_already_can_be_enough() {
    let volume = Volume::new("root");
    give_now(&volume.root(), true).unwrap();
    assert_eq!(volume.look("volume/in/deep/secret"), (group(), 0o660));
    let secret = volume.root().join("in/deep/secret");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    give_now(&volume.root(), true).unwrap();
    assert_eq!(volume.look("volume/in/deep/secret").1, 0o600, "left alone");
    // Without one of the bits it is not right.
    for mode in [0o775, 0o2755, 0o2765] {
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
        fs::set_permissions(volume.root(), fs::Permissions::from_mode(mode)).unwrap();
        give_now(&volume.root(), true).unwrap();
        assert_eq!(volume.look("volume/in/deep/secret").1, 0o660, "{mode:o}");
    }
}

#[test]
fn one_that_is_stopped_is_not_taken_for_whole() {
    let volume = Volume::new("stop");
    let before = volume.look("volume");
    let group = FsGroup {
        gid: group(),
        on_root_mismatch: true,
    };
    assert!(give(&volume.root(), group, &AtomicBool::new(true)).is_err());
    assert_eq!(volume.look("volume"), before);
}
