//! A killed process leaves complete images or rubbish that the next one removes.

use super::fixture::{Packing, assert_clean, is_root, open, serve, skip};
use super::server::Server;
use super::tarball::Tarball;
use crate::digest::Digest;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const ROOT: &str = "BULKHEAD_TEST_IMAGE_ROOT";
const NAME: &str = "BULKHEAD_TEST_IMAGE_NAME";
/// The child's line when it begins from the start.
const READY: &str = "ready";
const ROUNDS: u32 = 20;

/// Pulls and removes images until it is killed. Runs only as a child of the test below.
#[test]
#[ignore = "the other test starts it"]
fn child() {
    let (root, name) = (std::env::var(ROOT).unwrap(), std::env::var(NAME).unwrap());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let store = open(root.as_ref());
        loop {
            println!("\n{READY}");
            for tag in ["a", "b"] {
                store
                    .pull(&format!("{name}:{tag}"), None, |_| {})
                    .await
                    .unwrap();
            }
            store.remove(&format!("{name}:a")).await.unwrap();
            store.remove(&format!("{name}:b")).await.unwrap();
        }
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_at_any_moment() {
    if !is_root() {
        return skip("unpacking needs root");
    }
    let (server, root) = (Server::start(), tempfile::tempdir().unwrap());
    let mut good = Vec::new();
    for tag in ["a", "b"] {
        let files = (0..100).fold(Tarball::default(), |tarball, number| {
            tarball.file(
                &format!("d{}/{tag}{number}", number % 7),
                &[number as u8; 3000],
            )
        });
        serve(&server, tag, &[(files.end(), Packing::Gzip)]);
        let clean = tempfile::tempdir().unwrap();
        let store = open(clean.path());
        let name = server.name(&format!("team/app:{tag}"));
        let image = store.pull(&name, None, |_| {}).await.unwrap();
        good.push((image.id.clone(), content(&store, &image.id).await));
    }
    let (mut found, mut cycle) = ([0; 3], Duration::ZERO);
    for round in 0..ROUNDS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "tests::crash::child", "--ignored", "--nocapture"])
            .env(ROOT, root.path())
            .env(NAME, server.name("team/app"))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut wait = || assert!(lines.any(|line| line.unwrap() == READY));
        wait();
        if round == 0 {
            let start = Instant::now();
            wait();
            cycle = start.elapsed();
        }
        // Where the kill meets the child is the point of the wait.
        tokio::time::sleep(cycle * round / ROUNDS).await;
        assert!(
            child.try_wait().unwrap().is_none(),
            "the child failed by itself"
        );
        child.kill().unwrap();
        child.wait().unwrap();
        let store = open(root.path());
        let images = store.list().await.unwrap();
        found[images.len()] += 1;
        assert_clean(root.path(), images.len());
        for image in images {
            let known = (image.id.clone(), content(&store, &image.id).await);
            assert!(good.contains(&known), "round {round}: {}", image.id);
            assert_eq!(image.repo_tags.len(), 1);
            assert!(store.get(&image.repo_tags[0]).await.unwrap().is_some());
        }
    }
    eprintln!("{ROUNDS} kills within {cycle:?} left 0, 1, 2 images {found:?} times");
}

async fn content(store: &crate::ImageStore, id: &str) -> Digest {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    let mut disk = std::fs::File::from(store.open_disk(id).await.unwrap());
    disk.read_to_end(&mut bytes).unwrap();
    Digest::sha256(&bytes)
}
