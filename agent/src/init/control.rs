//! The process's end of the control socket, and the other descriptors that it was born with.

use super::plan::{Failure, GO, MAX_ANSWER, READY, fds};
use super::user::Identity;
use rustix::io::FdFlags;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd, RawFd};

/// What the process was born with.
pub(super) struct Inherited {
    pub(super) control: Control,
    pub(super) plan: OwnedFd,
    /// From [`fds::CONTAINER`] on: a pidfd or namespace files.
    pub(super) others: Vec<OwnedFd>,
}

/// Takes the descriptors; all become close-on-exec.
pub(super) fn inherit() -> rustix::io::Result<Inherited> {
    let control = crate::sys::fd::inherited(fds::CONTROL)?;
    let plan = crate::sys::fd::inherited(fds::PLAN)?;
    let mut others = Vec::new();
    for number in fds::CONTAINER..fds::NAMESPACES + fds::MAX_NAMESPACES {
        if let Ok(fd) = crate::sys::fd::inherited(number as RawFd) {
            others.push(fd);
        }
    }
    for fd in [&control, &plan].into_iter().chain(&others) {
        rustix::io::fcntl_setfd(fd, FdFlags::CLOEXEC)?;
    }
    Ok(Inherited {
        control: Control(control),
        plan,
        others,
    })
}

/// The control socket.
pub(super) struct Control(OwnedFd);

impl Control {
    /// Says that all is prepared and hands over the terminal's master.
    pub(super) fn ready(
        &self,
        master: Option<&OwnedFd>,
        identity: Option<&Identity>,
    ) -> rustix::io::Result<()> {
        let identity = identity.and_then(|identity| serde_json::to_vec(identity).ok());
        let identity = identity.filter(|text| READY.len() + text.len() <= MAX_ANSWER);
        let identity = identity.unwrap_or_default();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let fds = master.map(|master| [master.as_fd()]);
        if let Some(fds) = &fds {
            ancillary.push(SendAncillaryMessage::ScmRights(fds));
        }
        rustix::net::sendmsg(
            &self.0,
            &[IoSlice::new(READY), IoSlice::new(&identity)],
            &mut ancillary,
            SendFlags::NOSIGNAL,
        )?;
        Ok(())
    }

    /// Waits for the agent's word. `false`: the agent is gone.
    pub(super) fn wait_for_go(&self) -> bool {
        let mut buffer = [0; 16];
        loop {
            match rustix::net::recv(&self.0, &mut buffer, RecvFlags::empty()) {
                Ok((n, _)) => return buffer.get(..n) == Some(GO),
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return false,
            }
        }
    }

    /// Says why the program does not run.
    pub(super) fn fail(&self, failure: &Failure) {
        let mut failure = failure.clone();
        failure.message = failure.message.chars().take(MAX_ANSWER / 8).collect();
        if let Ok(text) = serde_json::to_vec(&failure) {
            // When the agent is gone there is nobody to tell.
            // Not send(2): a seccomp filter that refuses that seldom refuses this.
            let _ = rustix::io::write(&self.0, &text);
        }
    }
}
