use super::Gate;
use rustix::event::{PollFd, PollFlags, poll};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

fn readable(fd: BorrowedFd<'_>, wait: Duration) -> bool {
    let timeout = wait.try_into().unwrap();
    poll(
        &mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)],
        Some(&timeout),
    )
    .unwrap()
        > 0
}

fn now(fd: BorrowedFd<'_>) -> bool {
    readable(fd, Duration::ZERO)
}

#[test]
fn an_open_gate_stops_nobody() {
    let gate = Gate::new(3).unwrap();
    assert!(!gate.pass());
    gate.open();
    assert!(!gate.pass() && !gate.is_closed() && !gate.is_stopped());
    assert!(!now(gate.ring()) && !now(gate.stopped()));
}

#[test]
fn a_gate_without_members_has_stopped_at_once() {
    let gate = Gate::new(0).unwrap();
    gate.close();
    assert!(gate.is_stopped() && now(gate.stopped()));
}

#[test]
fn everybody_stops_between_close_and_open_however_often() {
    const MEMBERS: usize = 3;
    let gate = Arc::new(Gate::new(MEMBERS).unwrap());
    let work = Arc::new(AtomicU64::new(0));
    for _ in 0..MEMBERS {
        let (gate, work) = (Arc::clone(&gate), Arc::clone(&work));
        // The threads end with the process.
        std::thread::spawn(move || {
            loop {
                gate.pass();
                work.fetch_add(1, Ordering::SeqCst);
            }
        });
    }
    for round in 0..200 {
        gate.close();
        gate.close();
        assert!(gate.is_closed() && now(gate.ring()));
        assert!(readable(gate.stopped(), Duration::from_secs(60)), "{round}");
        assert!(gate.is_stopped());
        let done = work.load(Ordering::SeqCst);
        std::thread::yield_now();
        assert_eq!(work.load(Ordering::SeqCst), done, "{round}");
        gate.open();
        assert!(!gate.is_stopped() && !now(gate.stopped()));
        if round % 2 == 0 {
            while work.load(Ordering::SeqCst) == done {
                std::thread::yield_now();
            }
        }
    }
}

#[test]
fn who_is_leaving_does_not_count_as_stopped() {
    let gate = Arc::new(Gate::new(2).unwrap());
    gate.close();
    let member = Arc::clone(&gate);
    let waiting = std::thread::spawn(move || member.pass());
    while super::lock(&gate.state).waiting == 0 {
        std::thread::yield_now();
    }
    assert!(!gate.is_stopped());
    gate.open();
    gate.close();
    assert!(!gate.is_stopped() && !now(gate.stopped()));
    assert!(waiting.join().unwrap());
    gate.open();
}
