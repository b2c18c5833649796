//! A root file system made of this machine's busybox.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

/// Copies a program of this machine, and the libraries it needs, to the same places.
pub(crate) fn install(program: &str, root: &Path, name: &str) {
    fs::copy(program, root.join(name)).unwrap();
    let ldd = Command::new("ldd").arg(program).output().unwrap();
    for word in String::from_utf8(ldd.stdout).unwrap().split_whitespace() {
        if word.starts_with('/') && word != program {
            let target = root.join(word.trim_start_matches('/'));
            fs::create_dir_all(target.parent().unwrap()).unwrap();
            fs::copy(fs::canonicalize(word).unwrap(), target).unwrap();
        }
    }
}

/// A root with busybox, its libraries and a few files to meet.
pub(crate) fn make_image(root: &Path) {
    for directory in [
        "bin",
        "etc",
        "proc",
        "sys",
        "dev",
        "tmp",
        "srv/web",
        "data/inside",
    ] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    install("/bin/busybox", root, "bin/busybox");
    // What it is needs the file beside it: see the probe.
    install(env!("CARGO_BIN_EXE_probe"), root, "bin/probe");
    fs::write(root.join("etc/probe"), "").unwrap();
    let applets = Command::new("/bin/busybox").arg("--list").output().unwrap();
    for applet in String::from_utf8(applets.stdout)
        .unwrap()
        .split_whitespace()
    {
        if applet != "busybox" {
            symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
    }
    let passwd = "root:x:0:0::/root:/bin/sh\nweb:x:33:34::/srv/web:/bin/sh\n";
    fs::write(root.join("etc/passwd"), passwd).unwrap();
    fs::write(
        root.join("etc/group"),
        "root:x:0:\nwww:x:34:\nlogs:x:50:web\n",
    )
    .unwrap();
    fs::write(root.join("data/secret"), "secret\n").unwrap();
    fs::write(root.join("data/not-executable"), "#!/bin/sh\n").unwrap();
    fs::write(root.join("data/no-interpreter"), "#!/no/such/interpreter\n").unwrap();
    let mode = fs::Permissions::from_mode(0o755);
    fs::set_permissions(root.join("data/no-interpreter"), mode).unwrap();
    symlink("/../../../../../../../../dev/shm", root.join("escape")).unwrap();
}
