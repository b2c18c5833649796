//! runc and crun, Debian's, driven by their command lines.

use super::facts::Facts;
use super::specs::Case;
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use serde_json::json;
use std::ffi::CString;
use std::fs;
use std::io::{IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

#[derive(Debug, Clone, Copy)]
pub(super) enum Peer {
    Runc,
    Crun,
}

impl Peer {
    fn program(self) -> &'static str {
        match self {
            Self::Runc => "runc",
            Self::Crun => "crun",
        }
    }

    /// What the probe finds under this runtime.
    pub(super) fn look(self, base: &Path, case: &Case) -> Facts {
        let id = format!("{}-{}", self.program(), case.name);
        let bundle = Bundle::make(base, &id, case);
        let path = |name: &str| bundle.0.join(name).to_str().unwrap().to_owned();
        let runtime = |words: &[&str]| {
            let state = path("state");
            [&[self.program(), "--root", &state], words]
                .concat()
                .join(" ")
        };
        let place = path("");
        let run = ["run", "--bundle", &place, &id];
        let (process, socket) = (path("process.json"), path("console"));
        let exec = ["exec", "--process", &process, &id];
        let looking = match &case.exec {
            None => run,
            Some(spec) => {
                fs::write(&process, spec.to_string()).unwrap();
                shell(&format!("{} >/dev/null 2>&1", runtime(&detached(run, &[]))));
                exec
            }
        };
        let text = if case.terminal() {
            // As containerd does it: the runtime hands the terminal's master over.
            let listener = UnixListener::bind(&socket).unwrap();
            let words = detached(looking, &["--console-socket", &socket]);
            shell(&format!("{} >/dev/null 2>&1", runtime(&words)));
            read_terminal(&listener)
        } else {
            shell(&format!("{} 2>&1", runtime(&looking)))
        };
        if case.terminal() || case.exec.is_some() {
            shell(&runtime(&["delete", "--force", &id]));
        }
        Facts::parse(&text, &id, PARENT)
    }
}

/// The command with `--detach` and other options after its verb.
fn detached<'a>(words: [&'a str; 4], options: &[&'a str]) -> Vec<&'a str> {
    let [verb, rest @ ..] = words;
    [&[verb, "--detach"], options, &rest].concat()
}

/// All that comes from the terminal whose master is sent to the socket.
fn read_terminal(listener: &UnixListener) -> String {
    let (stream, _) = listener.accept().unwrap();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut name = [0; 4096];
    let mut name = [IoSliceMut::new(&mut name)];
    rustix::net::recvmsg(&stream, &mut name, &mut ancillary, RecvFlags::CMSG_CLOEXEC).unwrap();
    let master = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    let mut text = Vec::new();
    // EIO is the end: the last process has closed the other side.
    let end = fs::File::from(master.unwrap()).read_to_end(&mut text);
    assert_eq!(end.unwrap_err().raw_os_error(), Some(libc::EIO));
    String::from_utf8(text).unwrap()
}

const PARENT: &str = "bulkhead-compare";

/// A bundle whose root is an overlay of the image, as the engine's is.
struct Bundle(PathBuf);

impl Bundle {
    fn make(base: &Path, id: &str, case: &Case) -> Self {
        let bundle = base.join("bundles").join(id);
        for name in ["rootfs", "upper", "work"] {
            fs::create_dir_all(bundle.join(name)).unwrap();
        }
        let options = format!(
            "lowerdir={},upperdir={},workdir={},volatile",
            base.join("images/busybox").display(),
            bundle.join("upper").display(),
            bundle.join("work").display()
        );
        let options = CString::new(options).unwrap();
        rustix::mount::mount(
            "overlay",
            bundle.join("rootfs"),
            "overlay",
            MountFlags::empty(),
            options.as_c_str(),
        )
        .unwrap();
        let mut spec = case.spec.clone();
        spec["root"]["path"] = json!("rootfs");
        // Debian's crun knows no other; nothing that is compared came later.
        spec["ociVersion"] = json!("1.0.2");
        spec["linux"]["cgroupsPath"] = json!(format!("/{PARENT}/{id}"));
        fs::write(bundle.join("config.json"), spec.to_string()).unwrap();
        Self(bundle)
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        let unmounted = rustix::mount::unmount(self.0.join("rootfs"), UnmountFlags::DETACH);
        if !std::thread::panicking() {
            unmounted.unwrap();
        }
    }
}

/// Runs a command; gives its output when it has succeeded.
///
/// Its exit code comes with the output.
#[expect(
    clippy::zombie_processes,
    reason = "the engine in this process waits for every child"
)]
fn shell(line: &str) -> String {
    let mut child = Command::new("sh")
        .args(["-c", &format!("{line} </dev/null; echo \"code $?\"")])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut text = String::new();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_to_string(&mut text).unwrap();
    match text.trim_end().strip_suffix("code 0") {
        Some(output) => output.to_owned(),
        None => panic!("{line}\n{text}"),
    }
}
