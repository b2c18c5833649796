use super::{Action, Call, Done, Engine, EngineKind, MAX_RUNNING};
use rustix::event::{PollFd, PollFlags, poll};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

/// Both engines; a host that has no io_uring for us is told of.
fn engines() -> Vec<Engine> {
    let uring = Engine::new(Some(EngineKind::Uring));
    if let Err(error) = &uring {
        eprintln!("not tested with io_uring: {error:?}");
    }
    uring
        .into_iter()
        .chain([Engine::new(Some(EngineKind::Pool)).unwrap()])
        .collect()
}

fn wait(engine: &mut Engine, count: usize) -> Vec<Done> {
    let mut done = Vec::new();
    assert!(engine.submit().unwrap());
    engine.reap(&mut done);
    while done.len() < count {
        poll(
            &mut [PollFd::from_borrowed_fd(engine.fd(), PollFlags::IN)],
            None,
        )
        .unwrap();
        engine.reap(&mut done);
    }
    done.sort_by_key(|done| done.token);
    done
}

fn range(bytes: &mut [u8]) -> libc::iovec {
    libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    }
}

#[test]
fn operations_do_what_they_say() {
    for mut engine in engines() {
        let kind = engine.kind();
        let file = tempfile::tempfile().unwrap();
        let fd = file.as_raw_fd();
        let (mut one, mut two) = (vec![1; 5000], vec![2; 3000]);
        let list = [range(&mut one), range(&mut two)];
        let (list, count) = (list.as_ptr(), 2);
        let calls = |actions: &[Action], engine: &mut Engine| {
            for (token, action) in actions.iter().enumerate() {
                let call = Call {
                    fd,
                    action: *action,
                };
                // SAFETY: file and buffers outlive the wait.
                unsafe { engine.push(token, call) }.unwrap();
            }
            wait(engine, actions.len())
        };
        let done = calls(
            &[Action::Write {
                list,
                count,
                offset: 100,
            }],
            &mut engine,
        );
        assert_eq!(*done[0].result.as_ref().unwrap(), 8000, "{kind:?}");
        let (punch, length) = (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, 50);
        let clear = Action::Allocate {
            mode: punch,
            offset: 100,
            length,
        };
        let done = calls(&[clear, Action::Sync], &mut engine);
        assert!(
            done.iter().all(|done| done.result.is_ok()),
            "{kind:?} {done:?}"
        );
        let mut bytes = vec![9; 8200];
        assert_eq!(file.read_at(&mut bytes, 0).unwrap(), 8100);
        assert!(bytes[..150].iter().all(|byte| *byte == 0), "{kind:?}");
        assert!(bytes[150..5100].iter().all(|byte| *byte == 1), "{kind:?}");
        assert!(bytes[5100..8100].iter().all(|byte| *byte == 2), "{kind:?}");
        // A read at the end is short, one beyond it empty, one before the start an error.
        let reads = [8000, 8100, u64::MAX - 5].map(|offset| Action::Read {
            list,
            count,
            offset,
        });
        let done = calls(&reads, &mut engine);
        assert_eq!(*done[0].result.as_ref().unwrap(), 100, "{kind:?}");
        assert_eq!(*done[1].result.as_ref().unwrap(), 0, "{kind:?}");
        assert!(done[2].result.is_err(), "{kind:?}");
    }
}

#[test]
fn an_engine_is_full_at_its_limit_and_not_before() {
    for mut engine in engines() {
        let file = tempfile::tempfile().unwrap();
        let mut bytes = [0; 16 * MAX_RUNNING];
        let lists: Vec<_> = bytes.chunks_mut(16).map(|part| [range(part)]).collect();
        for round in 0..3 {
            for (token, list) in lists.iter().enumerate() {
                let offset = 16 * token as u64;
                let (list, count) = (list.as_ptr(), 1);
                let action = if round % 2 == 0 {
                    Action::Write {
                        list,
                        count,
                        offset,
                    }
                } else {
                    Action::Read {
                        list,
                        count,
                        offset,
                    }
                };
                let call = Call {
                    fd: file.as_raw_fd(),
                    action,
                };
                // SAFETY: file and buffers outlive the wait.
                unsafe { engine.push(token, call) }.unwrap();
            }
            let done = wait(&mut engine, MAX_RUNNING);
            for (token, done) in done.iter().enumerate() {
                assert_eq!(done.token, token);
                assert_eq!(*done.result.as_ref().unwrap(), 16);
            }
        }
        assert_eq!(file.metadata().unwrap().len(), 16 * MAX_RUNNING as u64);
    }
}

#[test]
fn a_dropped_engine_has_ended_what_it_began() {
    for mut engine in engines() {
        let file = tempfile::tempfile().unwrap();
        let mut bytes = vec![3; 1 << 20];
        let list = [range(&mut bytes)];
        let action = Action::Write {
            list: list.as_ptr(),
            count: 1,
            offset: 0,
        };
        for token in 0..8 {
            let call = Call {
                fd: file.as_raw_fd(),
                action,
            };
            // SAFETY: file and buffers outlive the engine.
            unsafe { engine.push(token, call) }.unwrap();
        }
        engine.submit().unwrap();
        drop(engine);
        assert_eq!(file.metadata().unwrap().len(), 1 << 20);
    }
}

#[test]
fn a_ring_can_do_nothing_but_what_disks_need() {
    use io_uring::opcode;
    let Ok(mut uring) = super::Uring::new() else {
        eprintln!("skipped: this host has no io_uring for us");
        return;
    };
    let file = File::open("/dev/null").unwrap();
    let fd = io_uring::types::Fd(file.as_raw_fd());
    for entry in [
        opcode::Nop::new().build(),
        opcode::Close::new(fd).build(),
        opcode::OpenAt::new(fd, c"/etc/passwd".as_ptr()).build(),
        opcode::Socket::new(libc::AF_INET, libc::SOCK_STREAM, 0).build(),
        opcode::Fsync::new(fd)
            .build()
            .flags(io_uring::squeue::Flags::ASYNC),
    ] {
        assert_eq!(uring.try_entry(entry), -libc::EACCES);
    }
    assert!(uring.cannot_register());
}
