use super::Store;
use crate::config::RuntimeConfig;
use crate::record::{SandboxRecord, SandboxState};

fn record(id: &str, state: SandboxState) -> SandboxRecord {
    SandboxRecord {
        id: id.to_owned(),
        config: Default::default(),
        handler: "bulkhead".into(),
        runtime: RuntimeConfig::default(),
        created_at: 1,
        state,
        cgroup: "bulkhead/pod".into(),
        phases: Default::default(),
        guest_kernel: String::new(),
        ips: Vec::new(),
        vmm: None,
        file_daemon: None,
        size: None,
        resources: None,
        block_volumes: Vec::new(),
    }
}

#[tokio::test]
async fn what_was_written_is_there_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.redb");
    let store = Store::open(&path).unwrap();
    for id in ["a", "b"] {
        store
            .put_sandbox(&record(id, SandboxState::Starting))
            .await
            .unwrap();
    }
    store
        .put_sandbox(&record("a", SandboxState::Ready))
        .await
        .unwrap();
    store.delete_sandbox("b").await.unwrap();
    store.delete_sandbox("never was").await.unwrap();
    drop(store);
    let records = Store::open(&path).unwrap().sandboxes().unwrap();
    assert_eq!(records.len(), 1);
    assert_eq!(
        (records[0].id.as_str(), &records[0].state),
        ("a", &SandboxState::Ready)
    );
}

#[tokio::test]
async fn two_daemons_cannot_use_one_store() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.redb");
    let _store = Store::open(&path).unwrap();
    let Err(error) = Store::open(&path) else {
        panic!("opened twice")
    };
    assert!(error.to_string().contains("open"), "{error}");
}
