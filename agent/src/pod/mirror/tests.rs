use super::Mirror;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use tempfile::TempDir;

/// Writes a volume's content as the kubelet does.
fn publish(volume: &Path, time: &str, files: &[(&str, &str)]) {
    let directory = volume.join(time);
    fs::create_dir(&directory).unwrap();
    for (name, content) in files {
        let path = directory.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o440)).unwrap();
    }
    let before = fs::read_link(volume.join("..data"));
    symlink(time, volume.join("..data_tmp")).unwrap();
    fs::rename(volume.join("..data_tmp"), volume.join("..data")).unwrap();
    if let Ok(before) = before {
        fs::remove_dir_all(volume.join(before)).unwrap();
    }
}

fn listing(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let name = |entry: fs::DirEntry| entry.file_name().into_string().unwrap();
    let mut names: Vec<_> = entries.map(|entry| name(entry.unwrap())).collect();
    names.sort();
    names
}

fn both() -> (TempDir, Mirror) {
    let directory = tempfile::tempdir().unwrap();
    let (volume, target) = (
        directory.path().join("volume"),
        directory.path().join("mirror"),
    );
    fs::create_dir(&volume).unwrap();
    fs::create_dir(&target).unwrap();
    let mirror = Mirror::at(volume, target);
    (directory, mirror)
}

#[test]
fn a_mirror_has_what_the_volume_has_and_nothing_of_before() {
    let (directory, mirror) = both();
    let volume = directory.path().join("volume");
    publish(
        &volume,
        "..1",
        &[("a", "one"), ("gone", "x"), ("dir/b", "two")],
    );
    mirror.update().unwrap();
    let shown = mirror.path();
    assert_eq!(listing(shown), ["..1", "..data", "a", "dir", "gone"]);
    assert_eq!(fs::read_to_string(shown.join("a")).unwrap(), "one");
    assert_eq!(fs::read_to_string(shown.join("dir/b")).unwrap(), "two");
    assert_eq!(
        fs::metadata(shown.join("a")).unwrap().permissions().mode() & 0o777,
        0o440
    );
    publish(&volume, "..2", &[("a", "new"), ("more", "y")]);
    mirror.update().unwrap();
    assert_eq!(listing(shown), ["..2", "..data", "a", "more"]);
    assert_eq!(fs::read_to_string(shown.join("a")).unwrap(), "new");
    // Nothing has changed, nothing changes.
    mirror.update().unwrap();
    assert_eq!(listing(shown), ["..2", "..data", "a", "more"]);
}

#[test]
fn what_a_failed_update_has_left_is_replaced() {
    let (directory, mirror) = both();
    let volume = directory.path().join("volume");
    publish(&volume, "..1", &[("a", "one")]);
    let half = mirror.path().join("..1");
    fs::create_dir(&half).unwrap();
    fs::write(half.join("old"), "").unwrap();
    symlink("..0", mirror.path().join("..data_tmp")).unwrap();
    mirror.update().unwrap();
    assert_eq!(listing(mirror.path()), ["..1", "..data", "a"]);
    assert_eq!(listing(&half), ["a"]);
}

#[test]
fn a_volume_of_another_layout_is_refused() {
    let (directory, mirror) = both();
    let volume = directory.path().join("volume");
    assert!(mirror.update().unwrap_err().to_string().contains("..data"));
    for leads in ["../..", ".", "..data", "a/b"] {
        symlink(leads, volume.join("..data")).unwrap();
        assert!(mirror.update().is_err(), "{leads}");
        fs::remove_file(volume.join("..data")).unwrap();
    }
    // Too deep.
    publish(&volume, "..1", &[]);
    fs::create_dir_all(volume.join("..1").join("d/".repeat(20))).unwrap();
    assert!(mirror.update().is_err());
    assert_eq!(listing(mirror.path()), [""; 0]);
}
