//! Hostile guests: a program without a kernel (`guest/attack.rs`) misuses every device of its machine for a
//! while, beside a neighbour that must notice nothing.
//!
//! `tests/guest.sh` builds the program and names it in `BULKHEAD_ATTACKER`; without it the tests say that
//! they are skipped. `BULKHEAD_ATTACK_SECONDS` makes them longer.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod support;

use bulkhead_vmm_api::{DiskSlot, ExitReason, Reply, Request};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use support::{Images, Shape, Vm};

/// What a VMM may hold besides its guest's memory while it is attacked, in KiB.
const MOST_OWN_MEMORY: u64 = 24 * 1024;
const GUEST_MIB: u64 = 128;

fn seconds() -> u64 {
    let given = std::env::var("BULKHEAD_ATTACK_SECONDS");
    given.map_or(3, |text| text.parse().unwrap())
}

/// The attacker's program, with an empty initramfs.
fn attacker(folder: &tempfile::TempDir) -> Option<Images> {
    let Some(kernel) = std::env::var_os("BULKHEAD_ATTACKER") else {
        support::say("skipped: BULKHEAD_ATTACKER is not set; host/vmm/tests/guest.sh sets it\n");
        return None;
    };
    let initrd = folder.path().join("empty");
    std::fs::write(&initrd, b"").unwrap();
    Some(Images {
        kernel: PathBuf::from(kernel),
        initrd,
    })
}

fn bind(vm: &mut Vm, slot: DiskSlot, folder: &tempfile::TempDir, content: &[u8]) -> PathBuf {
    let path = folder.path().join(slot.serial());
    std::fs::write(&path, content).unwrap();
    let write = matches!(slot, DiskSlot::ReadWrite(_));
    let file = File::options().read(true).write(write).open(&path).unwrap();
    let limits = bulkhead_vmm_api::RateLimits::default();
    let bind = Request::BindDisk { slot, limits };
    assert_eq!(vm.ask(&bind, &[&file]), Reply::Done);
    path
}

/// Takes what the guest opened; nobody reads or writes it.
fn take_connections(feed: &OwnedFd, held: &mut Vec<OwnedFd>) {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let now = Timespec::default();
    while poll(&mut [PollFd::new(feed, PollFlags::IN)], Some(&now)).unwrap() > 0 {
        let received = bulkhead_vmm_api::wire::receive::<serde::de::IgnoredAny>(feed);
        match received {
            Ok(Some((_, fds))) => held.extend(fds),
            _ => return,
        }
        if held.len() > 300 {
            held.drain(..200);
        }
    }
}

/// The most that the VMM has held besides its guest's memory so far, in KiB.
fn attack(vm: &mut Vm, until: Instant, mut meanwhile: impl FnMut()) -> u64 {
    let (mut most, mut held) = (0, Vec::new());
    while Instant::now() < until {
        if vm.child.try_wait().unwrap().is_some() {
            return most;
        }
        take_connections(&vm.feed, &mut held);
        let (own, guest) = vm.own_memory_kib();
        most = most.max(own);
        assert!(
            own < MOST_OWN_MEMORY,
            "{own} KiB beside {guest} of the guest"
        );
        assert!(guest <= (GUEST_MIB + 1) * 1024, "{guest} KiB of the guest");
        meanwhile();
        std::thread::sleep(Duration::from_millis(50));
    }
    most
}

fn run(mode: &str, seed: u32) {
    let folder = tempfile::tempdir().unwrap();
    let Some(images) = attacker(&folder) else {
        return;
    };
    let mut neighbour = Neighbour::start(&images);
    let mut shape = Shape::new(&images);
    shape.memory_mib = GUEST_MIB;
    shape.cmdline = format!("{mode} {seed}");
    shape.network_interfaces = 1;
    let mut vm = Vm::start(&shape);
    let content: Vec<u8> = (0..1_u32 << 20).map(|i| (i * 13) as u8).collect();
    let read_only = bind(&mut vm, DiskSlot::ReadOnly(0), &folder, &content);
    let read_write = bind(&mut vm, DiskSlot::ReadWrite(0), &folder, &content);
    let until = Instant::now() + Duration::from_secs(seconds());
    let most = attack(&mut vm, until, || neighbour.check());

    assert_eq!(std::fs::read(read_only).unwrap(), content);
    assert_eq!(std::fs::metadata(read_write).unwrap().len(), 1 << 20);
    let ended = vm.child.try_wait().unwrap().is_some();
    let mut told = String::new();
    if !ended {
        let status = vm.status();
        told = status
            .devices
            .iter()
            .map(|d| format!("{} {}/{}/{} ", d.device, d.accesses, d.requests, d.errors))
            .collect();
        let exits: u64 = status.exits.iter().map(|exit| exit.count).sum();
        assert!(exits > 50, "the attack did not take place: {status:?}");
        // Slots can still be emptied, the guest paused, its console read.
        let slot = DiskSlot::ReadWrite(0);
        assert_eq!(vm.ask(&Request::UnbindDisk { slot }, &[]), Reply::Done);
        assert_eq!(vm.ask(&Request::Pause, &[]), Reply::Done);
        let _ = vm.console();
        assert_eq!(vm.ask(&Request::Kill, &[]), Reply::Done);
    }
    let (reason, text) = vm.end();
    // A guest that has spoilt its own memory ends by itself, and that is told as it is.
    let fair = [ExitReason::Killed, ExitReason::TripleFault];
    assert!(
        reason.is_some_and(|reason| fair.contains(&reason)),
        "{reason:?} {text}"
    );
    support::say(&format!(
        "{mode} {seed}: {reason:?}, the VMM held at most {most} KiB; accesses/requests/errors: {told}\n"
    ));
    neighbour.finish();
}

/// A VM beside the attacked one: Linux, if there is an image, or a program that only prints.
struct Neighbour {
    vm: Vm,
    echo: Option<std::os::unix::net::UnixStream>,
    slowest: Duration,
    rounds: u32,
}

impl Neighbour {
    fn start(attacker: &Images) -> Self {
        match Images::find() {
            Some(images) => {
                let mut vm = Vm::start(&Shape::new(&images));
                vm.ready();
                let echo = vm.connect(5001);
                assert!(echo.is_some());
                Self::new(vm, echo)
            }
            None => {
                let mut shape = Shape::new(attacker);
                shape.cmdline = "console 1".to_owned();
                Self::new(Vm::start(&shape), None)
            }
        }
    }

    fn new(vm: Vm, echo: Option<std::os::unix::net::UnixStream>) -> Self {
        Self {
            vm,
            echo,
            slowest: Duration::ZERO,
            rounds: 0,
        }
    }

    /// It answers, and what it answers is right.
    fn check(&mut self) {
        self.rounds += 1;
        let start = Instant::now();
        if let Some(echo) = &mut self.echo {
            let said: Vec<u8> = (0..1000).map(|i| (i * self.rounds) as u8).collect();
            echo.write_all(&said).unwrap();
            let mut heard = vec![0; said.len()];
            echo.read_exact(&mut heard).unwrap();
            assert_eq!(heard, said);
        }
        let _ = self.vm.status();
        self.slowest = self.slowest.max(start.elapsed());
    }

    fn finish(mut self) {
        self.check();
        support::say(&format!(
            "the neighbour answered {} times, at the latest after {:?}\n",
            self.rounds, self.slowest
        ));
        assert_eq!(self.vm.ask(&Request::Kill, &[]), Reply::Done);
        assert_eq!(self.vm.end().0, Some(ExitReason::Killed));
    }
}

#[test]
fn random_registers() {
    run("registers", 1);
}

#[test]
fn doorbells() {
    run("doorbells", 2);
}

#[test]
fn queues_full_of_nonsense() {
    run("queues", 3);
    run("queues", 4);
}

#[test]
fn a_console_that_never_stops() {
    run("console", 5);
}

#[test]
fn all_at_once() {
    run("all", 6);
    run("all", 7);
}

/// A daemon that does not take the guest's connections is no reason to grow.
#[test]
fn nobody_takes_what_the_guest_opens() {
    let folder = tempfile::tempdir().unwrap();
    let Some(images) = attacker(&folder) else {
        return;
    };
    let mut shape = Shape::new(&images);
    shape.memory_mib = GUEST_MIB;
    shape.cmdline = "queues 8".to_owned();
    let mut vm = Vm::start(&shape);
    let until = Instant::now() + Duration::from_secs(seconds());
    while Instant::now() < until && vm.child.try_wait().unwrap().is_none() {
        let (own, _) = vm.own_memory_kib();
        assert!(own < MOST_OWN_MEMORY, "{own} KiB");
        std::thread::sleep(Duration::from_millis(100));
    }
    // Not even its answers are read.
    let flood = vm.another_control();
    rustix::io::ioctl_fionbio(flood.as_fd(), true).unwrap();
    let status = Request::Status;
    while bulkhead_vmm_api::wire::send(&flood, &status, &[]).is_ok() {}
    if vm.child.try_wait().unwrap().is_none() {
        assert_eq!(vm.ask(&Request::Kill, &[]), Reply::Done);
    }
    let reason = vm.end().0;
    let fair = [Some(ExitReason::Killed), Some(ExitReason::TripleFault)];
    assert!(fair.contains(&reason), "{reason:?}");
}
