//! A guest that is nothing but hostile: no kernel, 64-bit code that the VMM enters by PVH, which knows the
//! machine's layout and misuses its devices until it is killed. Built by `tests/guest.sh` for
//! `tests/attack.rs`, with `attack.ld`.
//!
//! The command line says what to do: `MODE SEED`, where MODE is `registers`, `doorbells`, `queues`,
//! `console` or `all`. It has no interrupt handlers: an exception ends the VM.

#![no_std]
#![no_main]

use core::arch::{asm, global_asm};
use core::ptr::{read_volatile, write_volatile};

const WINDOWS: u64 = 0xd000_0000;
const STRIDE: u64 = 0x1000;
/// More windows than the machine has, so that some accesses go beside.
const MOST: u64 = 40;
/// The first queue's rings; each queue has 64 KiB: table, available ring, used ring, header.
const RINGS: u64 = 0x80_0000;
const QUEUES: u64 = 8;
/// Buffers, 16 MiB.
const ARENA: u64 = 0x200_0000;
const ARENA_SIZE: u64 = 0x100_0000;
const SIZE: u16 = 16;

global_asm!(
    r#"
    .section .note.pvh, "a", @note
    .align 4
    .long 4, 4, 18
    .asciz "Xen"
    .long _start

    .section .text.boot, "ax"
    .code32
    .globl _start
_start:
    mov esi, ebx
    mov edi, offset PAGES
    mov eax, edi
    add eax, 0x1003
    mov [edi], eax
    mov ecx, 4
    lea ebx, [edi + 0x1000]
    add eax, 0x1000
2:  mov [ebx], eax
    add ebx, 8
    add eax, 0x1000
    dec ecx
    jnz 2b
    lea ebx, [edi + 0x2000]
    mov eax, 0x83
    mov ecx, 2048
3:  mov [ebx], eax
    add ebx, 8
    add eax, 0x200000
    dec ecx
    jnz 3b
    mov eax, 0x620
    mov cr4, eax
    mov cr3, edi
    mov ecx, 0xc0000080
    rdmsr
    or eax, 0x100
    wrmsr
    mov eax, 0x80000033
    mov cr0, eax
    lgdt [DESCRIPTORS]
    mov esp, offset STACK + 0x4000
    push 8
    mov eax, offset long_mode
    push eax
    retf
    .code64
long_mode:
    mov ax, 16
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov rsp, offset STACK + 0x4000
    mov edi, esi
    call attack
4:  hlt
    jmp 4b

    .section .data.boot, "aw"
    .align 8
SEGMENTS:
    .quad 0
    .quad 0x00af9b000000ffff
    .quad 0x00cf93000000ffff
DESCRIPTORS:
    .word 23
    .long SEGMENTS
    .section .bss.boot, "aw", @nobits
    .align 4096
PAGES:
    .skip 0x6000
STACK:
    .skip 0x4000
"#
);

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn one_of(&mut self, from: &[u64]) -> u64 {
        let index = self.below(from.len() as u64) as usize;
        from.get(index).copied().unwrap_or(0)
    }

    fn odd(&mut self) -> u64 {
        match self.below(4) {
            0 => self.next(),
            1 => self.below(16),
            2 => self.one_of(&[0, 1, 0xffff, 0x1_0000, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, !0]),
            _ => ARENA + self.below(ARENA_SIZE),
        }
    }
}

fn write<T>(address: u64, value: T) {
    // SAFETY: everything below 4 GiB is mapped; what is written belongs to nobody else.
    unsafe { write_volatile(address as *mut T, value) }
}

fn read<T>(address: u64) -> T {
    // SAFETY: as above.
    unsafe { read_volatile(address as *const T) }
}

fn out(port: u16, value: u8) {
    // SAFETY: a port of the machine.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value) }
}

fn register(window: u64, offset: u64) -> u64 {
    WINDOWS + window * STRIDE + offset
}

/// Writes and reads registers of devices, places where there are none, and ports.
fn registers(random: &mut Random) {
    const KNOWN: &[u64] = &[
        0x00, 0x08, 0x10, 0x14, 0x20, 0x24, 0x30, 0x34, 0x38, 0x44, 0x50, 0x60, 0x64, 0x70, 0x70, 0x70, 0x80,
        0x84, 0x90, 0x94, 0xa0, 0xa4, 0xac, 0xb0, 0xfc, 0x100, 0x104,
    ];
    let offset = match random.below(4) {
        0 => random.below(STRIDE),
        _ => random.one_of(KNOWN),
    };
    let address = match random.below(16) {
        // Between the windows and the interrupt controllers.
        0 => 0xd100_0000 + random.below(0x2000_0000),
        _ => register(random.below(MOST), offset),
    };
    let value = match random.below(3) {
        0 => random.one_of(&[0, 1, 3, 11, 15, 128]),
        _ => random.odd(),
    };
    match random.below(8) {
        0 => drop(read::<u8>(address)),
        1 => drop(read::<u16>(address)),
        2 => drop(read::<u32>(address)),
        3 => drop(read::<u64>(address)),
        4 => write(address, value as u8),
        5 => write(address, value as u16),
        6 => write(address, value as u32),
        _ => write(address, value),
    }
    if random.below(8) == 0 {
        let port = random.below(0x1_0000) as u16;
        // What ends the VM is the guest's right, and would end the test.
        if !matches!(port, 0x64 | 0x505 | 0x600..=0x608) {
            out(port, value as u8);
            // SAFETY: reads a port.
            unsafe { asm!("in eax, dx", in("dx") port, out("eax") _) };
        }
    }
}

/// Sets a device up as a driver does; what the queues hold is up to others.
fn start(window: u64) {
    let set = |offset, value: u32| write(register(window, offset), value);
    let get = |offset| read::<u32>(register(window, offset));
    for value in [0, 1, 3] {
        set(0x70, value);
    }
    for page in [0, 1] {
        set(0x14, page);
        set(0x24, page);
        // Without event indices: every buffer asks for an interrupt.
        set(0x20, get(0x10) & if page == 0 { !(1 << 29) } else { !0 });
    }
    set(0x70, 11);
    for queue in 0..QUEUES {
        set(0x30, queue as u32);
        let most = get(0x34);
        if most == 0 {
            break;
        }
        let base = rings(window, queue);
        for at in (0..0x4000).step_by(8) {
            write(base + at, 0_u64);
        }
        set(0x38, most.min(SIZE.into()));
        for (offset, address) in [(0x80, base), (0x90, base + 0x1000), (0xa0, base + 0x2000)] {
            set(offset, address as u32);
            set(offset + 4, 0);
        }
        set(0x44, 1);
    }
    set(0x70, 15);
}

fn rings(window: u64, queue: u64) -> u64 {
    RINGS + (window * QUEUES + queue) * 0x1_0000
}

/// Puts a chain into a queue that its device may or may not understand.
fn chain(random: &mut Random, window: u64, queue: u64) {
    let base = rings(window, queue);
    let available = base + 0x1000;
    let index: u16 = read(available + 2);
    let used: u16 = read(base + 0x2000 + 2);
    // Mostly what a driver would do, so that the devices have work: nonsense stops them.
    let wild = random.below(256) == 0;
    if index.wrapping_sub(used) >= SIZE / 4 && !wild {
        return;
    }
    let header = base + 0x3000;
    for at in (0..64).step_by(8) {
        write(header + at, random.odd());
    }
    match read::<u32>(register(window, 8)) {
        // Disk: type, sector.
        2 => {
            write(header, random.one_of(&[0, 0, 1, 4, 8, 11, 13, 99]) as u32);
            write(header + 8, random.below(64));
        }
        // Vsock: from this guest to the host.
        19 => {
            write(header, 3_u64);
            write(header + 8, 2_u64);
            write(header + 16, random.below(64) as u32);
            write(header + 20, random.one_of(&[1024, 77, 5000, 0]) as u32);
            write(header + 24, random.below(4096) as u32);
            write(header + 28, 1_u16);
            write(header + 30, random.one_of(&[1, 1, 1, 2, 3, 4, 5, 6, 7, 9]) as u16);
            write(header + 36, random.odd() as u32);
        }
        _ => {}
    }
    let count = 1 + random.below(4) as u16;
    let first = if wild { random.next() as u16 } else { index.wrapping_mul(4) };
    let first = first % SIZE;
    // From here on the device writes.
    let writes = if random.below(8) == 0 { 0 } else { 1 + random.below(3) as u16 };
    for index in 0..count {
        let number = (first + index) % SIZE;
        let at = base + 16 * u64::from(number);
        let (mut address, mut length) = (ARENA + random.below(ARENA_SIZE - 0x1_0000), random.below(0x1_0000));
        let mut flags = u16::from(index + 1 < count) | if index >= writes { 2 } else { 0 };
        match (index, if wild { random.below(8) } else { 8 }) {
            (_, 0) => address = random.one_of(&[0xc000_0000, 0x1_0000_0000, u64::MAX - 8, WINDOWS]),
            (_, 1) => length = random.odd(),
            (_, 2) => flags = random.next() as u16,
            (0, _) if writes != 0 => {
                (address, length) = (header, random.one_of(&[16, 16, 44, 44, 12, 64]));
                flags &= 1;
            }
            _ => {}
        }
        write(at, address);
        write(at + 8, length as u32);
        write(at + 12, flags);
        write(at + 14, (number + 1) % SIZE);
    }
    write(available + 4 + 2 * u64::from(index % SIZE), first);
    let jump = if wild && random.below(4) == 0 { random.next() as u16 } else { 1 };
    write(available + 2, index.wrapping_add(jump));
    if random.below(4) == 0 {
        write(register(window, 0x50), queue as u32);
    }
    write(register(window, 0x64), 3_u32);
}

fn queues(random: &mut Random) {
    let window = random.below(MOST);
    if read::<u32>(register(window, 0)) != 0x7472_6976 {
        return;
    }
    let status = read::<u32>(register(window, 0x70));
    if status != 15 || random.below(512) == 0 {
        start(window);
    }
    for _ in 0..16 {
        let queue = random.below(3);
        chain(random, window, queue);
    }
}

fn doorbells(random: &mut Random) {
    let window = random.below(MOST);
    if random.below(4096) == 0 {
        start(window);
    }
    write(register(window, 0x50), random.one_of(&[0, 1, 2, 3, 0xffff, 0xffff_ffff]) as u32);
}

fn console(random: &mut Random) {
    out(0x3f8, random.next() as u8);
    if random.below(64) == 0 {
        out(0x3f8 + random.below(8) as u16, random.next() as u8);
    }
}

/// The command line's words.
fn order(info: u64) -> (u8, u64) {
    let mut at = read::<u64>(info + 24);
    let mode = read::<u8>(at);
    let mut seed = 0x9e37_79b9_7f4a_7c15;
    loop {
        match read::<u8>(at) {
            0 => return (mode, seed),
            digit @ b'0'..=b'9' => seed = seed * 31 + u64::from(digit),
            _ => {}
        }
        at += 1;
    }
}

#[unsafe(no_mangle)]
extern "C" fn attack(info: u64) -> ! {
    let (mode, seed) = order(info);
    let mut random = Random(seed | 1);
    for window in 0..MOST {
        if read::<u32>(register(window, 0)) == 0x7472_6976 {
            start(window);
        }
    }
    loop {
        let turn = random.below(4);
        for _ in 0..256 {
            match (mode, turn) {
                (b'r', _) | (b'a', 0) => registers(&mut random),
                (b'd', _) | (b'a', 1) => doorbells(&mut random),
                (b'c', _) | (b'a', 2) => console(&mut random),
                _ => queues(&mut random),
            }
        }
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The reset: what went wrong here is no finding.
    out(0x608, 1);
    loop {}
}
