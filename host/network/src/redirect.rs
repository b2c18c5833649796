//! Redirection by traffic control, tc(8): what arrives at one interface leaves through another, with its
//! metadata (checksums to be made, segments to be cut) and without the host's network stack in between.
//!
//! Messages: linux/rtnetlink.h (`struct tcmsg`), linux/pkt_cls.h, linux/pkt_sched.h, linux/tc_act.

use crate::filter::Instruction;
use bulkhead_netlink::message::Message;
use bulkhead_netlink::socket::{CREATE, EXCLUSIVE, Socket};
use rustix::io::Errno;
use std::io;

const RTM_NEWQDISC: u16 = 36;
const RTM_NEWTFILTER: u16 = 44;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_MATCHALL_ACT: u16 = 2;
const TCA_BPF_ACT: u16 = 1;
const TCA_BPF_OPS_LEN: u16 = 4;
const TCA_BPF_OPS: u16 = 5;
const TCA_BPF_NAME: u16 = 7;
const TCA_ACT_KIND: u16 = 1;
const TCA_ACT_OPTIONS: u16 = 2;
/// TCA_MIRRED_PARMS and TCA_GACT_PARMS.
const PARAMETERS: u16 = 2;
/// TC_H_CLSACT, and its side where packets arrive.
const CLSACT: u32 = 0xffff_fff1;
const CLSACT_HANDLE: u32 = 0xffff_0000;
const INGRESS: u32 = 0xffff_fff2;
const TC_ACT_SHOT: i32 = 2;
const TC_ACT_STOLEN: i32 = 4;
/// TCA_EGRESS_REDIR.
const EGRESS_REDIRECT: i32 = 1;
/// ETH_P_ALL, in network order as the message has it.
const ALL_PROTOCOLS: u32 = 0x0003_u16.to_be() as u32;
/// Leaves room before it for filters of plugins.
const PRIORITY: u32 = 1000;

/// Which packets are redirected.
pub(crate) enum Which<'a> {
    /// All.
    All,
    /// Those that a program lets through; the others are dropped.
    Passed(&'a [Instruction]),
}

/// Redirects what arrives at a link to another, out of which it goes. Both are links of the socket's
/// namespace.
pub(crate) fn redirect(
    socket: &mut Socket,
    from: u32,
    to: u32,
    which: &Which<'_>,
) -> io::Result<()> {
    let queue = header(from, CLSACT_HANDLE, CLSACT, 0).with_text(TCA_KIND, "clsact");
    match socket.change(RTM_NEWQDISC, CREATE | EXCLUSIVE, &queue) {
        // A plugin may have made one.
        Err(error) if Errno::from_io_error(&error) == Some(Errno::EXIST) => {}
        result => result?,
    }
    let mut add = |priority: u32, kind: &str, options: &Message| {
        let message = header(from, 0, INGRESS, priority << 16 | ALL_PROTOCOLS)
            .with_text(TCA_KIND, kind)
            .with_nested(TCA_OPTIONS, options);
        socket.change(RTM_NEWTFILTER, CREATE | EXCLUSIVE, &message)
    };
    match which {
        Which::All => {
            let options = Message::default().with_nested(TCA_MATCHALL_ACT, &mirred(to));
            add(PRIORITY, "matchall", &options)
        }
        Which::Passed(program) => {
            let dropped = Message::default().with_nested(TCA_MATCHALL_ACT, &drop_packet());
            add(PRIORITY + 1, "matchall", &dropped)?;
            let length = u16::try_from(program.len()).map_err(io::Error::other)?;
            let bytes: Vec<u8> = program.iter().flat_map(|one| one.bytes()).collect();
            let options = Message::default()
                .with_nested(TCA_BPF_ACT, &mirred(to))
                .with(TCA_BPF_OPS_LEN, &length.to_ne_bytes())
                .with(TCA_BPF_OPS, &bytes)
                .with_text(TCA_BPF_NAME, "bulkhead");
            add(PRIORITY, "bpf", &options)
        }
    }
}

/// `struct tcmsg`.
fn header(index: u32, handle: u32, parent: u32, info: u32) -> Message {
    let mut bytes = vec![0; 4];
    for number in [index, handle, parent, info] {
        bytes.extend(number.to_ne_bytes());
    }
    Message::new(&bytes)
}

/// A list of one action.
fn action(kind: &str, parameters: &[u8]) -> Message {
    let options = Message::default().with(PARAMETERS, parameters);
    let one = Message::default()
        .with_text(TCA_ACT_KIND, kind)
        .with_nested(TCA_ACT_OPTIONS, &options);
    Message::default().with_nested(1, &one)
}

/// `tc_gen`: index, capabilities, action, two counters.
fn general(action: i32) -> Vec<u8> {
    let numbers = [0, 0, action, 0, 0];
    numbers
        .iter()
        .flat_map(|number: &i32| number.to_ne_bytes())
        .collect()
}

fn mirred(to: u32) -> Message {
    let mut parameters = general(TC_ACT_STOLEN);
    parameters.extend(EGRESS_REDIRECT.to_ne_bytes());
    parameters.extend(to.to_ne_bytes());
    action("mirred", &parameters)
}

fn drop_packet() -> Message {
    action("gact", &general(TC_ACT_SHOT))
}
