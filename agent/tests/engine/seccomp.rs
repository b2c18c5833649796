//! seccomp and devices: what a container may ask of the kernel.

use crate::support::{Container, code, process, run, stream_id};
use bulkhead_agent_api::agent::Stdio;
use serde_json::{Value, json};
use ttrpc::Code;

/// Everything is allowed but these.
fn refusing(rules: Value) -> Value {
    json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"], "syscalls": rules})
}

fn refuse(names: &[&str], errno: u32) -> Value {
    json!({"names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": errno})
}

#[test]
fn a_filter_is_there_for_the_program_and_for_execs() {
    run(|pod| async move {
        let script = "grep Seccomp: /proc/self/status; mkdir /made; echo $?";
        let profile = refusing(json!([refuse(&["mkdir", "mkdirat"], 28)]));
        let text = pod
            .succeed(Container::shell(script).with("/linux/seccomp", profile.clone()))
            .await;
        assert!(text.contains("Seccomp:\t2\n"), "{text}");
        assert!(
            text.contains("No space left on device") && text.contains("1\n"),
            "{text}"
        );
        let text = pod.succeed(Container::shell(script)).await;
        assert_eq!(text, "Seccomp:\t0\n0\n");

        let container = Container::sleeper().with("/linux/seccomp", profile);
        pod.create(&container).await.unwrap();
        pod.start(&container.id).await.unwrap();
        let mut stdio = Stdio::new();
        (stdio.stdout, stdio.stderr) = (stream_id(), stream_id());
        let (out, err) = (stdio.stdout, stdio.stderr);
        let exec = process(&["sh", "-c", script]);
        pod.exec(&container.id, "e", exec, stdio).await.unwrap();
        assert_eq!(pod.read(out).await, "Seccomp:\t2\n1\n");
        assert!(pod.read(err).await.contains("No space left"));
        // A missing program is still told when the way to tell it is refused.
        let missing = code(
            pod.exec(&container.id, "f", process(&["none"]), Stdio::new())
                .await,
        );
        assert_eq!(missing.0, Code::NOT_FOUND, "{missing:?}");
        pod.remove(&container.id).await.unwrap();
    });
}

#[test]
fn a_filter_needs_no_privilege_and_leaves_none() {
    run(|pod| async move {
        let profile = refusing(json!([refuse(
            &[
                "setuid",
                "setgid",
                "setgroups",
                "capset",
                "setresuid",
                "setresgid",
                "sendto",
                "sendmsg",
                "prctl"
            ],
            1
        )]));
        for no_new_privileges in [false, true] {
            for (uid, expected) in [(0, "00000000000004e3"), (1000, "0000000000000000")] {
                let container =
                    Container::shell("grep -E 'Cap(Prm|Eff|Bnd)' /proc/self/status; id -u")
                        .with("/linux/seccomp", profile.clone())
                        .with("/process/noNewPrivileges", json!(no_new_privileges))
                        .with("/process/user", json!({"uid": uid, "gid": uid}));
                let text = pod.succeed(container).await;
                assert_eq!(
                    text,
                    format!(
                        "CapPrm:\t{expected}\nCapEff:\t{expected}\nCapBnd:\t00000000000004e3\n{uid}\n"
                    ),
                    "{no_new_privileges}"
                );
            }
        }
        let container = Container::new(&["none"]).with("/linux/seccomp", profile);
        let (_, exit) = pod.run(container).await;
        assert!(exit.error.contains("none") && exit.code == 128, "{exit:?}");
    });
}

#[test]
fn actions_end_processes_or_only_tell() {
    run(|pod| async move {
        let of = |action: &str| {
            let rules = json!([{"names": ["mkdir", "mkdirat"], "action": action}]);
            let script = "(mkdir /made); echo $?; test -d /made; echo $?";
            Container::shell(script).with("/linux/seccomp", refusing(rules))
        };
        // 128 + SIGSYS
        for action in [
            "SCMP_ACT_KILL",
            "SCMP_ACT_KILL_PROCESS",
            "SCMP_ACT_KILL_THREAD",
            "SCMP_ACT_TRAP",
        ] {
            let text = pod.succeed(of(action)).await;
            assert!(text.starts_with("159\n1\n"), "{action} {text}");
        }
        assert_eq!(pod.succeed(of("SCMP_ACT_LOG")).await, "0\n0\n");
        // Nobody traces: as if the system call did not exist.
        let text = pod.succeed(of("SCMP_ACT_TRACE")).await;
        assert!(
            text.contains("1\n1\n") && text.contains("not implemented"),
            "{text}"
        );
        let notify = code(pod.create(&of("SCMP_ACT_NOTIFY")).await);
        assert_eq!(notify.0, Code::UNIMPLEMENTED, "{notify:?}");
    });
}

#[test]
fn conditions_look_at_arguments() {
    run(|pod| async move {
        // kill(2) with SIGUSR1, or with any signal of which bit 3 is set to itself only.
        let rules = json!([
            {"names": ["kill"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13,
             "args": [{"index": 1, "value": 10, "op": "SCMP_CMP_EQ"}]},
            {"names": ["kill"], "action": "SCMP_ACT_ERRNO", "errnoRet": 22,
             "args": [{"index": 1, "value": 0x7f, "valueTwo": 12, "op": "SCMP_CMP_MASKED_EQ"}]},
        ]);
        let script = "trap '' USR1 USR2; kill -USR1 $$; echo $?; kill -USR2 $$; echo $?; kill -0 $$; echo $?";
        let text = pod
            .succeed(Container::shell(script).with("/linux/seccomp", refusing(rules)))
            .await;
        assert!(
            text.contains("Permission denied") && text.contains("Invalid argument"),
            "{text}"
        );
        assert!(text.starts_with("1\n1\n0\n"), "{text}");
    });
}

#[test]
fn devices_that_are_not_the_usual_ones_cannot_be_used() {
    run(|pod| async move {
        // /dev/kmsg: with CAP_MKNOD its node can be made, and not opened. Disks too.
        let script = "mknod /k c 1 11; echo $?; head -c1 /k; echo $?; mknod /b b 7 0; echo $?; head -c1 /b; echo $?; \
                      head -c1 /dev/zero | wc -c; echo x > /dev/null; echo $?; head -c1 /dev/urandom | wc -c";
        let capabilities = json!(["CAP_MKNOD", "CAP_DAC_OVERRIDE", "CAP_SYSLOG"]);
        let with = |container: Container| {
            container.with(
                "/process/capabilities",
                json!({"bounding": capabilities, "effective": capabilities, "permitted": capabilities}),
            )
        };
        let text = pod.succeed(with(Container::shell(script))).await;
        assert!(text.starts_with("0\n1\n0\n1\n1\n0\n1\n"), "{text}");
        assert_eq!(text.matches("Operation not permitted").count(), 2, "{text}");
        // Allowed by the specification: reading, not writing.
        let rules = json!([
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "c", "major": 1, "minor": 11, "access": "r"},
        ]);
        let script = "mknod /k c 1 11; dd if=/k of=/dev/null bs=8k count=1 2>/dev/null; echo $?; echo x > /k; echo $?";
        let text = pod
            .succeed(
                with(Container::shell(script)).with("/linux/resources", json!({"devices": rules})),
            )
            .await;
        assert!(text.starts_with("0\n1\n"), "{text}");
        // Privileged containers may use all.
        let rules = json!([{"allow": true, "access": "rwm"}]);
        let text = pod
            .succeed(
                with(Container::shell(script)).with("/linux/resources", json!({"devices": rules})),
            )
            .await;
        assert_eq!(text, "0\n0\n");
    });
}

/// A 64-bit program that makes the directory /made as a 32-bit one would and exits with the error.
fn i386_program() -> Vec<u8> {
    const BASE: u64 = 0x40_0000;
    const CODE: u64 = 64 + 56;
    let mut code = vec![0xb8, 39, 0, 0, 0]; // mov eax, mkdir
    let path = CODE + 31;
    code.push(0xbb); // mov ebx, path
    code.extend(u32::try_from(BASE + path).unwrap().to_le_bytes());
    code.extend([0xb9, 0xed, 1, 0, 0]); // mov ecx, 0755
    code.extend([0xcd, 0x80, 0xf7, 0xd8, 0x89, 0xc7]); // int 0x80; neg eax; mov edi, eax
    code.extend([0xb8, 60, 0, 0, 0, 0x0f, 0x05]); // mov eax, exit; syscall
    code.extend([0x0f, 0x0b, 0x90]); // ud2; nop
    assert_eq!(code.len(), 31);
    code.extend(b"/made\0");
    let length = CODE + code.len() as u64;
    let mut elf = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    elf.extend([2, 0, 62, 0, 1, 0, 0, 0]); // ET_EXEC, EM_X86_64
    for word in [BASE + CODE, 64, 0] {
        elf.extend(u64::to_le_bytes(word)); // entry, program headers, no sections
    }
    elf.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    elf.extend([1, 0, 0, 0, 5, 0, 0, 0]); // PT_LOAD, readable and executable
    for word in [0, BASE, BASE, length, length, 0x1000] {
        elf.extend(u64::to_le_bytes(word));
    }
    elf.extend(code);
    elf
}

#[test]
fn system_calls_of_32_bit_programs_have_rules_of_their_own() {
    run(|pod| async move {
        use std::os::unix::fs::PermissionsExt;
        let file = pod.world.base.join("i386");
        std::fs::write(&file, i386_program()).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
        let bind = json!({"destination": "/i386", "type": "bind", "source": file, "options": ["bind", "ro"]});
        let container = || Container::new(&["/i386"]).mount(bind.clone());
        let (_, exit) = pod.run(container()).await;
        assert_eq!((exit.code, exit.signal), (0, 0), "the kernel runs them");
        let profile = refusing(json!([refuse(&["mkdir"], 28)]));
        let (_, exit) = pod
            .run(container().with("/linux/seccomp", profile.clone()))
            .await;
        assert_eq!((exit.code, exit.signal), (28, 0));
        let mut native = profile;
        native["architectures"] = json!(["SCMP_ARCH_X86_64"]);
        let (_, exit) = pod.run(container().with("/linux/seccomp", native)).await;
        assert_eq!(exit.signal, libc::SIGSYS.unsigned_abs());
    });
}
