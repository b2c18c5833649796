//! Which devices a container may make and open: rules become a BPF program of its cgroup.
//!
//! A request asks for one or more of making, reading and writing. For each of them the last rule
//! that fits decides; what no rule is for is refused.

use crate::sys::bpf::Instruction;

/// Of a device, or any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Block devices.
    Block,
    /// Character devices.
    Char,
    /// Both.
    Any,
}

/// What a rule is about, bit by bit; linux/bpf.h's `BPF_DEVCG_ACC_*`.
pub mod access {
    /// Making a node.
    pub const MKNOD: u32 = 1;
    /// Opening for reading.
    pub const READ: u32 = 2;
    /// Opening for writing.
    pub const WRITE: u32 = 4;
    /// All of them.
    pub const ALL: u32 = MKNOD | READ | WRITE;
}

/// One rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// Whether it allows or refuses.
    pub allow: bool,
    /// Devices of this kind.
    pub kind: Kind,
    /// Of this number, or of any.
    pub major: Option<u32>,
    /// Of this number, or of any.
    pub minor: Option<u32>,
    /// Bits of [`access`].
    pub access: u32,
}

/// What every container may do, as with runc: make any node, and use those of every container's
/// `/dev` and pseudo-terminals.
pub const ALWAYS: [Rule; 10] = [
    allow(Kind::Char, None, None, access::MKNOD),
    allow(Kind::Block, None, None, access::MKNOD),
    allow(Kind::Char, Some(1), Some(3), access::ALL), // null
    allow(Kind::Char, Some(1), Some(5), access::ALL), // zero
    allow(Kind::Char, Some(1), Some(7), access::ALL), // full
    allow(Kind::Char, Some(1), Some(8), access::ALL), // random
    allow(Kind::Char, Some(1), Some(9), access::ALL), // urandom
    allow(Kind::Char, Some(5), Some(0), access::ALL), // tty
    allow(Kind::Char, Some(5), Some(2), access::ALL), // ptmx
    allow(Kind::Char, Some(136), None, access::ALL),  // pts
];

const fn allow(kind: Kind, major: Option<u32>, minor: Option<u32>, access: u32) -> Rule {
    Rule {
        allow: true,
        kind,
        major,
        minor,
        access,
    }
}

impl Rule {
    /// Whether it is about all that there is.
    fn is_for_everything(&self) -> bool {
        self.kind == Kind::Any
            && self.major.is_none()
            && self.minor.is_none()
            && self.access & access::ALL == access::ALL
    }
}

// Instructions: class, operation and source of the operand (Documentation/bpf/standardization).
const LOAD_WORD: u8 = 0x61; // BPF_LDX | BPF_MEM | BPF_W
const MOVE: u8 = 0xb7; // BPF_ALU64 | BPF_MOV | BPF_K
const COPY: u8 = 0xbc; // BPF_ALU | BPF_MOV | BPF_X
const AND: u8 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const SHIFT_RIGHT: u8 = 0x74; // BPF_ALU | BPF_RSH | BPF_K
const IF_DIFFERENT: u8 = 0x56; // BPF_JMP32 | BPF_JNE | BPF_K
const IF_ANY_BIT: u8 = 0x46; // BPF_JMP32 | BPF_JSET | BPF_K
const JUMP: u8 = 0x05; // BPF_JMP | BPF_JA
const EXIT: u8 = 0x95; // BPF_JMP | BPF_EXIT

// Registers.
const RESULT: u8 = 0;
const CONTEXT: u8 = 1; // `struct bpf_cgroup_dev_ctx`
const ACCESS: u8 = 2; // what is not decided yet
const KIND: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

const BLOCK: u32 = 1; // BPF_DEVCG_DEV_BLOCK
const CHAR: u32 = 2; // BPF_DEVCG_DEV_CHAR

/// Makes the program; `None` when the rules allow everything.
pub(super) fn program(rules: &[Rule]) -> Option<Vec<Instruction>> {
    // Nothing before a rule about everything counts.
    let first = rules.iter().rposition(Rule::is_for_everything);
    let rules = rules.get(first.unwrap_or(0)..).unwrap_or_default();
    if rules.iter().all(|rule| rule.allow) && first.is_some() {
        return None;
    }
    let mut program = vec![
        load(ACCESS, 0),
        instruction(COPY, KIND | ACCESS << 4, 0, 0),
        instruction(AND, KIND, 0, 0xffff),
        instruction(SHIFT_RIGHT, ACCESS, 0, 16),
        load(MAJOR, 4),
        load(MINOR, 8),
    ];
    for rule in rules.iter().rev() {
        program.extend(decide(rule));
    }
    program.extend(leave(0));
    Some(program)
}

/// Goes on behind itself unless it decides.
fn decide(rule: &Rule) -> Vec<Instruction> {
    let mut rest = if rule.allow {
        let others = !rule.access & access::ALL;
        let mut rest = vec![
            instruction(AND, ACCESS, 0, others),
            instruction(IF_DIFFERENT, ACCESS, 2, 0),
        ];
        rest.extend(leave(1));
        rest
    } else {
        let mut rest = vec![
            instruction(IF_ANY_BIT, ACCESS, 1, rule.access & access::ALL),
            instruction(JUMP, 0, 2, 0),
        ];
        rest.extend(leave(0));
        rest
    };
    let kind = match rule.kind {
        Kind::Any => None,
        Kind::Block => Some(BLOCK),
        Kind::Char => Some(CHAR),
    };
    for (register, wanted) in [(MINOR, rule.minor), (MAJOR, rule.major), (KIND, kind)] {
        if let Some(wanted) = wanted {
            // At most seven instructions: the jump is a short one.
            let skip = i16::try_from(rest.len()).unwrap_or(i16::MAX);
            rest.insert(0, instruction(IF_DIFFERENT, register, skip, wanted));
        }
    }
    rest
}

fn leave(result: u32) -> [Instruction; 2] {
    [
        instruction(MOVE, RESULT, 0, result),
        instruction(EXIT, 0, 0, 0),
    ]
}

fn load(register: u8, offset: i16) -> Instruction {
    instruction(LOAD_WORD, register | CONTEXT << 4, offset, 0)
}

fn instruction(code: u8, registers: u8, offset: i16, immediate: u32) -> Instruction {
    Instruction {
        code,
        registers,
        offset,
        immediate: immediate.cast_signed(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a program as the kernel does.
    fn allowed(rules: &[Rule], kind: u32, major: u32, minor: u32, access: u32) -> bool {
        let Some(program) = program(rules) else {
            return true;
        };
        let context = [access << 16 | kind, major, minor];
        let mut registers = [0u32; 6];
        let mut at = 0i64;
        loop {
            let one = program[usize::try_from(at).unwrap()];
            let to = usize::from(one.registers & 15);
            let k = one.immediate.cast_unsigned();
            at += 1;
            match one.code {
                LOAD_WORD => registers[to] = context[usize::try_from(one.offset / 4).unwrap()],
                MOVE => registers[to] = k,
                COPY => registers[to] = registers[usize::from(one.registers >> 4)],
                AND => registers[to] &= k,
                SHIFT_RIGHT => registers[to] >>= k,
                IF_DIFFERENT if registers[to] != k => at += i64::from(one.offset),
                IF_ANY_BIT if registers[to] & k != 0 => at += i64::from(one.offset),
                IF_DIFFERENT | IF_ANY_BIT => {}
                JUMP => at += i64::from(one.offset),
                EXIT => return registers[0] == 1,
                code => panic!("instruction {code:#x}"),
            }
        }
    }

    const fn deny(kind: Kind, major: Option<u32>, minor: Option<u32>, access: u32) -> Rule {
        Rule {
            allow: false,
            ..allow(kind, major, minor, access)
        }
    }

    #[test]
    fn the_usual_devices_are_allowed_and_no_others() {
        for (kind, major, minor, access, expected) in [
            (CHAR, 1, 3, access::ALL, true),
            (CHAR, 1, 3, access::WRITE, true),
            (CHAR, 136, 7, access::READ | access::WRITE, true),
            (CHAR, 1, 1, access::READ, false),
            (CHAR, 1, 1, access::MKNOD, true),
            (CHAR, 1, 1, access::MKNOD | access::READ, false),
            (BLOCK, 254, 0, access::READ, false),
            (BLOCK, 254, 0, access::MKNOD, true),
            (BLOCK, 1, 3, access::READ, false),
        ] {
            assert_eq!(
                allowed(&ALWAYS, kind, major, minor, access),
                expected,
                "{kind} {major}:{minor} {access}"
            );
        }
    }

    #[test]
    fn the_last_rule_for_each_access_decides() {
        let rules = [
            allow(Kind::Any, None, None, access::ALL),
            deny(Kind::Block, Some(8), None, access::WRITE),
            allow(Kind::Block, Some(8), Some(1), access::WRITE),
            deny(Kind::Char, Some(10), Some(200), access::ALL),
        ];
        let both = access::READ | access::WRITE;
        assert!(allowed(&rules, BLOCK, 8, 0, access::READ));
        assert!(!allowed(&rules, BLOCK, 8, 0, both));
        assert!(allowed(&rules, BLOCK, 8, 1, both));
        assert!(!allowed(&rules, CHAR, 10, 200, access::READ));
        assert!(allowed(&rules, CHAR, 10, 201, access::ALL));
        // Reading by one rule, writing by another.
        let rules = [
            allow(Kind::Block, Some(9), None, access::READ),
            allow(Kind::Block, None, Some(5), access::WRITE),
        ];
        assert!(allowed(&rules, BLOCK, 9, 5, both));
        assert!(!allowed(&rules, BLOCK, 9, 4, both));
    }

    #[test]
    fn a_rule_about_everything_forgets_those_before() {
        let all = allow(Kind::Any, None, None, access::ALL);
        let none = deny(Kind::Any, None, None, access::ALL);
        assert_eq!(program(&[none, all]), None);
        assert_eq!(program(&[none, all, ALWAYS[0]]), None);
        assert!(!allowed(&[all, none], CHAR, 1, 3, access::READ));
        assert!(!allowed(&[], CHAR, 1, 3, access::READ));
        assert!(allowed(&[all, none, ALWAYS[2]], CHAR, 1, 3, access::READ));
    }
}
