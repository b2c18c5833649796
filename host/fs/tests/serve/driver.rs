//! A front end and a driver: one queue in memory of its own, one FUSE request at a time.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemory, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

const SIZE: usize = 0x2_0000;
const REQUEST: u64 = 0x8000;
const REPLY: u64 = 0x1_0000;
const ROOM: u32 = 0x1_0000;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;
const VERSION_1: u64 = 1 << 32;
/// A program that does neither answer nor end in this time hangs.
const LIMIT_MS: i32 = 20_000;
/// Queue 0 is for requests of high priority.
const QUEUE: usize = 1;

pub(crate) struct Driver {
    front_end: Frontend,
    memory: GuestMemoryMmap,
    kick: EventFd,
    call: EventFd,
    sent: u16,
}

impl Driver {
    pub(crate) fn new(socket: UnixStream) -> Self {
        let file = rustix::fs::memfd_create("bounce", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let file = File::from(file);
        file.set_len(SIZE as u64).unwrap();
        let handle = file.as_raw_fd();
        let memory = GuestMemoryMmap::from_ranges_with_files([(
            GuestAddress(0),
            SIZE,
            Some(FileOffset::new(file, 0)),
        )])
        .unwrap();
        let base = memory.get_host_address(GuestAddress(0)).unwrap() as u64;
        let mut front_end = Frontend::from_stream(socket, 2);
        front_end.set_owner().unwrap();
        let features = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() | VERSION_1;
        assert_eq!(front_end.get_features().unwrap() & features, features);
        front_end.set_features(features).unwrap();
        front_end.get_protocol_features().unwrap();
        front_end
            .set_protocol_features(VhostUserProtocolFeatures::REPLY_ACK)
            .unwrap();
        front_end
            .set_mem_table(&[VhostUserMemoryRegionInfo {
                guest_phys_addr: 0,
                memory_size: SIZE as u64,
                userspace_addr: base,
                mmap_offset: 0,
                mmap_handle: handle,
            }])
            .unwrap();
        let (kick, call) = (EventFd::new(0).unwrap(), EventFd::new(0).unwrap());
        front_end.set_vring_num(QUEUE, 4).unwrap();
        let rings = VringConfigData {
            queue_max_size: 4,
            queue_size: 4,
            flags: 0,
            desc_table_addr: base,
            used_ring_addr: base + USED,
            avail_ring_addr: base + AVAILABLE,
            log_addr: None,
        };
        front_end.set_vring_addr(QUEUE, &rings).unwrap();
        front_end.set_vring_base(QUEUE, 0).unwrap();
        front_end.set_vring_call(QUEUE, &call).unwrap();
        front_end.set_vring_kick(QUEUE, &kick).unwrap();
        front_end.set_vring_enable(QUEUE, true).unwrap();
        Self {
            front_end,
            memory,
            kick,
            call,
            sent: 0,
        }
    }

    /// Sends a request as root and waits for its reply: the body, or the error number.
    pub(crate) fn ask(&mut self, opcode: u32, node: u64, body: &[u8]) -> Result<Vec<u8>, i32> {
        let unique = u64::from(self.sent) + 100;
        let length = 40 + body.len() as u32;
        let mut request = Vec::new();
        for number in [length, opcode] {
            request.extend(number.to_le_bytes());
        }
        for number in [unique, node] {
            request.extend(number.to_le_bytes());
        }
        // Root, group root, process 1.
        for number in [0_u32, 0, 1, 0] {
            request.extend(number.to_le_bytes());
        }
        request.extend(body);
        let reply = self.exchange(&request).expect("the program has ended");
        assert_eq!(reply[8..16], unique.to_le_bytes());
        let error = i32::from_le_bytes(reply[4..8].try_into().unwrap());
        match error {
            0 => Ok(reply[16..].to_vec()),
            error => Err(-error),
        }
    }

    /// Sends bytes and waits for what comes back, which may be nothing; `None` if the program ends instead.
    pub(crate) fn exchange(&mut self, request: &[u8]) -> Option<Vec<u8>> {
        let memory = &self.memory;
        memory.write_slice(request, GuestAddress(REQUEST)).unwrap();
        let mut table = Vec::new();
        for (address, length, flags, next) in [
            (REQUEST, request.len() as u32, 1_u16, 1_u16),
            (REPLY, ROOM, 2, 0),
        ] {
            table.extend(address.to_le_bytes());
            table.extend(length.to_le_bytes());
            table.extend(flags.to_le_bytes());
            table.extend(next.to_le_bytes());
        }
        memory.write_slice(&table, GuestAddress(0)).unwrap();
        let slot = u64::from(self.sent % 4);
        let put = |number: u16, at| memory.write_obj(number, GuestAddress(at)).unwrap();
        put(0, AVAILABLE + 4 + 2 * slot);
        self.sent += 1;
        put(self.sent, AVAILABLE + 2);
        self.kick.write(1).unwrap();
        if !self.is_called() {
            return None;
        }
        self.call.read().unwrap();
        let used: u16 = memory.read_obj(GuestAddress(USED + 2)).unwrap();
        assert_eq!(used, self.sent);
        let element = USED + 4 + 8 * slot;
        let length: u32 = memory.read_obj(GuestAddress(element + 4)).unwrap();
        let mut reply = vec![0; length as usize];
        memory.read_slice(&mut reply, GuestAddress(REPLY)).unwrap();
        Some(reply)
    }

    /// Waits for the program's signal, or its end.
    fn is_called(&self) -> bool {
        let mut fds = [self.call.as_raw_fd(), self.front_end.as_raw_fd()].map(|fd| libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        });
        // SAFETY: two descriptors that are open as long as this driver is, in an array that outlives the call.
        let ready = unsafe { libc::poll(fds.as_mut_ptr(), 2, LIMIT_MS) };
        assert!(ready > 0, "neither an answer nor an end");
        fds[0].revents != 0
    }
}
