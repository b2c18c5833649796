//! The very programs, run by a small machine of the same kind.

use super::{
    ADD, ADD_X, AND, FROM_X, IF_EQUAL, IF_GREATER_X, Instruction, JUMP, MAX_ADDRESSES, PASS, RETURN,
};
use super::{LOAD_BYTE, LOAD_BYTE_X, LOAD_HALF, LOAD_HALF_X, LOAD_LENGTH, LOAD_MEMORY, LOAD_VALUE};
use super::{
    LOAD_WORD, LOAD_WORD_X, SHIFT_LEFT, STORE, TO_X, VLAN_TAG_PRESENT, link_local, program,
};
use std::net::{IpAddr, Ipv6Addr};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];
const OTHER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 8];
const OWN: [u8; 4] = [10, 0, 0, 7];
const OWN6: [u16; 8] = [0xfd00, 0, 0, 0, 0, 0, 0, 7];
const OTHER6: [u16; 8] = [0xfd00, 0, 0, 0, 0, 0, 0, 8];

/// What the kernel's machine answers.
fn run(program: &[Instruction], packet: &[u8], tagged: bool) -> u32 {
    let (mut a, mut x, mut memory) = (0_u32, 0_u32, [None; 16]);
    let mut at = 0;
    loop {
        let one = program[at];
        at += 1;
        let k = one.value;
        let bytes = |from: u32, count: usize| {
            let from = from as usize;
            let part = packet.get(from..from.checked_add(count)?)?;
            Some(part.iter().fold(0, |all, byte| all << 8 | u32::from(*byte)))
        };
        let loaded = match one.code {
            LOAD_WORD if k == VLAN_TAG_PRESENT => Some(tagged.into()),
            LOAD_WORD => bytes(k, 4),
            LOAD_HALF => bytes(k, 2),
            LOAD_BYTE => bytes(k, 1),
            LOAD_WORD_X => bytes(x + k, 4),
            LOAD_HALF_X => bytes(x + k, 2),
            LOAD_BYTE_X => bytes(x + k, 1),
            LOAD_LENGTH => Some(packet.len() as u32),
            LOAD_VALUE => Some(k),
            LOAD_MEMORY => Some(memory[k as usize].unwrap()),
            ADD => Some(a.wrapping_add(k)),
            ADD_X => Some(a.wrapping_add(x)),
            AND => Some(a & k),
            SHIFT_LEFT => Some(a << k),
            FROM_X => Some(x),
            STORE => {
                memory[k as usize] = Some(a);
                Some(a)
            }
            TO_X => {
                x = a;
                Some(a)
            }
            JUMP => {
                at += k as usize;
                Some(a)
            }
            IF_EQUAL | IF_GREATER_X => {
                let fits = if one.code == IF_EQUAL { a == k } else { a > x };
                at += usize::from(if fits { one.if_true } else { one.if_false });
                Some(a)
            }
            RETURN => return k,
            code => panic!("unknown instruction {code:#x}"),
        };
        match loaded {
            Some(value) => a = value,
            None => return 0,
        }
    }
}

fn own() -> Vec<Instruction> {
    program(MAC, &[OWN.into(), OWN6.into()])
}

fn passes(packet: &[u8]) -> bool {
    run(&own(), packet, false) == PASS
}

fn frame(source: [u8; 6], kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend(source);
    frame.extend(kind.to_be_bytes());
    frame.extend(payload);
    frame
}

fn ipv4(source: [u8; 4]) -> Vec<u8> {
    let mut header = vec![0x45; 20];
    header[12..16].copy_from_slice(&source);
    header
}

fn arp(mac: [u8; 6], sender: [u8; 4]) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4, 0, 2];
    packet.extend(mac);
    packet.extend(sender);
    packet.extend([0xff; 6]);
    packet.extend([10, 0, 0, 1]);
    packet
}

fn ipv6(source: Ipv6Addr, next: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(u16::try_from(payload.len()).unwrap().to_be_bytes());
    packet.extend([next, 255]);
    packet.extend(source.octets());
    packet.extend([0xff; 16]);
    packet.extend(payload);
    frame(MAC, 0x86dd, &packet)
}

fn discovery(kind: u8, target: [u16; 8], option: Option<(u8, [u8; 6])>) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0, 0, 0, 0, 0];
    message.extend(Ipv6Addr::from(target).octets());
    if let Some((kind, mac)) = option {
        message.extend([kind, 1]);
        message.extend(mac);
    }
    message
}

#[test]
fn only_the_pods_own_hardware_and_ipv4_addresses_leave() {
    assert!(passes(&frame(MAC, 0x0800, &ipv4(OWN))));
    assert!(!passes(&frame(OTHER_MAC, 0x0800, &ipv4(OWN))));
    assert!(!passes(&frame(MAC, 0x0800, &ipv4([10, 0, 0, 8]))));
    assert!(!passes(&frame(MAC, 0x0800, &ipv4([0, 0, 0, 0]))));
    assert!(!passes(&frame(MAC, 0x0800, &ipv4(OWN)[..12])), "cut off");
    assert!(
        !passes(&frame(MAC, 0x8100, &ipv4(OWN))),
        "a second VLAN tag"
    );
    assert_eq!(
        run(&own(), &frame(MAC, 0x0800, &ipv4(OWN)), true),
        0,
        "a VLAN tag"
    );
    assert!(!passes(&[]));
}

#[test]
fn arp_speaks_for_the_pod_only() {
    assert!(passes(&frame(MAC, 0x0806, &arp(MAC, OWN))));
    assert!(passes(&frame(MAC, 0x0806, &arp(MAC, [0; 4]))), "a probe");
    assert!(!passes(&frame(MAC, 0x0806, &arp(OTHER_MAC, OWN))));
    assert!(!passes(&frame(MAC, 0x0806, &arp(MAC, [10, 0, 0, 1]))));
    let mut odd = arp(MAC, OWN);
    odd[4] = 8;
    assert!(!passes(&frame(MAC, 0x0806, &odd)));
}

#[test]
fn ipv6_from_the_pods_addresses_and_its_link_local_one() {
    let tcp = [0; 20];
    assert!(passes(&ipv6(OWN6.into(), 6, &tcp)));
    assert!(passes(&ipv6(link_local(MAC), 6, &tcp)));
    assert!(!passes(&ipv6(link_local(OTHER_MAC), 6, &tcp)));
    assert!(!passes(&ipv6(OTHER6.into(), 6, &tcp)));
    assert!(!passes(&ipv6(Ipv6Addr::UNSPECIFIED, 6, &tcp)));
    // Behind extension headers: hop-by-hop of 16 bytes, then a first fragment.
    let mut behind = vec![44, 1];
    behind.extend([0; 14]);
    behind.extend([6, 0, 0, 1, 0, 0, 0, 1]);
    behind.extend(tcp);
    assert!(passes(&ipv6(OWN6.into(), 0, &behind)));
    assert!(!passes(&ipv6(OTHER6.into(), 0, &behind)));
}

#[test]
fn neighbour_discovery_speaks_for_the_pod_only() {
    let own = |payload: &[u8]| passes(&ipv6(OWN6.into(), 58, payload));
    assert!(own(&discovery(136, OWN6, Some((2, MAC)))));
    assert!(own(&discovery(136, OWN6, None)));
    assert!(own(&discovery(
        136,
        link_local(MAC).segments(),
        Some((2, MAC))
    )));
    assert!(!own(&discovery(136, OTHER6, Some((2, MAC)))));
    assert!(!own(&discovery(136, OWN6, Some((2, OTHER_MAC)))));
    assert!(own(&discovery(135, OTHER6, Some((1, MAC)))));
    assert!(!own(&discovery(135, OTHER6, Some((1, OTHER_MAC)))));
    assert!(!own(&discovery(134, [0; 8], None)), "router advertisement");
    assert!(!own(&discovery(137, [0; 8], None)), "redirect");
    assert!(own(&discovery(128, [0; 8], None)), "echo");
    let unspecified = |payload: &[u8]| passes(&ipv6(Ipv6Addr::UNSPECIFIED, 58, payload));
    assert!(
        unspecified(&discovery(135, OWN6, Some((14, [1; 6])))),
        "address detection"
    );
    assert!(!unspecified(&discovery(136, OWN6, Some((2, MAC)))));
    assert!(!unspecified(&discovery(128, [0; 8], None)));
    // A forged option behind others, and one of no length.
    let mut two = discovery(136, OWN6, Some((14, [1; 6])));
    two.extend([2, 1]);
    two.extend(OTHER_MAC);
    assert!(!own(&two));
    let mut endless = discovery(136, OWN6, None);
    endless.extend([14, 0, 0, 0, 0, 0, 0, 0]);
    assert!(!own(&endless));
    let mut many = discovery(136, OWN6, None);
    many.extend([14, 1, 0, 0, 0, 0, 0, 0].repeat(5));
    assert!(!own(&many));
}

#[test]
fn extension_headers_hide_nothing() {
    let advertisement = discovery(136, OTHER6, Some((2, MAC)));
    for kind in [0, 43, 60, 44] {
        for depth in 1..8 {
            let mut payload = Vec::new();
            for left in (0..depth).rev() {
                payload.extend([if left == 0 { 58 } else { kind }, 0, 0, 0, 0, 0, 0, 0]);
            }
            payload.extend(&advertisement);
            assert!(
                !passes(&ipv6(OWN6.into(), kind, &payload)),
                "{depth} of {kind}"
            );
        }
    }
}

#[test]
fn without_addresses_only_the_hardware_address_counts() {
    let program = program(MAC, &[]);
    let packet = frame(MAC, 0x0800, &ipv4([1, 2, 3, 4]));
    assert_eq!(run(&program, &packet, false), PASS);
    let packet = frame(OTHER_MAC, 0x0800, &ipv4([1, 2, 3, 4]));
    assert_eq!(run(&program, &packet, false), 0);
}

#[test]
fn the_largest_program_is_one_that_the_kernel_takes() {
    let addresses: Vec<IpAddr> = (0..MAX_ADDRESSES)
        .map(|number| [0xfd00, 0, 0, 0, 0, 0, 0, u16::try_from(number).unwrap()].into())
        .collect();
    let program = program(MAC, &addresses);
    assert!(program.len() <= 4096, "{}", program.len());
    assert_eq!(
        run(
            &program,
            &ipv6(Ipv6Addr::from([0xfd00, 0, 0, 0, 0, 0, 0, 63]), 6, &[0; 20]),
            false
        ),
        PASS
    );
}
