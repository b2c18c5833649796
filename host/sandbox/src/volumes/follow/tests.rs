use super::Watches;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::path::Path;

fn flip(volume: &Path, to: &str) {
    symlink(to, volume.join("..data_tmp")).unwrap();
    fs::rename(volume.join("..data_tmp"), volume.join("..data")).unwrap();
}

#[tokio::test]
async fn every_follower_learns_of_a_change_and_of_the_end() {
    let node = tempfile::tempdir().unwrap();
    let (one, two) = (node.path().join("one"), node.path().join("two"));
    fs::create_dir(&one).unwrap();
    fs::create_dir(&two).unwrap();
    let watches = Watches::new().unwrap();
    let follow = |path: &Path| watches.follow(File::open(path).unwrap().as_fd()).unwrap();
    let (mut first, mut second, mut other) = (follow(&one), follow(&one), follow(&two));
    // Of no interest, and told before what is.
    fs::write(one.join("file"), "").unwrap();
    flip(&one, "..1");
    assert!(first.changed().await);
    assert!(second.changed().await);
    drop(second);
    flip(&one, "..2");
    assert!(first.changed().await);
    flip(&two, "..1");
    assert!(other.changed().await);
    // What came before somebody waits is not lost.
    flip(&two, "..2");
    fs::remove_dir_all(&one).unwrap();
    assert!(!first.changed().await);
    assert!(other.changed().await);
    drop((first, other));
    assert!(watches.0.lock().is_empty());
}
