//! A payload that takes a virtio device's interrupt: through the pin, KVM's IOAPIC and local APIC, to a handler that
//! acknowledges it, and no further.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

#[path = "support/payload.rs"]
mod payload;
mod support;

use bulkhead_vmm_api::{DiskSlot, RateLimits, Reply, Request};
use payload::{ADDRESS, Folder, halt, has_kvm, out_byte};
use std::fs::File;
use std::time::{Duration, Instant};
use support::Vm;

// Offsets in the payload.
const HANDLER: u32 = 0x200;
const TABLES: u32 = 0x300;
const INTERRUPTS: u32 = 0x400;
/// How often the handler has served a cause.
const COUNT: u32 = 0x600;
/// How often it found no cause.
const CAUSELESS: u32 = 0x604;
const SIZE: usize = 0x700;

/// The window of `ro0`, after vsock, rng and balloon, the next one, and the pin of `ro0`.
const WINDOW: u32 = 0xd000_3000;
const NEXT_WINDOW: u32 = 0xd000_4000;
const PIN: u32 = 13;
const VECTOR: u32 = 0x25;
/// A configuration change, in InterruptStatus.
const CONFIG_CHANGE: u32 = 2;

// Offsets in a window.
const DEVICE_ID: u32 = 0x08;
const DRIVER_FEATURES: u32 = 0x20;
const DRIVER_FEATURES_SEL: u32 = 0x24;
const INTERRUPT_STATUS: u32 = 0x60;
const INTERRUPT_ACK: u32 = 0x64;
const STATUS: u32 = 0x70;

const LAPIC_EOI: u32 = 0xfee0_00b0;
const LAPIC_SPURIOUS: u32 = 0xfee0_00f0;
const IOAPIC_SELECT: u32 = 0xfec0_0000;
const IOAPIC_DATA: u32 = 0xfec0_0010;

/// An instruction whose last operands are 32 bits each.
fn code(instruction: &[u8], operands: &[u32]) -> Vec<u8> {
    let operands = operands.iter().flat_map(|operand| operand.to_le_bytes());
    instruction.iter().copied().chain(operands).collect()
}

/// `mov dword [address], value`.
fn store(address: u32, value: u32) -> Vec<u8> {
    code(&[0xc7, 0x05], &[address, value])
}

/// `mov eax, [address]; mov ecx, eax; add al, '0'; mov dx, 0x3f8; out dx, al`.
fn print_register(address: u32) -> Vec<u8> {
    let print = [0x89, 0xc1, 0x04, b'0', 0x66, 0xba, 0xf8, 0x03, 0xee];
    [code(&[0xa1], &[address]), print.to_vec()].concat()
}

/// `mov esp, 3 MiB; sti; hlt; jmp back`.
fn wait_for_interrupts() -> Vec<u8> {
    [code(&[0xbc], &[0x30_0000]), vec![0xfb], halt()].concat()
}

/// Is the driver of `ro0`, without a queue, and waits for interrupts.
fn main_program() -> Vec<u8> {
    let status = [0, 1, 3].map(|value| store(WINDOW + STATUS, value));
    [
        // `lgdt; jmp far 8:next; lidt`.
        code(&[0x0f, 0x01, 0x15], &[ADDRESS + TABLES + 0x20]),
        [code(&[0xea], &[ADDRESS + 14]), vec![0x08, 0x00]].concat(),
        code(&[0x0f, 0x01, 0x1d], &[ADDRESS + TABLES + 0x28]),
        // Until the host has bound `ro1`, after `ro0`: `cmp dword [address], 2; jne back`.
        [
            code(&[0x83, 0x3d], &[NEXT_WINDOW + DEVICE_ID]),
            vec![2, 0x75, 0xf7],
        ]
        .concat(),
        status.concat(),
        // VIRTIO_F_VERSION_1.
        store(WINDOW + DRIVER_FEATURES_SEL, 1),
        store(WINDOW + DRIVER_FEATURES, 1),
        store(WINDOW + STATUS, 0xb),
        store(WINDOW + STATUS, 0xf),
        // The other way to the processor, through the PICs, stays closed.
        out_byte(0x21, 0xff),
        out_byte(0xa1, 0xff),
        store(LAPIC_SPURIOUS, 0x1ff),
        // Level-triggered, for the first processor.
        store(IOAPIC_SELECT, 0x11 + 2 * PIN),
        store(IOAPIC_DATA, 0),
        store(IOAPIC_SELECT, 0x10 + 2 * PIN),
        store(IOAPIC_DATA, 0x8000 | VECTOR),
        out_byte(0x3f8, b'r'),
        wait_for_interrupts(),
    ]
    .concat()
}

/// Prints InterruptStatus. From the third time on it also acknowledges, and prints it again. An interrupt without a
/// cause is passed over at first, for a KVM that emulates the guest's instructions may deliver one twice; a pin that
/// stays high brings more.
fn handler() -> Vec<u8> {
    const PASSED_OVER: u8 = 8;
    let acknowledge = [
        // `mov [InterruptACK], ecx`.
        code(&[0x89, 0x0d], &[WINDOW + INTERRUPT_ACK]),
        print_register(WINDOW + INTERRUPT_STATUS),
    ]
    .concat();
    let length = |bytes: &[u8]| u8::try_from(bytes.len()).unwrap();
    // `inc dword [counter]; cmp dword [counter], limit; jb past`.
    let unless_below = |counter, limit, past| {
        let compare = [code(&[0x83, 0x3d], &[counter]), vec![limit, 0x72, past]];
        [code(&[0xff, 0x05], &[counter]), compare.concat()].concat()
    };
    let serve = [
        print_register(WINDOW + INTERRUPT_STATUS),
        unless_below(ADDRESS + COUNT, 3, length(&acknowledge)),
        acknowledge,
    ]
    .concat();
    let pass_over = unless_below(ADDRESS + CAUSELESS, PASSED_OVER, length(&serve));
    [
        // `mov eax, [InterruptStatus]; test eax, eax; jnz past`.
        code(&[0xa1], &[WINDOW + INTERRUPT_STATUS]),
        vec![0x85, 0xc0, 0x75, length(&pass_over)],
        pass_over,
        serve,
        store(LAPIC_EOI, 0),
        // Not `iret`, which KVM's emulator does not know and a KVM without VMX needs it for.
        wait_for_interrupts(),
    ]
    .concat()
}

fn payload() -> Vec<u8> {
    let mut image = vec![0; SIZE];
    let mut put = |offset: u32, bytes: &[u8], end: u32| {
        assert!(bytes.len() <= (end - offset) as usize);
        image[offset as usize..][..bytes.len()].copy_from_slice(bytes);
    };
    put(0, &main_program(), HANDLER);
    put(HANDLER, &handler(), TABLES);
    // Flat code and data, then what `lgdt` and `lidt` read.
    let segments = [0, 0x00cf_9b00_0000_ffff_u64, 0x00cf_9300_0000_ffff];
    put(
        TABLES,
        &segments.map(u64::to_le_bytes).concat(),
        TABLES + 0x20,
    );
    let pointer = |limit: u16, base: u32| [&limit.to_le_bytes()[..], &base.to_le_bytes()].concat();
    put(TABLES + 0x20, &pointer(23, ADDRESS + TABLES), TABLES + 0x28);
    let size = (VECTOR as u16 + 1) * 8 - 1;
    put(
        TABLES + 0x28,
        &pointer(size, ADDRESS + INTERRUPTS),
        INTERRUPTS,
    );
    let handler = (ADDRESS + HANDLER).to_le_bytes();
    let gate = [
        handler[0], handler[1], 8, 0, 0, 0x8e, handler[2], handler[3],
    ];
    put(INTERRUPTS + VECTOR * 8, &gate, COUNT);
    image
}

/// The console once it is so long, and a while later.
fn console_of(vm: &mut Vm, length: usize) -> String {
    let start = Instant::now();
    while vm.console().len() < length {
        assert!(start.elapsed() < support::PATIENCE, "{:?}", vm.console());
        std::thread::sleep(Duration::from_millis(1));
    }
    // A pin that stays high would bring more.
    std::thread::sleep(Duration::from_millis(50));
    vm.console()
}

#[test]
fn an_interrupt_is_taken_until_it_is_acknowledged() {
    if !has_kvm() {
        return;
    }
    let folder = Folder::new();
    let mut vm = Vm::start(&folder.shape(&payload()));
    let disk = File::open(folder.file("disk", &[0; 1024])).unwrap();
    let bind = |number| Request::BindDisk {
        slot: DiskSlot::ReadOnly(number),
        limits: RateLimits::default(),
    };
    for number in [0, 1] {
        assert_eq!(vm.ask(&bind(number), &[&disk]), Reply::Done);
    }
    // The driver is told once it is ready that the disk is another one.
    let taken = CONFIG_CHANGE.to_string();
    let mut expected = format!("r{taken}{taken}{taken}0");
    assert_eq!(console_of(&mut vm, expected.len()), expected);
    let slot = DiskSlot::ReadOnly(0);
    for request in [Request::UnbindDisk { slot }, bind(0)] {
        let files = match request {
            Request::BindDisk { .. } => vec![&disk],
            _ => Vec::new(),
        };
        assert_eq!(vm.ask(&request, &files), Reply::Done);
        expected += &format!("{taken}0");
        assert_eq!(console_of(&mut vm, expected.len()), expected);
    }
    assert_eq!(vm.ask(&Request::Kill, &[]), Reply::Done);
}
