//! What a process says last must arrive, however soon it ends after it.

use super::{Answer, receive};
use crate::init::plan::{Failure, FailureKind};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc;

/// Without the second look, one in some ten thousand is lost.
const ROUNDS: u32 = 200_000;

#[test]
fn the_failure_of_a_process_that_ends_at_once_arrives() {
    let (sender, receiver) = mpsc::sync_channel::<OwnedFd>(0);
    let failure = Failure {
        kind: FailureKind::NotFound,
        message: "The program is not in the image".to_owned(),
    };
    let text = serde_json::to_vec(&failure).unwrap();
    let process = std::thread::spawn(move || {
        for socket in receiver {
            rustix::io::write(&socket, &text).unwrap();
        }
    });
    for round in 0..ROUNDS {
        let flags = SocketFlags::CLOEXEC;
        let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None);
        let (ours, theirs) = pair.unwrap();
        sender.send(theirs).unwrap();
        let answer = loop {
            match receive(ours.as_fd()) {
                Err(error) if Errno::from_io_error(&error) == Some(Errno::AGAIN) => {}
                answer => break answer.unwrap(),
            }
        };
        match answer {
            Answer::Failure(said) => assert_eq!(said.message, failure.message),
            Answer::Closed => panic!("Round {round}: the failure is lost"),
            Answer::Ready(..) => panic!("Round {round}: it is not ready"),
        }
    }
    drop(sender);
    process.join().unwrap();
}
