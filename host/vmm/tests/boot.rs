//! With a real guest: boots Linux in the VMM and plays the daemon.
//!
//! `tests/guest.sh` builds what is needed and runs this in the lab; without the images it names the
//! tests pass without doing anything.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod support;

use bulkhead_vmm_api::{
    DiskSlot, ExitReason, GuestConnection, NetworkLimits, Rate, RateLimits, Reply, Request,
    VmState, wire,
};
use std::fs::File;
use std::io::{Read, Write};
use std::net::Shutdown;
use support::{Images, Shape, Vm};

macro_rules! images {
    () => {
        match Images::find() {
            Some(images) => images,
            None => {
                support::say("skipped: BULKHEAD_GUEST_KERNEL and BULKHEAD_TEST_INIT are not set; host/vmm/tests/guest.sh sets them\n");
                return;
            }
        }
    };
}

fn end(vm: Vm, reason: ExitReason) {
    let (got, text) = vm.end();
    assert_eq!(got, Some(reason), "{text}");
    // A guest that failed has its last words told as well.
    if reason == ExitReason::GuestPanic {
        assert!(text.contains("Kernel panic"), "{text}");
    } else if !reason.is_guests_fault() {
        assert_eq!(text.lines().count(), 1, "{text}");
    }
}

fn report(vm: &mut Vm, what: &str) {
    let status = vm.status();
    let (own, guest) = vm.own_memory_kib();
    eprintln!(
        "{what}: ready {} ms after the start, first vCPU {} us after main, {own} KiB beside {guest} KiB of the guest",
        vm.started.elapsed().as_millis(),
        (status.vcpus_started_ns - status.main_ns) / 1000,
    );
}

#[test]
fn boots_and_powers_off() {
    let images = images!();
    let mut vm = Vm::start(&Shape::new(&images));
    let said = vm.ready();
    report(&mut vm, "1 vCPU, 128 MiB");
    assert!(said.starts_with("ready "), "{said}");
    eprintln!("{}", said.trim());
    let mut shell = vm.shell();
    assert_eq!(shell.ask("cpus"), "1");
    // A slot that was never used takes nothing from the guest.
    assert_eq!(shell.ask("slots"), "0");
    let entropy = shell.ask("entropy");
    assert_eq!(entropy.len(), 128, "{entropy}");
    assert_eq!(shell.ask("print hello"), "ok");
    let console = vm.console();
    assert!(console.contains("hello"), "{console}");
    shell.tell("off");
    end(vm, ExitReason::GuestPowerOff);
}

#[test]
fn a_new_generation_reseeds_the_guest() {
    let images = images!();
    let mut vm = Vm::start(&Shape::new(&images));
    vm.ready();
    let mut shell = vm.shell();
    assert_eq!(shell.ask("driver vmgenid"), "1");
    let reseeded = |shell: &mut support::Shell| {
        let log = shell.ask("dmesg");
        log.matches("due to virtual machine fork").count()
    };
    assert_eq!(reseeded(&mut shell), 0);
    for round in 1..=3 {
        assert_eq!(vm.ask(&Request::RenewGeneration, &[]), Reply::Done);
        let start = std::time::Instant::now();
        while reseeded(&mut shell) < round {
            assert!(
                start.elapsed() < support::PATIENCE,
                "{}",
                shell.ask("dmesg")
            );
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
    shell.tell("off");
    end(vm, ExitReason::GuestPowerOff);
}

#[test]
fn pauses_and_goes_on() {
    let images = images!();
    let mut shape = Shape::new(&images);
    shape.vcpus = 2;
    let mut vm = Vm::start(&shape);
    vm.ready();
    let mut shell = vm.shell();
    for _ in 0..5 {
        assert_eq!(vm.ask(&Request::Pause, &[]), Reply::Done);
        // What is asked of a guest that stands still is answered when it goes on.
        shell.tell("cpus");
        let exits = vm.status().exits;
        std::thread::sleep(std::time::Duration::from_millis(200));
        assert_eq!(vm.status().exits, exits);
        assert_eq!(vm.status().state, VmState::Paused);
        assert_eq!(vm.ask(&Request::Resume, &[]), Reply::Done);
        assert_eq!(shell.answer(), "2");
    }
    // With a disk at work.
    let path = temporary("pause", &vec![0; 8 << 20]);
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let slot = DiskSlot::ReadWrite(0);
    let limits = RateLimits::default();
    let bind = Request::BindDisk { slot, limits };
    assert_eq!(vm.ask(&bind, &[&file]), Reply::Done);
    shell.wait("sectors rw0", "16384");
    shell.tell("fill rw0 5");
    for _ in 0..5 {
        assert_eq!(vm.ask(&Request::Pause, &[]), Reply::Done);
        assert_eq!(vm.ask(&Request::Resume, &[]), Reply::Done);
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    assert_eq!(shell.answer(), "ok");
    assert_eq!(std::fs::read(&path).unwrap(), vec![5; 8 << 20]);
    assert_eq!(vm.ask(&Request::ShutDown, &[]), Reply::Done);
    end(vm, ExitReason::ShutDown);
}

#[test]
fn reboots_panics_and_is_killed() {
    let images = images!();
    for (command, reason) in [
        ("reboot", ExitReason::GuestReset),
        ("panic", ExitReason::GuestPanic),
    ] {
        let mut vm = Vm::start(&Shape::new(&images));
        vm.ready();
        vm.shell().tell(command);
        end(vm, reason);
    }
    let mut vm = Vm::start(&Shape::new(&images));
    assert_eq!(vm.ask(&Request::Kill, &[]), Reply::Done);
    end(vm, ExitReason::Killed);
}

#[test]
fn every_size_boots() {
    let images = images!();
    for (vcpus, memory_mib) in [(1, 64), (4, 512), (32, 1024), (2, 6 * 1024)] {
        let mut shape = Shape::new(&images);
        shape.vcpus = vcpus;
        shape.memory_mib = memory_mib;
        let mut vm = Vm::start(&shape);
        vm.ready();
        report(&mut vm, &format!("{vcpus} vCPUs, {memory_mib} MiB"));
        let mut shell = vm.shell();
        assert_eq!(shell.ask("cpus"), vcpus.to_string());
        let total: u64 = shell.ask("memory").parse().unwrap();
        assert!(total > memory_mib * 1024 * 3 / 5, "{total} KiB");
        eprintln!("MemTotal {total} KiB of {} KiB", memory_mib * 1024);
        shell.tell("off");
        end(vm, ExitReason::GuestPowerOff);
    }
}

fn temporary(name: &str, bytes: &[u8]) -> std::path::PathBuf {
    let path = std::env::temp_dir().join(format!("vmm-disk-{}-{name}", std::process::id()));
    std::fs::write(&path, bytes).unwrap();
    path
}

/// Whether the VMM has threads for file operations, as it does without io_uring.
fn has_pool(vm: &Vm) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{}/task", vm.child.id())).unwrap();
    let names = threads.map(|thread| std::fs::read_to_string(thread.unwrap().path().join("comm")));
    names.flatten().any(|name| name.starts_with("disk-io-"))
}

#[test]
fn disks_come_and_go() {
    let images = images!();
    let mut vm = Vm::start(&Shape::new(&images));
    vm.ready();
    come_and_go(vm);
}

/// In the lab only: it changes what all processes of the machine may do.
#[test]
fn disks_come_and_go_without_io_uring() {
    const SWITCH: &str = "/proc/sys/kernel/io_uring_disabled";
    let images = images!();
    if std::env::var_os("BULKHEAD_IN_LAB").is_none() {
        support::say("skipped: io_uring is switched off in the lab only\n");
        return;
    }
    let shape = Shape::new(&images);
    for (switch, pool) in [("2", true), ("0", false)] {
        std::fs::write(SWITCH, switch).unwrap();
        let mut vm = Vm::start(&shape);
        vm.ready();
        std::fs::write(SWITCH, "0").unwrap();
        assert_eq!(has_pool(&vm), pool, "io_uring_disabled is {switch}");
        if pool {
            come_and_go(vm);
        }
    }
}

fn come_and_go(mut vm: Vm) {
    let mut shell = vm.shell();
    let slot = DiskSlot::ReadOnly(1);
    let limits = RateLimits::default();
    let bind = Request::BindDisk { slot, limits };
    let unbind = Request::UnbindDisk { slot };
    assert_eq!(shell.ask("sectors ro1"), "none");
    for round in 1..=3_u8 {
        let path = temporary("ro", &vec![round; 3 << 20]);
        let file = File::open(&path).unwrap();
        assert_eq!(vm.ask(&bind, &[&file]), Reply::Done);
        assert!(matches!(vm.ask(&bind, &[&file]), Reply::Error { .. }));
        shell.wait("sectors ro1", "6144");
        assert_eq!(shell.ask("slots"), "1");
        assert_eq!(shell.ask("read-only ro1"), "1");
        let host = fnv(&vec![round; 3 << 20]);
        assert_eq!(shell.ask("digest ro1"), format!("{} {host:x}", 3 << 20));
        let refused = shell.ask("fill ro1 7");
        assert!(refused.starts_with("error"), "{refused}");
        assert_eq!(std::fs::read(&path).unwrap(), vec![round; 3 << 20]);
        assert_eq!(vm.ask(&unbind, &[]), Reply::Done);
        shell.wait("sectors ro1", "0");
        assert_eq!(vm.ask(&unbind, &[]), Reply::Done);
    }

    let path = temporary("rw", &vec![0; 5 << 20]);
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let slot = DiskSlot::ReadWrite(0);
    let bind = Request::BindDisk { slot, limits };
    assert_eq!(vm.ask(&bind, &[&file]), Reply::Done);
    shell.wait("sectors rw0", "10240");
    assert_eq!(shell.ask("fill rw0 9"), "ok");
    assert_eq!(std::fs::read(&path).unwrap(), vec![9; 5 << 20]);
    assert_eq!(vm.ask(&Request::UnbindDisk { slot }, &[]), Reply::Done);

    let slot = DiskSlot::ReadWrite(2);
    let reply = vm.ask(&Request::BindDisk { slot, limits }, &[&file]);
    assert!(matches!(reply, Reply::Error { .. }), "{reply:?}");
    shell.tell("off");
    end(vm, ExitReason::GuestPowerOff);
}

/// A limit holds from above: however slow the machine, no more passes in a time than it allows.
#[test]
fn no_disk_does_more_than_its_limits() {
    const OPS: u64 = 300;
    const BYTES: u64 = 4 << 20;
    let images = images!();
    let mut vm = Vm::start(&Shape::new(&images));
    vm.ready();
    let mut shell = vm.shell();
    let rate = |per_second| {
        let burst = per_second;
        Some(Rate { per_second, burst })
    };
    let path = temporary("limited", &vec![0; 16 << 20]);
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let slot = DiskSlot::ReadWrite(0);
    for (ops, bytes, command) in [
        (rate(OPS), None, "random rw0 32 2000"),
        (None, rate(BYTES), "write rw0"),
        (None, rate(BYTES), "sequential rw0"),
    ] {
        // The bucket is full again at the binding, and the driver reads the partition table.
        let began = std::time::Instant::now();
        let limits = RateLimits { ops, bytes };
        let reply = vm.ask(&Request::BindDisk { slot, limits }, &[&file]);
        assert_eq!(reply, Reply::Done);
        let served = |vm: &mut Vm| {
            let devices = vm.status().devices;
            let disk = devices.into_iter().find(|d| d.device == "rw0").unwrap();
            (disk.requests, disk.bytes)
        };
        let before = served(&mut vm);
        shell.wait("sectors rw0", &(16 << 11).to_string());
        let answer = shell.ask(command);
        let after = served(&mut vm);
        let seconds = began.elapsed().as_secs_f64();
        let (count, limit) = match bytes {
            Some(limit) => (after.1 - before.1, limit),
            None => (after.0 - before.0, ops.unwrap()),
        };
        let most = limit.burst as f64 + limit.per_second as f64 * seconds;
        eprintln!("{command}: {answer}; {count} in {seconds:.1} s, at most {most:.0}");
        assert!(count as f64 <= most, "{count} in {seconds} s");
        // It did do what it was asked for.
        let (done, _) = answer.split_once(' ').unwrap();
        let done: u64 = done.parse().unwrap();
        assert!(
            done > 0 && (done == 16 << 20 || bytes.is_none()),
            "{answer}"
        );
        assert_eq!(vm.ask(&Request::UnbindDisk { slot }, &[]), Reply::Done);
        shell.wait("sectors rw0", "0");
    }
    shell.tell("off");
    end(vm, ExitReason::GuestPowerOff);
}

fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |state, byte| {
        (state ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    })
}

#[test]
fn streams_both_ways() {
    let images = images!();
    let mut shape = Shape::new(&images);
    shape.vcpus = 2;
    let mut vm = Vm::start(&shape);
    vm.ready();

    // Refused: nobody listens there.
    assert!(vm.connect(4999).is_none());

    // The host half-closes, then the guest answers.
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|i| (i * 7) as u8).collect();
    let mut stream = vm.connect(5002).unwrap();
    stream.write_all(&bytes).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(answer.trim(), format!("{} {:x}", bytes.len(), fnv(&bytes)));

    // More than any buffer, read late, so that credit runs out on the way.
    let mut stream = vm.connect(5003).unwrap();
    writeln!(stream, "3000000").unwrap();
    std::thread::sleep(std::time::Duration::from_millis(300));
    let mut got = Vec::new();
    stream.read_to_end(&mut got).unwrap();
    assert_eq!(got.len(), 3_000_000);

    // Many at once, echoing.
    let streams: Vec<_> = (0..20).map(|_| vm.connect(5001).unwrap()).collect();
    let threads: Vec<_> = streams
        .into_iter()
        .enumerate()
        .map(|(index, mut stream)| {
            std::thread::spawn(move || {
                let data = vec![index as u8; 100_000];
                let mut writer = stream.try_clone().unwrap();
                let copy = data.clone();
                let sender = std::thread::spawn(move || {
                    writer.write_all(&copy).unwrap();
                    writer.shutdown(Shutdown::Write).unwrap();
                });
                let mut got = Vec::new();
                stream.read_to_end(&mut got).unwrap();
                sender.join().unwrap();
                assert!(got == data);
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }

    // The guest dials: it half-closes, the host answers.
    let mut shell = vm.shell();
    shell.tell("dial 77 question");
    let (connection, mut stream) = vm.dialled();
    assert_eq!(connection.port, 77);
    let mut question = String::new();
    stream.read_to_string(&mut question).unwrap();
    assert_eq!(question, "question");
    stream.write_all(b"answer").unwrap();
    drop(stream);
    assert_eq!(shell.ask("cpus"), "answer");
    // The answer to `cpus`.
    shell.tell("off");
    end(vm, ExitReason::GuestPowerOff);
}

#[test]
fn thousands_of_short_connections_leave_nothing() {
    let images = images!();
    let mut vm = Vm::start(&Shape::new(&images));
    vm.ready();
    let mut shell = vm.shell();
    let mut round = |vm: &mut Vm, count: u32| {
        for index in 0..count {
            let mut stream = vm.connect(5001).unwrap();
            stream.write_all(&index.to_le_bytes()).unwrap();
            let mut echo = [0; 4];
            stream.read_exact(&mut echo).unwrap();
            assert_eq!(u32::from_le_bytes(echo), index);
        }
        shell.tell(&format!("knock 80 {count}"));
        for _ in 0..count {
            let mut text = String::new();
            vm.dialled().1.read_to_string(&mut text).unwrap();
            assert_eq!(text, "knock");
        }
        assert_eq!(shell.answer(), "ok");
    };
    round(&mut vm, 50);
    let (open, (own, _)) = (vm.open_files(), vm.own_memory_kib());
    round(&mut vm, 1000);
    // The last ones may still be about to go.
    support::eventually("the descriptors are closed", || vm.open_files() <= open);
    let (now, _) = vm.own_memory_kib();
    eprintln!("{own} KiB after 100 connections, {now} KiB after 2000 more");
    assert!(now < own + 512, "{own} KiB, then {now}");
    shell.tell("off");
    end(vm, ExitReason::GuestPowerOff);
}

#[test]
fn a_guest_that_opens_connections_without_end_is_held_to_a_cap() {
    let images = images!();
    let mut shape = Shape::new(&images);
    shape.memory_mib = 512;
    let mut vm = Vm::start(&shape);
    vm.ready();
    let mut shell = vm.shell();
    let (open, (own, _)) = (vm.open_files(), vm.own_memory_kib());
    // Nobody reads what comes on them. The feed has to be read, or a guest is refused for that.
    let feed = std::fs::File::from(vm.feed.try_clone().unwrap());
    let taker = std::thread::spawn(move || {
        let mut held = Vec::new();
        loop {
            match wire::receive::<GuestConnection>(&feed).unwrap() {
                Some((_, stream)) => held.push(stream),
                None => return held,
            }
        }
    });
    let answer = shell.ask("flood 81");
    let (now, _) = vm.own_memory_kib();
    eprintln!("connections and bytes: {answer}; {own} KiB, then {now} KiB");
    let count: usize = answer.split(' ').next().unwrap().parse().unwrap();
    assert!((1000..1024).contains(&count), "{answer}");
    assert!(now < own + (10 << 10), "{own} KiB, then {now}");
    // Who was connected before is served, and others when there is room again.
    assert_eq!(shell.ask("cpus"), "1");
    assert!(vm.connect(5001).is_none());
    assert_eq!(shell.ask("let-go"), "ok");
    rustix::net::shutdown(&vm.feed, rustix::net::Shutdown::Both).unwrap();
    drop(taker.join().unwrap());
    support::eventually("the flood's connections are gone", || {
        vm.open_files() <= open
    });
    assert!(vm.connect(5001).is_some());
    assert_eq!(vm.ask(&Request::Kill, &[]), Reply::Done);
    end(vm, ExitReason::Killed);
}

#[test]
fn survives_the_daemon() {
    let images = images!();
    let mut vm = Vm::start(&Shape::new(&images));
    vm.ready();
    // The daemon dies: all its connections close.
    vm.control = vm.another_control();
    vm.feed = vm.another_control();
    let mut shell = vm.shell();
    // Without a feed the guest is refused.
    let answer = shell.ask("dial 77 question");
    assert!(answer.starts_with("error"), "{answer}");
    bulkhead_vmm_api::wire::send(&vm.feed, &Request::AcceptGuestConnections, &[]).unwrap();
    let done = bulkhead_vmm_api::wire::receive::<Reply>(&vm.feed)
        .unwrap()
        .unwrap();
    assert_eq!(done.0, Reply::Done);
    shell.tell("dial 78 again");
    assert_eq!(vm.dialled().0.port, 78);
    assert_eq!(vm.ask(&Request::Kill, &[]), Reply::Done);
    end(vm, ExitReason::Killed);
}

/// Sends and takes megabytes over TCP, `streams` at a time.
fn exchange(shell: &mut support::Shell, streams: usize) {
    let listener = std::net::TcpListener::bind("10.99.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let count = 5_000_000;
    shell.tell(&format!("tcp {address} {count} {streams}"));
    let back: Vec<u8> = (0..4_000_000_u32).map(|i| (i * 11) as u8).collect();
    std::thread::scope(|scope| {
        for _ in 0..streams {
            let (mut stream, _) = listener.accept().unwrap();
            let back = &back;
            scope.spawn(move || {
                let mut bytes = Vec::new();
                stream.read_to_end(&mut bytes).unwrap();
                assert!(bytes == vec![b'y'; count]);
                stream.write_all(back).unwrap();
            });
        }
    });
    let answer = format!("{} {:x}", back.len(), fnv(&back));
    assert_eq!(shell.answer(), vec![answer; streams].join(", "));
}

#[test]
fn the_network_comes_with_its_tap() {
    let images = images!();
    // The tap with a queue for each pair, and with one for several.
    let queues = [(1, 1), (4, 1), (4, 4)].map(|(vcpus, queues)| (vcpus, queues, false));
    // By the host's kernel, too.
    for (vcpus, queues, vhost) in queues.into_iter().chain([(1, 1, true), (4, 4, true)]) {
        let mut shape = Shape::new(&images);
        shape.network_interfaces = 1;
        shape.vhost_net = vhost;
        shape.vcpus = vcpus;
        let mut vm = Vm::start(&shape);
        vm.ready();
        let mut shell = vm.shell();
        assert_eq!(shell.ask("configure 2"), "ok");
        assert_eq!(shell.ask("carrier"), "0");
        assert_eq!(shell.ask("queues"), format!("{vcpus} {vcpus}"));

        let tap = support::tap("vmmtest0", queues);
        support::configure("vmmtest0", "10.99.0.1/24");
        let tap: Vec<&File> = tap.iter().collect();
        let bind = Request::BindTap {
            interface: 0,
            limits: NetworkLimits::default(),
        };
        let missing = Request::BindTap {
            interface: 1,
            limits: NetworkLimits::default(),
        };
        let reply = vm.ask(&missing, &tap);
        assert!(matches!(reply, Reply::Error { .. }), "{reply:?}");
        let reply = vm.ask(&bind, &[]);
        assert!(matches!(reply, Reply::Error { .. }), "{reply:?}");
        let mut limited = NetworkLimits::default();
        limited.egress.bytes = Some(Rate {
            per_second: if vhost { 1000 } else { 0 },
            burst: 1000,
        });
        let bind_limited = Request::BindTap {
            interface: 0,
            limits: limited,
        };
        let reply = vm.ask(&bind_limited, &tap);
        assert!(matches!(reply, Reply::Error { .. }), "{reply:?}");
        assert_eq!(vm.ask(&bind, &tap), Reply::Done);
        let reply = vm.ask(&bind, &tap);
        assert!(matches!(reply, Reply::Error { .. }), "{reply:?}");
        shell.wait("carrier", "1");
        exchange(&mut shell, 1);
        exchange(&mut shell, 4);
        let devices = vm.status().devices;
        let net = devices.iter().find(|device| device.device == "net0");
        eprintln!("{vcpus} vCPUs, {queues} queues, vhost {vhost}: {net:?}");
        assert_eq!(net.is_some_and(|net| net.bytes == 0), vhost);
        shell.tell("off");
        end(vm, ExitReason::GuestPowerOff);
    }
}

/// How soon nine tenths of what a guest has freed are the host's again.
const BACK_WITHIN: std::time::Duration = std::time::Duration::from_secs(10);

#[test]
fn memory_that_the_guest_has_freed_goes_back_to_the_host() {
    let images = images!();
    let mut shape = Shape::new(&images);
    shape.memory_mib = 256;
    let mut vm = Vm::start(&shape);
    vm.ready();
    let mut shell = vm.shell();
    let (_, before) = vm.own_memory_kib();
    assert_eq!(shell.ask("touch 128"), (128 * 256).to_string());
    let (_, peak) = vm.own_memory_kib();
    let freed = std::time::Instant::now();
    let nine_tenths_back = before + (128 << 10) / 10;
    let after = loop {
        let (_, now) = vm.own_memory_kib();
        if now <= nine_tenths_back {
            break now;
        }
        assert!(
            freed.elapsed() < BACK_WITHIN,
            "{before} KiB, then {peak}, and still {now}"
        );
        std::thread::sleep(std::time::Duration::from_millis(50));
    };
    eprintln!(
        "guest memory {before} KiB, {peak} at the peak, {after} KiB {} ms after it was freed",
        freed.elapsed().as_millis()
    );
    // What came back to the host is there again for the guest.
    assert_eq!(shell.ask("touch 128"), (128 * 256).to_string());
    let devices = vm.status().devices;
    let balloon = devices.iter().find(|d| d.device == "balloon").unwrap();
    assert!(balloon.bytes >= 100 << 20, "{balloon:?}");
    assert_eq!(balloon.errors, 0, "{balloon:?}");
    shell.tell("off");
    end(vm, ExitReason::GuestPowerOff);
}

#[test]
fn memory_keeps_its_content_while_other_memory_comes_and_goes() {
    let images = images!();
    let mut shape = Shape::new(&images);
    (shape.vcpus, shape.memory_mib) = (2, 256);
    let mut vm = Vm::start(&shape);
    vm.ready();
    let rounds: u32 = std::env::var("BULKHEAD_ROUNDS").map_or(3, |n| n.parse().unwrap());
    let threads: Vec<_> = [40_u32, 70]
        .into_iter()
        .map(|mebibytes| {
            let mut shell = vm.shell();
            std::thread::spawn(move || {
                for _ in 0..rounds {
                    let sum = (mebibytes * 256).to_string();
                    assert_eq!(shell.ask(&format!("touch {mebibytes}")), sum);
                    std::thread::sleep(std::time::Duration::from_millis(1500));
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    let devices = vm.status().devices;
    let balloon = devices.iter().find(|d| d.device == "balloon").unwrap();
    assert!(balloon.bytes > 0 && balloon.errors == 0, "{balloon:?}");
    vm.shell().tell("off");
    end(vm, ExitReason::GuestPowerOff);
}

/// Not a test of anything: prints what the default machine costs and how Linux sees it.
#[test]
fn figures() {
    let images = images!();
    for slots in [(0, 0), (16, 8)] {
        for _ in 0..2 {
            let mut shape = Shape::new(&images);
            (shape.read_only_slots, shape.read_write_slots) = slots;
            let mut vm = Vm::start(&shape);
            let said = vm.ready();
            report(&mut vm, &format!("{slots:?} slots"));
            eprintln!("{}", vm.exits());
            let mut shell = vm.shell();
            eprintln!("{}", shell.ask("free"));
            eprintln!(
                "{}; MemTotal {} KiB, {}",
                said.trim(),
                shell.ask("memory"),
                shell.ask("clocksource")
            );
            if std::env::var_os("BULKHEAD_VERBOSE").is_some() {
                eprintln!("{}", shell.ask("dmesg").replace('|', "\n"));
                eprintln!("{}", shell.ask("interrupts").replace('|', "\n"));
                eprintln!("{}", vm.console());
            }
            shell.tell("off");
            end(vm, ExitReason::GuestPowerOff);
        }
    }
}
