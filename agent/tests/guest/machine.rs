//! QEMU with one image disk and one scratch disk that is empty at first.

use crate::image::make_image;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub(crate) const CID: u32 = 77;
const SCRATCH: u64 = 512 << 20;

pub(crate) struct Machine {
    qemu: Child,
    base: PathBuf,
}

pub(crate) fn unsuitable() -> Option<String> {
    for name in ["BULKHEAD_GUEST_KERNEL", "BULKHEAD_AGENT"] {
        if !std::env::var_os(name).is_some_and(|path| Path::new(&path).exists()) {
            return Some(format!("{name} does not name a file"));
        }
    }
    for tool in ["qemu-system-x86_64", "mkfs.erofs", "mkfs.ext4"] {
        let version = if tool == "qemu-system-x86_64" {
            "--version"
        } else {
            "-V"
        };
        let output = Command::new(tool)
            .arg(version)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if output.is_err() {
            return Some(format!("{tool} is missing"));
        }
    }
    let _ = Command::new("modprobe").arg("vhost_vsock").status();
    for device in ["/dev/kvm", "/dev/vhost-vsock", "/dev/vsock"] {
        if !Path::new(device).exists() {
            return Some(format!("there is no {device}"));
        }
    }
    None
}

impl Machine {
    pub(crate) fn start() -> Self {
        let base = std::env::temp_dir().join(format!("bulkhead-guest-{}", std::process::id()));
        let _ = fs::remove_dir_all(&base);
        fs::create_dir_all(&base).unwrap();
        make_image(&base.join("tree"));
        run(Command::new("mkfs.erofs")
            .arg(base.join("image"))
            .arg(base.join("tree")));
        File::create(base.join("scratch")).unwrap();
        let agent = std::env::var_os("BULKHEAD_AGENT").unwrap();
        let build = concat!(env!("CARGO_MANIFEST_DIR"), "/../images/initramfs/build");
        run(Command::new(build).arg(agent).arg(base.join("initramfs")));
        let path = |name: &str| base.join(name).display().to_string();
        let console = File::create(base.join("console")).unwrap();
        let qemu = Command::new("qemu-system-x86_64")
            .args([
                "-M",
                "microvm,acpi=on",
                "-accel",
                "kvm",
                "-cpu",
                "host",
                "-m",
                "512M",
                "-smp",
                "2",
            ])
            .args([
                "-nodefaults",
                "-no-user-config",
                "-nographic",
                "-no-reboot",
                "-serial",
                "stdio",
            ])
            .arg("-kernel")
            .arg(std::env::var_os("BULKHEAD_GUEST_KERNEL").unwrap())
            .args([
                "-initrd",
                &path("initramfs"),
                "-append",
                "console=ttyS0 quiet loglevel=5 panic=-1",
            ])
            .args(["-device", &format!("vhost-vsock-device,guest-cid={CID}")])
            .args([
                "-drive",
                &format!(
                    "if=none,id=ro0,format=raw,read-only=on,file={}",
                    path("image")
                ),
            ])
            .args(["-device", "virtio-blk-device,drive=ro0,serial=image-0"])
            .args([
                "-drive",
                &format!(
                    "if=none,id=rw0,format=raw,file.locking=off,discard=unmap,file={}",
                    path("scratch")
                ),
            ])
            .args(["-device", "virtio-blk-device,drive=rw0,serial=scratch"])
            .args(["-qmp", &format!("unix:{},server=on,wait=off", path("qmp"))])
            .stdin(Stdio::null())
            .stdout(console.try_clone().unwrap())
            .stderr(console)
            .spawn()
            .unwrap();
        Self { qemu, base }
    }

    pub(crate) fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.base.join("console")).unwrap()).into_owned()
    }

    /// Gives the empty scratch disk its capacity.
    pub(crate) fn grow_scratch(&mut self) {
        let mut qmp = UnixStream::connect(self.base.join("qmp")).unwrap();
        let mut lines = BufReader::new(qmp.try_clone().unwrap()).lines();
        lines.next().unwrap().unwrap();
        let resize = format!(
            r#"{{"execute":"block_resize","arguments":{{"device":"rw0","size":{SCRATCH}}}}}"#
        );
        for command in [r#"{"execute":"qmp_capabilities"}"#, &resize] {
            writeln!(qmp, "{command}").unwrap();
            loop {
                let line = lines.next().unwrap().unwrap();
                assert!(!line.contains("\"error\""), "{line}");
                if line.contains("\"return\"") {
                    break;
                }
            }
        }
    }

    /// Puts a small ext4 on it.
    pub(crate) fn fill_scratch(&self) {
        let small = self.base.join("small");
        run(Command::new("mkfs.ext4")
            .args(["-q", "-F"])
            .arg(&small)
            .arg("64M"));
        let mut from = File::open(small).unwrap();
        let mut to = File::options()
            .write(true)
            .open(self.base.join("scratch"))
            .unwrap();
        std::io::copy(&mut from, &mut to).unwrap();
        assert_eq!(to.metadata().unwrap().len(), SCRATCH);
    }

    /// Waits for QEMU to end.
    pub(crate) fn ended(&mut self, time: Duration) {
        let begin = Instant::now();
        while self.qemu.try_wait().unwrap().is_none() {
            assert!(
                begin.elapsed() < time,
                "The guest does not end\n{}",
                self.console()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The file system was unmounted cleanly.
    pub(crate) fn check_scratch(&self) {
        let output = Command::new("dumpe2fs")
            .arg("-h")
            .arg(self.base.join("scratch"))
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(!text.contains("needs_recovery"), "{text}");
        run(Command::new("e2fsck")
            .args(["-f", "-n"])
            .arg(self.base.join("scratch")));
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
        if std::thread::panicking() {
            eprintln!("{}", self.console());
        }
        let _ = fs::remove_dir_all(&self.base);
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}
