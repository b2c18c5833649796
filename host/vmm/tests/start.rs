//! The VMM as a process, without Linux in it: configurations that it refuses, and payloads of a few
//! instructions, which run wherever there is a `/dev/kvm` of any kind.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

#[path = "support/payload.rs"]
mod payload;
mod support;

use bulkhead_vmm_api::{
    DiskSlot, ExitReason, NetworkLimits, PROTOCOL_VERSION, Reply, Request, VmState, VmmConfig,
};
use payload::{Folder, halt, has_kvm, image, out_byte, power_off};
use rustix::net::SocketType;
use std::fs::File;
use std::os::fd::OwnedFd;

use support::{Vm, finish, listener, spawn, spawn_raw, user};

#[test]
fn payloads_end_as_they_say() {
    if !has_kvm() {
        return;
    }
    let folder = Folder::new();
    // `lidt [0x1000]`, an empty table in zeroed memory, and then no handler for anything.
    let triple_fault = [0x0f, 0x01, 0x1d, 0x00, 0x10, 0x00, 0x00, 0x0f, 0x0b];
    for (code, reason) in [
        (power_off(), ExitReason::GuestPowerOff),
        (out_byte(0x64, 0xfe), ExitReason::GuestReset),
        (out_byte(0x608, 1), ExitReason::GuestReset),
        (out_byte(0x505, 1), ExitReason::GuestPanic),
        (triple_fault.to_vec(), ExitReason::TripleFault),
    ] {
        let vm = Vm::start(&folder.shape(&[code, halt()].concat()));
        let (got, text) = vm.end();
        assert_eq!(got, Some(reason), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.starts_with("bulkhead-vmm: "), "{text}");
    }
}

#[test]
fn the_control_socket_answers_while_the_guest_idles() {
    if !has_kvm() {
        return;
    }
    let folder = Folder::new();
    let mut shape = folder.shape(&[out_byte(0x3f8, b'h'), out_byte(0x3f8, b'i'), halt()].concat());
    shape.vcpus = 2;
    shape.memory_mib = 6 * 1024;
    let mut vm = Vm::start(&shape);
    let start = std::time::Instant::now();
    while vm.console() != "hi" {
        assert!(start.elapsed() < support::PATIENCE);
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let status = vm.status();
    assert_eq!(status.version, PROTOCOL_VERSION);
    let writes = status.exits.iter().find(|e| e.reason == "port-write");
    assert_eq!(writes.unwrap().count, 2);
    let console = status.devices.iter().find(|d| d.device == "console");
    assert_eq!(console.unwrap().accesses, 2);
    // The kernel, the tables and the boot data: little of 6 GiB.
    assert!(
        (4096..1 << 20).contains(&status.guest_memory_bytes),
        "{status:?}"
    );
    assert!(status.main_ns > 0 && status.vcpus_started_ns > status.main_ns);
    let names: Vec<&str> = status.devices.iter().map(|d| d.device.as_str()).collect();
    assert_eq!(
        names,
        [
            "vsock", "rng", "balloon", "ro0", "ro1", "rw0", "rw1", "console", "platform"
        ]
    );
    let (own, _) = vm.own_memory_kib();
    assert!(own < 8 * 1024, "{own} KiB");

    // Requests that are refused change nothing, and the connection goes on.
    let disk = folder.file("disk", &[0; 1024]);
    let writable = File::options().read(true).write(true).open(&disk).unwrap();
    let readable = File::open(&disk).unwrap();
    let bind = |slot| Request::BindDisk {
        slot,
        limits: bulkhead_vmm_api::RateLimits::default(),
    };
    for (request, files) in [
        (bind(DiskSlot::ReadOnly(0)), vec![&writable]),
        (bind(DiskSlot::ReadOnly(0)), vec![]),
        (bind(DiskSlot::ReadOnly(0)), vec![&readable, &readable]),
        (bind(DiskSlot::ReadOnly(9)), vec![&readable]),
        (bind(DiskSlot::ReadWrite(0)), vec![&readable]),
        (
            Request::BindTap {
                interface: 0,
                limits: NetworkLimits::default(),
            },
            vec![&readable],
        ),
    ] {
        let reply = vm.ask(&request, &files);
        assert!(
            matches!(reply, Reply::Error { .. }),
            "{request:?}: {reply:?}"
        );
    }
    assert_eq!(
        vm.ask(&bind(DiskSlot::ReadOnly(0)), &[&readable]),
        Reply::Done
    );
    let slot = DiskSlot::ReadOnly(0);
    assert_eq!(vm.ask(&Request::UnbindDisk { slot }, &[]), Reply::Done);

    // Nonsense is answered too; another daemon may come.
    let second = vm.another_control();
    rustix::net::send(&second, b"{}", rustix::net::SendFlags::empty()).unwrap();
    let reply = bulkhead_vmm_api::wire::receive::<Reply>(&second)
        .unwrap()
        .unwrap()
        .0;
    assert!(matches!(reply, Reply::Error { .. }), "{reply:?}");
    drop(std::mem::replace(&mut vm.control, second));
    // No guest listens.
    assert!(vm.connect(1025).is_none());
    assert_eq!(vm.ask(&Request::Kill, &[]), Reply::Done);
    let (reason, text) = vm.end();
    assert_eq!(reason, Some(ExitReason::Killed), "{text}");
}

/// Prints without end.
fn chatter() -> Vec<u8> {
    [out_byte(0x3f8, b'x'), vec![0xeb, 0xfd]].concat()
}

fn printed(vm: &mut Vm) -> u64 {
    let devices = vm.status().devices;
    let console = devices.iter().find(|d| d.device == "console").unwrap();
    console.bytes
}

fn wait_for_more(vm: &mut Vm, than: u64) {
    let start = std::time::Instant::now();
    while printed(vm) <= than {
        assert!(start.elapsed() < support::PATIENCE);
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

/// CPU time of a process's threads in clock ticks, by name: proc_pid_stat(5), fields 14 and 15.
fn cpu_ticks(vm: &Vm) -> Vec<(String, u64)> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", vm.child.id())).unwrap();
    let stats = tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("stat")));
    stats
        .map(|stat| {
            let stat = stat.unwrap();
            let (name, rest) = stat.rsplit_once(") ").unwrap();
            let fields: Vec<&str> = rest.split(' ').collect();
            let ticks = |field: usize| fields[field - 3].parse::<u64>().unwrap();
            let name = name.split_once('(').unwrap().1;
            (name.to_owned(), ticks(14) + ticks(15))
        })
        .collect()
}

/// Why the console needs no limit of its rate: what a guest prints costs it its own time and nobody else's.
#[test]
fn a_flood_of_the_console_costs_the_vcpus_time_only() {
    if !has_kvm() {
        return;
    }
    let folder = Folder::new();
    let mut vm = Vm::start(&folder.shape(&chatter()));
    wait_for_more(&mut vm, 0);
    let (before, memory) = (cpu_ticks(&vm), vm.own_memory_kib().0);
    let printed_before = printed(&mut vm);
    let spent = |vm: &Vm| -> (u64, u64) {
        let now = cpu_ticks(vm);
        let pairs = now.iter().zip(&before);
        let spent = pairs.map(|(now, before)| (now.0.starts_with("vcpu"), now.1 - before.1));
        spent.fold((0, 0), |(vcpus, others), (is_vcpu, ticks)| match is_vcpu {
            true => (vcpus + ticks, others),
            false => (vcpus, others + ticks),
        })
    };
    let start = std::time::Instant::now();
    // A second or so of the vCPU's.
    let (vcpus, others) = loop {
        let spent = spent(&vm);
        if spent.0 >= 100 {
            break spent;
        }
        assert!(start.elapsed() < support::PATIENCE, "{spent:?}");
        std::thread::sleep(std::time::Duration::from_millis(100));
    };
    let bytes = printed(&mut vm) - printed_before;
    let grown = vm.own_memory_kib().0.saturating_sub(memory);
    eprintln!("{bytes} bytes: {vcpus} ticks of the vCPU, {others} of others, {grown} KiB more");
    assert!(others * 20 <= vcpus, "{vcpus} and {others}");
    // The ring, which may have been smaller at the beginning.
    assert!(grown <= 512, "{grown} KiB");
    assert!(vm.console().len() <= 64 * 1024);
}

#[test]
fn a_paused_guest_stands_still_and_goes_on() {
    if !has_kvm() {
        return;
    }
    let folder = Folder::new();
    let mut shape = folder.shape(&chatter());
    // The others wait to be started, as after a boot.
    shape.vcpus = 4;
    let mut vm = Vm::start(&shape);
    assert_eq!(vm.ask(&Request::Resume, &[]), Reply::Done);
    let mut before = 0;
    for round in 0..20 {
        wait_for_more(&mut vm, before);
        assert_eq!(vm.status().state, VmState::Running);
        assert_eq!(vm.ask(&Request::Pause, &[]), Reply::Done, "{round}");
        if round % 2 == 0 {
            assert_eq!(vm.ask(&Request::Pause, &[]), Reply::Done, "{round}");
        }
        before = printed(&mut vm);
        assert_eq!(vm.status().state, VmState::Paused);
        std::thread::sleep(std::time::Duration::from_millis(round));
        assert_eq!(printed(&mut vm), before, "{round}");
        assert_eq!(vm.ask(&Request::Resume, &[]), Reply::Done);
        assert_eq!(vm.ask(&Request::Resume, &[]), Reply::Done);
    }
    wait_for_more(&mut vm, before);
    // A paused VM can be ended, too.
    assert_eq!(vm.ask(&Request::Pause, &[]), Reply::Done);
    assert_eq!(vm.ask(&Request::Kill, &[]), Reply::Done);
    let (reason, text) = vm.end();
    assert_eq!(reason, Some(ExitReason::Killed), "{text}");
}

#[test]
fn a_vm_that_is_shut_down_lets_go_of_its_disks_first() {
    if !has_kvm() {
        return;
    }
    let folder = Folder::new();
    let disk = folder.file("disk", &[0; 1024]);
    let disk = File::open(&disk).unwrap();
    for paused_before in [false, true] {
        let mut vm = Vm::start(&folder.shape(&chatter()));
        for slot in [DiskSlot::ReadOnly(0), DiskSlot::ReadOnly(1)] {
            let limits = bulkhead_vmm_api::RateLimits::default();
            let bind = Request::BindDisk { slot, limits };
            assert_eq!(vm.ask(&bind, &[&disk]), Reply::Done);
        }
        if paused_before {
            assert_eq!(vm.ask(&Request::Pause, &[]), Reply::Done);
        }
        assert_eq!(vm.ask(&Request::ShutDown, &[]), Reply::Done);
        let (reason, text) = vm.end();
        assert_eq!(reason, Some(ExitReason::ShutDown), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
    }
}

#[test]
fn a_new_generation_id_reaches_the_guest() {
    if !has_kvm() {
        return;
    }
    let folder = Folder::new();
    // `mov eax, [0xff000]`; the loop: `cmp eax, [0xff000]; je loop`; then it says so.
    let code = [
        out_byte(0x3f8, b'a'),
        vec![0xa1, 0x00, 0xf0, 0x0f, 0x00],
        vec![0x3b, 0x05, 0x00, 0xf0, 0x0f, 0x00, 0x74, 0xf8],
        out_byte(0x3f8, b'b'),
        halt(),
    ];
    let mut vm = Vm::start(&folder.shape(&code.concat()));
    wait_for_more(&mut vm, 0);
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert_eq!(printed(&mut vm), 1);
    assert_eq!(vm.ask(&Request::RenewGeneration, &[]), Reply::Done);
    wait_for_more(&mut vm, 1);
    assert_eq!(vm.console(), "ab");
}

#[test]
fn actions_that_nobody_knows_are_refused() {
    if !has_kvm() {
        return;
    }
    let folder = Folder::new();
    let mut vm = Vm::start(&folder.shape(&halt()));
    for packet in [
        "{}",
        "[]",
        "null",
        "\"pause\"",
        "{\"action\":\"pause\"",
        "{\"action\":\"snapshot\"}",
        "{\"action\":\"bind-disk\"}",
        "{\"action\":\"bind-disk\",\"slot\":{\"read-only\":256}}",
        "{\"action\":\"console\",\"max_bytes\":-1}",
        "\u{7f}\u{1}",
    ] {
        let flags = rustix::net::SendFlags::empty();
        rustix::net::send(&vm.control, packet.as_bytes(), flags).unwrap();
        let reply = vm.answer();
        assert!(matches!(reply, Reply::Error { .. }), "{packet}: {reply:?}");
    }
    assert_eq!(vm.status().state, VmState::Running);
    // Too long, and too many descriptors: the connection ends, the VM does not.
    for descriptors in [false, true] {
        let other = vm.another_control();
        if descriptors {
            let files: Vec<_> = (0..9).map(|_| File::open("/dev/null").unwrap()).collect();
            send_with(&other, b"{\"action\":\"status\"}", &files);
        } else {
            let packet = vec![b' '; bulkhead_vmm_api::MAX_PACKET + 1];
            rustix::net::send(&other, &packet, rustix::net::SendFlags::empty()).unwrap();
        }
        let reply = bulkhead_vmm_api::wire::receive::<Reply>(&other);
        assert!(matches!(reply, Ok(None) | Err(_)), "{reply:?}");
    }
    // Many connections: those beyond the cap are closed.
    let many: Vec<_> = (0..40).map(|_| vm.another_control()).collect();
    assert_eq!(vm.status().state, VmState::Running);
    drop(many);
    assert_eq!(vm.ask(&Request::Kill, &[]), Reply::Done);
    assert_eq!(vm.end().0, Some(ExitReason::Killed));
}

fn send_with(socket: &OwnedFd, packet: &[u8], files: &[File]) {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    use std::os::fd::AsFd;
    let fds: Vec<_> = files.iter().map(|file| file.as_fd()).collect();
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    let bytes = [std::io::IoSlice::new(packet)];
    sendmsg(socket, &bytes, &mut control, SendFlags::empty()).unwrap();
}

type Change = fn(&mut VmmConfig);

/// What a configuration needs, with an image that must never run.
fn parts(folder: &Folder, kernel: &[u8], initrd: u64) -> Vec<OwnedFd> {
    let kernel = folder.file("kernel", kernel);
    let path = folder.file("initrd", b"");
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(initrd)
        .unwrap();
    let _ = std::fs::remove_file(folder.0.path().join("c"));
    let _ = std::fs::remove_file(folder.0.path().join("v"));
    vec![
        File::options()
            .read(true)
            .write(true)
            .open("/dev/kvm")
            .unwrap()
            .into(),
        File::open(kernel).unwrap().into(),
        File::open(path).unwrap().into(),
        listener(&folder.0.path().join("c"), SocketType::SEQPACKET),
        listener(&folder.0.path().join("v"), SocketType::STREAM),
    ]
}

fn refused(folder: &Folder, kernel: &[u8], initrd: u64, change: Change, says: &str) {
    let mut child = spawn(
        |fds| {
            let mut config = VmmConfig {
                vcpus: 1,
                memory_mib: 64,
                cmdline: String::new(),
                kvm_fd: fds[0],
                kernel_fd: fds[1],
                initrd_fd: fds[2],
                control_fd: fds[3],
                vsock_fd: fds[4],
                read_only_slots: 1,
                read_write_slots: 1,
                network_interfaces: 0,
                shared_volumes: false,
                vhost_net_fds: Vec::new(),
                uid: user(),
                gid: user(),
                network_namespace_fd: None,
            };
            change(&mut config);
            config
        },
        parts(folder, kernel, initrd),
    );
    let (reason, text) = finish(&mut child);
    assert_eq!(reason, Some(ExitReason::StartFailed), "{says}: {text}");
    assert!(text.contains(says), "{says}: {text}");
    assert_eq!(text.lines().count(), 1, "{text}");
}

#[test]
fn configurations_without_sense_are_refused_in_one_sentence() {
    if !has_kvm() {
        return;
    }
    let folder = Folder::new();
    let kernel = image(&halt());
    let cases: [(Change, &str); 17] = [
        (|c| c.vcpus = 0, "0 vCPUs"),
        (|c| c.vcpus = 33, "33 vCPUs"),
        (|c| c.memory_mib = 63, "63 MiB"),
        (|c| c.memory_mib = u64::MAX, "MiB of memory"),
        (|c| c.read_only_slots = 64, "65 disk slots"),
        (|c| c.network_interfaces = 9, "9 network interfaces"),
        (|c| c.cmdline = "x".repeat(2048), "command line"),
        (|c| c.cmdline = "a\0b".to_owned(), "command line"),
        (|c| c.kvm_fd = 99, "kvm_fd"),
        (|c| c.kvm_fd = -1, "kvm_fd"),
        (|c| c.kernel_fd = 1, "kernel_fd"),
        (|c| c.initrd_fd = c.kernel_fd, "initrd_fd"),
        (|c| c.kvm_fd = 3000, "kvm_fd"),
        (
            |c| (c.kvm_fd, c.kernel_fd) = (c.kernel_fd, c.kvm_fd),
            "kernel_fd",
        ),
        (
            |c| (c.kvm_fd, c.control_fd) = (c.control_fd, c.kvm_fd),
            "control_fd",
        ),
        (
            |c| (c.vsock_fd, c.control_fd) = (c.control_fd, c.vsock_fd),
            "control_fd",
        ),
        (
            |c| (c.kvm_fd, c.initrd_fd) = (c.initrd_fd, c.kvm_fd),
            "initrd_fd",
        ),
    ];
    for (change, says) in cases {
        refused(&folder, &kernel, 0, change, says);
    }
}

#[test]
fn images_without_sense_are_refused_in_one_sentence() {
    if !has_kvm() {
        return;
    }
    let folder = Folder::new();
    let good = image(&halt());
    let changed = |at: usize, bytes: &[u8]| {
        let mut image = good.clone();
        image[at..at + bytes.len()].copy_from_slice(bytes);
        image
    };
    let cases: [(Vec<u8>, &str); 14] = [
        (b"#!/bin/sh\n".to_vec(), "too short"),
        (vec![0; 4096], "not a 64-bit x86 ELF"),
        (changed(4, &[1]), "not a 64-bit x86 ELF"),
        (changed(18, &[183]), "not a 64-bit x86 ELF"),
        (changed(32, &[0xff; 8]), "program headers"),
        (changed(54, &[57]), "program headers"),
        (changed(56, &[0, 1]), "program headers"),
        // The segment: its place in the file, its address, its size in the file and in memory.
        (changed(64 + 8, &[0xff; 8]), "end of file"),
        (changed(64 + 8, &(!0xfff_u64).to_le_bytes()), "end of file"),
        (changed(64 + 24, &0x1000_u64.to_le_bytes()), "segment"),
        (changed(64 + 24, &[0xff; 8]), "segment"),
        (changed(64 + 40, &(1_u64 << 40).to_le_bytes()), "memory"),
        // No note, and an entry outside.
        (changed(0x108, &[17]), "PVH"),
        (changed(0x110, &[0, 0, 0, 1]), "entry"),
    ];
    for (kernel, says) in cases {
        refused(&folder, &kernel, 0, |_| {}, says);
    }
    refused(&folder, &good, 63 << 20, |_| {}, "initramfs");
    refused(&folder, &good, 1 << 40, |_| {}, "initramfs");
}

#[test]
fn what_is_not_a_configuration_is_refused() {
    for text in ["", "{", "[]", "{\"vcpus\": 1}", &"x".repeat(70_000)] {
        let mut child = spawn_raw(text.as_bytes(), Vec::new());
        let (reason, text) = finish(&mut child);
        assert_eq!(reason, Some(ExitReason::StartFailed), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
    }
}
