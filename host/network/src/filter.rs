//! What may leave a VM: packets with the pod's own addresses, and nothing else.
//!
//! The filter is a program for the kernel's classic BPF machine (Linux `Documentation/networking/filter.rst`)
//! which the traffic classifier `bpf` runs on what the tap brings. Offset 0 is the Ethernet header; a load
//! beyond the packet's end ends the program with 0. There are no loops, so whatever is repeated is repeated
//! in the program, and what is longer than that is dropped.
//!
//! Passed are, without a VLAN tag and from the pod's own hardware address:
//!
//! - IPv4 from an address of the pod;
//! - ARP with the pod's hardware address and an address of the pod, or 0.0.0.0 (a probe), as the sender;
//! - IPv6 from an address of the pod, its link-local one among them; from the unspecified address only
//!   neighbour and router solicitations and multicast listener reports;
//! - of neighbour discovery (RFC 4861) no router advertisements and redirects, no advertisement of somebody
//!   else's address, no link-layer option with somebody else's hardware address.
//!
//! An interface without addresses has no address to speak for: there only the hardware address counts.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// `struct sock_filter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    code: u16,
    if_true: u8,
    if_false: u8,
    value: u32,
}

impl Instruction {
    /// As the kernel takes it.
    pub(crate) fn bytes(self) -> [u8; 8] {
        let [c0, c1] = self.code.to_ne_bytes();
        let [v0, v1, v2, v3] = self.value.to_ne_bytes();
        [c0, c1, self.if_true, self.if_false, v0, v1, v2, v3]
    }
}

/// The most addresses of an interface; a program has at most 4096 instructions (BPF_MAXINSNS).
pub const MAX_ADDRESSES: usize = 64;

// linux/bpf_common.h: class, size and mode together.
const LOAD_WORD: u16 = 0x20;
const LOAD_HALF: u16 = 0x28;
const LOAD_BYTE: u16 = 0x30;
const LOAD_WORD_X: u16 = 0x40;
const LOAD_HALF_X: u16 = 0x48;
const LOAD_BYTE_X: u16 = 0x50;
const LOAD_MEMORY: u16 = 0x60;
const LOAD_LENGTH: u16 = 0x80;
const LOAD_VALUE: u16 = 0x00;
const STORE: u16 = 0x02;
const ADD: u16 = 0x04;
const ADD_X: u16 = 0x0c;
const AND: u16 = 0x54;
const SHIFT_LEFT: u16 = 0x64;
const JUMP: u16 = 0x05;
const IF_EQUAL: u16 = 0x15;
const IF_GREATER_X: u16 = 0x2d;
const RETURN: u16 = 0x06;
const TO_X: u16 = 0x07;
const FROM_X: u16 = 0x87;
/// SKF_AD_OFF + SKF_AD_VLAN_TAG_PRESENT (linux/filter.h).
const VLAN_TAG_PRESENT: u32 = (-0x1000_i32 + 48).cast_unsigned();

const PASS: u32 = u32::MAX;
const DROP: u32 = 0;

const SOURCE_MAC: u32 = 6;
const ETHER_TYPE: u32 = 12;
/// Behind the Ethernet header.
const PAYLOAD: u32 = 14;
const IPV4_SOURCE: u32 = PAYLOAD + 12;
const ARP_SENDER_MAC: u32 = PAYLOAD + 8;
const ARP_SENDER: u32 = PAYLOAD + 14;
const IPV6_NEXT_HEADER: u32 = PAYLOAD + 6;
const IPV6_SOURCE: u32 = PAYLOAD + 8;
const IPV6_PAYLOAD: u32 = PAYLOAD + 40;

// ICMPv6 (RFC 4443, 4861, 2710, 3810).
const ICMPV6: u32 = 58;
const LISTENER_REPORT: u32 = 131;
const LISTENER_DONE: u32 = 132;
const ROUTER_SOLICITATION: u32 = 133;
const ROUTER_ADVERTISEMENT: u32 = 134;
const NEIGHBOUR_SOLICITATION: u32 = 135;
const NEIGHBOUR_ADVERTISEMENT: u32 = 136;
const REDIRECT: u32 = 137;
const LISTENER_REPORT_2: u32 = 143;
/// Behind the target of a neighbour solicitation or advertisement.
const ND_OPTIONS: u32 = 24;
const ND_TARGET: u32 = 8;

/// So many extension headers and so many options are looked through.
const EXTENSION_HEADERS: usize = 4;
const OPTIONS: usize = 4;

/// Memory words: whether the source is unspecified, and a value that is kept over a calculation.
const UNSPECIFIED: u32 = 0;
const KEPT: u32 = 1;

/// The program for an interface. `addresses` are those that the pod has on it; without any only the
/// hardware address is looked at.
#[must_use]
pub fn program(mac: [u8; 6], addresses: &[IpAddr]) -> Vec<Instruction> {
    let mut ipv4: Vec<Ipv4Addr> = Vec::new();
    let mut ipv6 = vec![link_local(mac)];
    for address in addresses {
        match address {
            IpAddr::V4(address) => ipv4.push(*address),
            IpAddr::V6(address) => ipv6.push(*address),
        }
    }
    let mut program = Program::new();
    program.ethernet(mac);
    if addresses.is_empty() {
        program.go(PASSED);
    } else {
        let (for_ipv4, for_arp, for_ipv6) = (program.fresh(), program.fresh(), program.fresh());
        program.load(LOAD_HALF, ETHER_TYPE);
        program.if_equal(0x0800, for_ipv4);
        program.if_equal(0x0806, for_arp);
        program.if_equal(0x86dd, for_ipv6);
        program.go(DROPPED);
        program.here(for_ipv4);
        program.ipv4(&ipv4);
        program.here(for_arp);
        program.arp(mac, &ipv4);
        program.here(for_ipv6);
        program.ipv6(mac, &ipv6);
    }
    program.finish()
}

/// The link-local address that an interface makes of its hardware address (RFC 4291, appendix A).
#[must_use]
pub fn link_local(mac: [u8; 6]) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac;
    Ipv6Addr::from([
        0xfe,
        0x80,
        0,
        0,
        0,
        0,
        0,
        0,
        a ^ 2,
        b,
        c,
        0xff,
        0xfe,
        d,
        e,
        f,
    ])
}

/// A place in a program.
type Label = usize;
const PASSED: Label = 0;
const DROPPED: Label = 1;

/// A program being written: jumps to labels, all forward, are filled in at the end.
struct Program {
    instructions: Vec<Instruction>,
    jumps: Vec<(usize, Label)>,
    /// Where each label is.
    labels: Vec<usize>,
}

impl Program {
    fn new() -> Self {
        Self {
            instructions: Vec::new(),
            jumps: Vec::new(),
            labels: vec![0; 2],
        }
    }

    fn fresh(&mut self) -> Label {
        self.labels.push(0);
        self.labels.len() - 1
    }

    fn here(&mut self, label: Label) {
        let here = self.instructions.len();
        if let Some(place) = self.labels.get_mut(label) {
            *place = here;
        }
    }

    fn add(&mut self, code: u16, if_true: u8, if_false: u8, value: u32) {
        self.instructions.push(Instruction {
            code,
            if_true,
            if_false,
            value,
        });
    }

    fn load(&mut self, code: u16, at: u32) {
        self.add(code, 0, 0, at);
    }

    fn calculate(&mut self, code: u16, value: u32) {
        self.add(code, 0, 0, value);
    }

    fn go(&mut self, label: Label) {
        self.jumps.push((self.instructions.len(), label));
        self.add(JUMP, 0, 0, 0);
    }

    fn if_equal(&mut self, value: u32, label: Label) {
        self.add(IF_EQUAL, 0, 1, value);
        self.go(label);
    }

    fn unless_equal(&mut self, value: u32, label: Label) {
        self.add(IF_EQUAL, 1, 0, value);
        self.go(label);
    }

    /// Compares bytes from `at` on, or from X + `at` on; goes to the label where they differ.
    fn unless_bytes(&mut self, bytes: &[u8], at: u32, indexed: bool, label: Label) {
        let mut at = at;
        for part in bytes.chunks(4) {
            let (code, value) = match part {
                [a, b, c, d] => (LOAD_WORD, u32::from_be_bytes([*a, *b, *c, *d])),
                [a, b] => (LOAD_HALF, u32::from(u16::from_be_bytes([*a, *b]))),
                _ => continue,
            };
            let indexed_code = code + (LOAD_WORD_X - LOAD_WORD);
            self.load(if indexed { indexed_code } else { code }, at);
            self.unless_equal(value, label);
            // 2 or 4.
            at += part.len() as u32;
        }
    }

    /// Goes to the label if the bytes are one of these addresses.
    fn if_one_of(&mut self, addresses: &[Ipv6Addr], at: u32, indexed: bool, label: Label) {
        for address in addresses {
            let next = self.fresh();
            self.unless_bytes(&address.octets(), at, indexed, next);
            self.go(label);
            self.here(next);
        }
    }

    fn ethernet(&mut self, mac: [u8; 6]) {
        self.load(LOAD_WORD, VLAN_TAG_PRESENT);
        self.unless_equal(0, DROPPED);
        self.unless_bytes(&mac, SOURCE_MAC, false, DROPPED);
    }

    fn ipv4(&mut self, addresses: &[Ipv4Addr]) {
        self.load(LOAD_WORD, IPV4_SOURCE);
        for address in addresses {
            self.if_equal((*address).into(), PASSED);
        }
        self.go(DROPPED);
    }

    fn arp(&mut self, mac: [u8; 6], addresses: &[Ipv4Addr]) {
        // Ethernet and IPv4, and the lengths of their addresses.
        self.unless_bytes(&[0, 1, 8, 0], PAYLOAD, false, DROPPED);
        self.unless_bytes(&[6, 4], PAYLOAD + 4, false, DROPPED);
        self.unless_bytes(&mac, ARP_SENDER_MAC, false, DROPPED);
        self.load(LOAD_WORD, ARP_SENDER);
        for address in addresses.iter().chain([&Ipv4Addr::UNSPECIFIED]) {
            self.if_equal((*address).into(), PASSED);
        }
        self.go(DROPPED);
    }

    fn ipv6(&mut self, mac: [u8; 6], addresses: &[Ipv6Addr]) {
        let (source_is_fine, icmp, other) = (self.fresh(), self.fresh(), self.fresh());
        self.remember(UNSPECIFIED, 0);
        self.if_one_of(addresses, IPV6_SOURCE, false, source_is_fine);
        self.unless_bytes(&[0; 16], IPV6_SOURCE, false, DROPPED);
        self.remember(UNSPECIFIED, 1);
        self.here(source_is_fine);
        self.load(LOAD_VALUE, IPV6_PAYLOAD);
        self.add(TO_X, 0, 0, 0);
        self.load(LOAD_BYTE, IPV6_NEXT_HEADER);
        for _ in 0..EXTENSION_HEADERS {
            self.extension_header(icmp, other);
        }
        self.if_equal(ICMPV6, icmp);
        // Of what comes behind so many headers nobody knows what it is.
        self.go(DROPPED);
        self.here(icmp);
        self.icmpv6(mac, addresses, other);
        self.here(other);
        self.load(LOAD_MEMORY, UNSPECIFIED);
        self.if_equal(0, PASSED);
        self.go(DROPPED);
    }

    fn remember(&mut self, word: u32, value: u32) {
        self.load(LOAD_VALUE, value);
        self.add(STORE, 0, 0, word);
    }

    /// With the next header's kind in A and its place in X: goes on to the one after it, or to what is
    /// carried.
    fn extension_header(&mut self, icmp: Label, other: Label) {
        let (generic, fragment, done) = (self.fresh(), self.fresh(), self.fresh());
        self.if_equal(ICMPV6, icmp);
        // Hop-by-hop, routing, destination.
        for kind in [0, 43, 60] {
            self.if_equal(kind, generic);
        }
        self.if_equal(44, fragment);
        self.go(other);
        // Its length is told in units of 8 bytes past the first.
        self.here(generic);
        self.keep_next_header();
        self.load(LOAD_BYTE_X, 1);
        self.calculate(ADD, 1);
        self.calculate(SHIFT_LEFT, 3);
        self.calculate(ADD_X, 0);
        self.go(done);
        // 8 bytes; only the first fragment has what comes after.
        self.here(fragment);
        self.load(LOAD_HALF_X, 2);
        self.calculate(AND, 0xfff8);
        self.unless_equal(0, other);
        self.keep_next_header();
        self.add(FROM_X, 0, 0, 0);
        self.calculate(ADD, 8);
        self.here(done);
        self.add(TO_X, 0, 0, 0);
        self.load(LOAD_MEMORY, KEPT);
    }

    fn keep_next_header(&mut self) {
        self.load(LOAD_BYTE_X, 0);
        self.add(STORE, 0, 0, KEPT);
    }

    /// With the message in X.
    fn icmpv6(&mut self, mac: [u8; 6], addresses: &[Ipv6Addr], other: Label) {
        let (advertisement, options) = (self.fresh(), self.fresh());
        self.load(LOAD_BYTE_X, 0);
        for kind in [ROUTER_ADVERTISEMENT, REDIRECT] {
            self.if_equal(kind, DROPPED);
        }
        for kind in [
            LISTENER_REPORT,
            LISTENER_DONE,
            LISTENER_REPORT_2,
            ROUTER_SOLICITATION,
        ] {
            self.if_equal(kind, PASSED);
        }
        self.if_equal(NEIGHBOUR_SOLICITATION, options);
        self.if_equal(NEIGHBOUR_ADVERTISEMENT, advertisement);
        self.go(other);
        self.here(advertisement);
        self.load(LOAD_MEMORY, UNSPECIFIED);
        self.unless_equal(0, DROPPED);
        self.if_one_of(addresses, ND_TARGET, true, options);
        self.go(DROPPED);
        self.here(options);
        self.add(FROM_X, 0, 0, 0);
        self.calculate(ADD, ND_OPTIONS);
        self.add(TO_X, 0, 0, 0);
        for _ in 0..OPTIONS {
            self.option(mac);
        }
        self.if_at_end(PASSED);
        self.go(DROPPED);
    }

    /// With an option in X: checks it and goes on to the one after it.
    fn option(&mut self, mac: [u8; 6]) {
        let (link_layer, next) = (self.fresh(), self.fresh());
        self.if_at_end(PASSED);
        self.load(LOAD_BYTE_X, 0);
        // Source and target link-layer address.
        self.if_equal(1, link_layer);
        self.if_equal(2, link_layer);
        self.go(next);
        self.here(link_layer);
        self.unless_bytes(&mac, 2, true, DROPPED);
        self.here(next);
        // In units of 8 bytes; receivers discard a message with an option of none.
        self.load(LOAD_BYTE_X, 1);
        self.if_equal(0, DROPPED);
        self.calculate(SHIFT_LEFT, 3);
        self.calculate(ADD_X, 0);
        self.add(TO_X, 0, 0, 0);
    }

    /// Goes to the label if the packet ends at X or before.
    fn if_at_end(&mut self, label: Label) {
        self.load(LOAD_LENGTH, 0);
        self.add(IF_GREATER_X, 1, 0, 0);
        self.go(label);
    }

    fn finish(mut self) -> Vec<Instruction> {
        self.here(PASSED);
        self.calculate(RETURN, PASS);
        self.here(DROPPED);
        self.calculate(RETURN, DROP);
        for (at, label) in self.jumps {
            let to = self.labels.get(label).copied().unwrap_or_default();
            if let Some(jump) = self.instructions.get_mut(at) {
                // Counted from the instruction behind the jump; all labels are further on.
                jump.value = (to - at - 1) as u32;
            }
        }
        self.instructions
    }
}

#[cfg(test)]
mod tests;
