//! What becomes of the volumes of pods that are found again.

use super::{PodVolumes, State};
use crate::SandboxError;
use crate::record::{FileDaemonRecord, VmmIdentity};
use crate::vm::start_ticks;
use std::process::Command;

fn record(pid: u32, start_ticks: u64) -> FileDaemonRecord {
    FileDaemonRecord {
        identity: VmmIdentity {
            pid: pid.try_into().unwrap(),
            start_ticks,
            user: 0,
        },
        epoch: 3,
    }
}

#[tokio::test]
async fn a_pod_whose_file_daemon_has_ended_is_found_without_its_volumes() {
    let mut child = Command::new("true").spawn().unwrap();
    let gone = child.id();
    child.wait().unwrap();
    let own = std::process::id();
    let ticks = start_ticks(own.try_into().unwrap()).unwrap();
    // Nobody, and somebody else who has got its number.
    for lost in [record(gone, 1), record(own, ticks + 1)] {
        let volumes = PodVolumes::adopt("pod", Some(&lost));
        let state = volumes.state.lock().await;
        assert!(matches!(*state, State::Lost(_)));
        let error = volumes.serving(&state).err().unwrap();
        assert!(matches!(error, SandboxError::FileDaemonLost { .. }));
        assert!(error.to_string().contains("of pod sandbox pod is lost"));
        drop(state);
        volumes.detach("container").await.unwrap();
    }
    let volumes = PodVolumes::adopt("pod", Some(&record(own, ticks)));
    let state = volumes.state.lock().await;
    assert_eq!(
        volumes.serving(&state).unwrap().record(),
        record(own, ticks)
    );
    let volumes = PodVolumes::adopt("pod", None);
    assert!(matches!(*volumes.state.lock().await, State::None));
}

#[tokio::test]
async fn the_end_of_a_file_daemon_is_told() {
    let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
    let ticks = start_ticks(child.id().try_into().unwrap()).unwrap();
    let volumes = PodVolumes::adopt("pod", Some(&record(child.id(), ticks)));
    assert!(volumes.serving(&*volumes.state.lock().await).is_ok());
    child.kill().unwrap();
    let (cause, _) = volumes.end_of_the_last().await;
    assert_eq!(cause, "signal 9 ended it");
    // And it was reaped.
    assert!(child.wait().is_err());
    let state = volumes.state.lock().await;
    let error = volumes.serving(&state).err().unwrap();
    assert!(matches!(error, SandboxError::FileDaemonEnded { .. }));
    assert!(error.to_string().contains(&cause), "{error}");
}
