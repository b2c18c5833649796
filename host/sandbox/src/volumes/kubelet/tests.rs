use super::{EmptyDir, kind};
use crate::volumes::tree::Kind;
use rustix::fs::{CWD, Mode, OFlags, openat};
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

fn opened(path: &Path) -> OwnedFd {
    openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

fn kind_of(path: &Path, read_only: bool) -> Kind {
    kind(path, opened(path).as_fd(), read_only).unwrap()
}

#[test]
fn volumes_are_known_by_their_places() {
    let node = tempfile::tempdir().unwrap();
    let volumes = node.path().join("pods/uid/volumes");
    let secret = volumes.join("kubernetes.io~secret/token");
    let host_path = volumes.join("kubernetes.io~csi/data");
    let cache = volumes.join("kubernetes.io~empty-dir/cache");
    for path in [&secret, &host_path, &cache] {
        fs::create_dir_all(path).unwrap();
    }
    assert!(matches!(kind_of(&secret, true), Kind::Shared), "no ..data");
    symlink("..1", secret.join("..data")).unwrap();
    assert!(matches!(kind_of(&secret, true), Kind::Mirror));
    assert!(matches!(kind_of(&secret, false), Kind::Shared), "writable");
    assert!(matches!(kind_of(&host_path, true), Kind::Shared));
    assert!(matches!(kind_of(&volumes, true), Kind::Shared));
    fs::set_permissions(&cache, fs::Permissions::from_mode(0o2770)).unwrap();
    let owner = fs::metadata(&cache).unwrap();
    let expected = EmptyDir {
        name: "cache".to_owned(),
        mode: 0o2770,
        uid: owner.uid(),
        gid: owner.gid(),
        memory: None,
        sub_path: None,
    };
    assert!(matches!(kind_of(&cache, false), Kind::EmptyDir(found) if found == expected));
}

#[test]
fn a_sub_path_is_found_by_what_it_is() {
    let node = tempfile::tempdir().unwrap();
    let pod = node.path().join("pods/uid");
    let cache = pod.join("volumes/kubernetes.io~empty-dir/cache");
    fs::create_dir_all(cache.join("other/deep")).unwrap();
    fs::create_dir_all(cache.join("a/b")).unwrap();
    let place = pod.join("volume-subpaths/cache/main/0");
    // Where the kubelet binds the directory it is the same one; here that needs no mount.
    let found = kind(&place, opened(&cache.join("a/b")).as_fd(), false).unwrap();
    let Kind::EmptyDir(found) = found else {
        panic!("{found:?}")
    };
    assert_eq!(found.sub_path.as_deref(), Some("a/b"));
    assert!(kind(&place, opened(node.path()).as_fd(), false).is_err());
    let other = pod.join("volume-subpaths/data/main/0");
    let shared = kind(&other, opened(&cache).as_fd(), false).unwrap();
    assert!(matches!(shared, Kind::Shared));
}
