use super::*;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

fn place(name: &str) -> (PathBuf, Root) {
    let base = std::env::temp_dir().join(format!("bulkhead-root-{name}-{}", std::process::id()));
    let _ = fs::remove_dir_all(&base);
    fs::create_dir_all(base.join("root/etc")).unwrap();
    fs::create_dir_all(base.join("outside")).unwrap();
    fs::write(base.join("outside/secret"), "x").unwrap();
    let root = Root::at(base.join("root").to_str().unwrap()).unwrap();
    (base, root)
}

#[test]
fn links_of_the_image_stay_inside_the_root() {
    let (base, root) = place("links");
    symlink("../../../outside", base.join("root/up")).unwrap();
    symlink(base.join("outside"), base.join("root/abs")).unwrap();
    symlink("/etc", base.join("root/conf")).unwrap();
    assert!(root.open("/up/secret", OFlags::RDONLY).is_err());
    assert!(root.open("/abs/secret", OFlags::RDONLY).is_err());
    assert!(root.open("/../outside/secret", OFlags::RDONLY).is_err());
    root.directory("/conf/sub/dir", 0o755).unwrap();
    assert!(base.join("root/etc/sub/dir").is_dir());
    root.file("/conf/file").unwrap();
    assert!(base.join("root/etc/file").is_file());
}

#[test]
fn a_link_that_leads_to_nothing_is_followed_inside_the_root() {
    let (base, root) = place("dangling");
    symlink("../../../outside/new", base.join("root/up")).unwrap();
    symlink("/run/resolve/stub.conf", base.join("root/etc/resolv.conf")).unwrap();
    symlink("../lib/x", base.join("root/etc/rel")).unwrap();
    symlink("loop", base.join("root/loop")).unwrap();
    root.directory("/up/made", 0o755).unwrap();
    assert!(base.join("root/outside/new/made").is_dir());
    assert!(!base.join("outside/new").exists());
    root.file("/etc/resolv.conf").unwrap();
    assert!(base.join("root/run/resolve/stub.conf").is_file());
    root.file("/etc/rel").unwrap();
    assert!(base.join("root/lib/x").is_file());
    assert!(root.file("/loop").is_err());
    assert!(root.directory("/loop/x", 0o755).is_err());
}

#[test]
fn magic_links_are_not_followed() {
    let root = Root::at("/").unwrap();
    assert!(root.open("/proc/self/root/etc", OFlags::PATH).is_err());
    assert!(root.open("/proc/self/cwd", OFlags::PATH).is_err());
}

#[test]
fn makes_what_is_missing_and_takes_what_is_there() {
    let (base, root) = place("make");
    root.directory("/a//b/./c/", 0o700).unwrap();
    root.directory("/a/b/c", 0o700).unwrap();
    assert!(base.join("root/a/b/c").is_dir());
    root.file("/x/y").unwrap();
    root.file("/x/y").unwrap();
    assert!(root.directory("/x/y/z", 0o755).is_err());
    assert!(root.parent("/").is_err());
    assert!(root.directory("/", 0o755).is_ok());
}
