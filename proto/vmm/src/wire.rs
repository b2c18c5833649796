//! Packets with descriptors over a `SOCK_SEQPACKET` Unix socket.

use crate::message::MAX_PACKET;
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::{Serialize, de::DeserializeOwned};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The most descriptors that one packet carries: the queues of a tap.
pub const MAX_FDS: usize = crate::config::MAX_QUEUE_PAIRS;

/// What can go wrong with a packet.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The socket failed.
    #[error("The socket failed")]
    Socket(#[source] Errno),
    /// The packet or its descriptors did not fit.
    #[error(
        "A packet was longer than {MAX_PACKET} bytes or carried more than {MAX_FDS} descriptors"
    )]
    TooLong,
    /// The packet is not what this version of the protocol knows.
    #[error("A packet could not be understood")]
    Malformed(#[source] serde_json::Error),
}

/// Sends one packet.
///
/// # Errors
/// [`WireError::TooLong`] before anything is sent; [`WireError::Socket`] from `sendmsg(2)`, `EAGAIN`
/// on a non-blocking socket included.
pub fn send(
    socket: impl AsFd,
    message: &impl Serialize,
    fds: &[BorrowedFd<'_>],
) -> Result<(), WireError> {
    let bytes = serde_json::to_vec(message).map_err(WireError::Malformed)?;
    if bytes.len() > MAX_PACKET {
        return Err(WireError::TooLong);
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(WireError::TooLong);
    }
    let flags = SendFlags::NOSIGNAL;
    rustix::io::retry_on_intr(|| sendmsg(&socket, &[IoSlice::new(&bytes)], &mut control, flags))
        .map_err(WireError::Socket)?;
    Ok(())
}

/// Receives one packet and its descriptors; `None` when the peer has closed.
///
/// # Errors
/// [`WireError::Socket`] from `recvmsg(2)`, `EAGAIN` on a non-blocking socket included;
/// [`WireError::TooLong`] and [`WireError::Malformed`] by what the peer sent.
pub fn receive<T: DeserializeOwned>(
    socket: impl AsFd,
) -> Result<Option<(T, Vec<OwnedFd>)>, WireError> {
    let (mut packet, mut fds) = receive_packet(&socket, RecvFlags::empty())?;
    if packet.is_empty() {
        // Linux looks for a packet first and for the end afterwards (unix_dgram_recvmsg): a peer that
        // sends and closes between the two has ended with a packet still there. Nothing comes after
        // the end, so a second look is the last.
        (packet, fds) = match receive_packet(&socket, RecvFlags::DONTWAIT) {
            // A packet without a byte, which is no message of the protocol, from a peer that lives.
            Err(WireError::Socket(Errno::AGAIN)) => return Ok(None),
            second => second?,
        };
    }
    if packet.is_empty() {
        return Ok(None);
    }
    let message = serde_json::from_slice(&packet).map_err(WireError::Malformed)?;
    Ok(Some((message, fds)))
}

/// One packet as it is; empty at the end of the connection.
fn receive_packet(
    socket: impl AsFd,
    flags: RecvFlags,
) -> Result<(Vec<u8>, Vec<OwnedFd>), WireError> {
    let mut bytes = vec![0_u8; MAX_PACKET];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let result = rustix::io::retry_on_intr(|| {
        recvmsg(
            &socket,
            &mut [IoSliceMut::new(&mut bytes)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC | flags,
        )
    })
    .map_err(WireError::Socket)?;
    let fds: Vec<OwnedFd> = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        })
        .flatten()
        .collect();
    // The room is a little larger than needed, for its alignment, so one more may have fitted.
    let truncated = ReturnFlags::TRUNC | ReturnFlags::CTRUNC;
    if result.flags.intersects(truncated) || fds.len() > MAX_FDS {
        return Err(WireError::TooLong);
    }
    bytes.truncate(result.bytes);
    Ok((bytes, fds))
}

#[cfg(test)]
mod tests {
    use super::{MAX_FDS, WireError, receive, send};
    use crate::{MAX_PACKET, Reply, Request};
    use rustix::io::Errno;
    use rustix::net::{
        AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags,
        SocketType, sendmsg, socketpair,
    };
    use std::io::IoSlice;
    use std::mem::MaybeUninit;
    use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap()
    }

    #[test]
    fn a_packet_arrives_with_its_descriptor() {
        let (ours, theirs) = pair();
        let (read, write) = rustix::pipe::pipe().unwrap();
        let request = Request::BindDisk {
            slot: crate::DiskSlot::ReadOnly(3),
            limits: crate::RateLimits::default(),
        };
        send(&ours, &request, &[write.as_fd()]).unwrap();
        drop(write);
        let (got, fds) = receive::<Request>(&theirs).unwrap().unwrap();
        assert_eq!(got, request);
        rustix::io::write(&fds[0], b"x").unwrap();
        let mut byte = [0];
        assert_eq!(rustix::io::read(&read, &mut byte).unwrap(), 1);
        drop(ours);
        assert!(receive::<Request>(&theirs).unwrap().is_none());
    }

    #[test]
    fn a_descriptor_too_many_is_refused_wherever_the_room_lies() {
        let fds: Vec<OwnedFd> = (0..=MAX_FDS).map(|_| pair().0).collect();
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        // The stack's depth decides how the room is aligned.
        fn deeper<const DEPTH: usize>(fds: &[BorrowedFd<'_>]) {
            let (ours, theirs) = pair();
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
            let bytes = [IoSlice::new(b"\"status\"")];
            sendmsg(&ours, &bytes, &mut control, SendFlags::empty()).unwrap();
            let pad = std::hint::black_box([0_u8; DEPTH]);
            let answer = receive::<serde_json::Value>(&theirs);
            std::hint::black_box(&pad);
            assert!(matches!(answer, Err(WireError::TooLong)), "{answer:?}");
        }
        deeper::<1>(&fds);
        deeper::<13>(&fds);
        deeper::<22>(&fds);
        deeper::<31>(&fds);
    }

    #[test]
    fn the_last_packet_of_a_peer_that_goes_arrives() {
        const ROUNDS: u32 = 200_000;
        let (sender, receiver) = std::sync::mpsc::sync_channel::<OwnedFd>(0);
        let peer = std::thread::spawn(move || {
            for socket in receiver {
                send(&socket, &Request::Status, &[]).unwrap();
            }
        });
        for round in 0..ROUNDS {
            let (ours, theirs) = pair();
            rustix::io::ioctl_fionbio(&ours, true).unwrap();
            sender.send(theirs).unwrap();
            loop {
                match receive::<Request>(&ours) {
                    Err(WireError::Socket(Errno::AGAIN)) => {}
                    Ok(Some((Request::Status, _))) => break,
                    other => panic!("round {round}: {other:?}"),
                }
            }
        }
        drop(sender);
        peer.join().unwrap();
    }

    #[test]
    fn what_is_too_long_or_unknown_is_refused() {
        let (ours, theirs) = pair();
        let long = Reply::Console {
            text: "x".repeat(MAX_PACKET),
        };
        assert!(matches!(send(&ours, &long, &[]), Err(WireError::TooLong)));
        rustix::net::send(&ours, &[b'x'; MAX_PACKET + 1], SendFlags::empty()).unwrap();
        assert!(matches!(
            receive::<Request>(&theirs),
            Err(WireError::TooLong)
        ));
        for text in [r#"{"action":"nonsense"}"#, "{"] {
            rustix::net::send(&ours, text.as_bytes(), SendFlags::empty()).unwrap();
            assert!(
                matches!(receive::<Request>(&theirs), Err(WireError::Malformed(_))),
                "{text}"
            );
        }
    }
}
