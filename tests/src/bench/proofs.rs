//! What others' programs say of a pod's file systems: git, sqlite, fio, stress-ng and Postgres, from Debian, on the
//! node's own ext4, on a volume that is shared with it, and on the pod's scratch disk.

use super::figures::table;
use crate::artifacts::artifact;
use crate::disk::Disk;
use crate::node::Node;
use crate::pod::{self, Pod, container, exec};
use crate::registry::Registry;
use anyhow::{Context, Result};
use bulkhead_cri::v1;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

const DISK: u64 = 2 << 30;
/// How long one of them may take, in seconds.
const LIMIT: i64 = 900;
/// Where, and what it is called in the container.
const PLACES: [(&str, &str); 3] = [
    ("the node's ext4", ""),
    ("shared volume", "/shared"),
    ("scratch disk", "/scratch"),
];
const PREPARE: &str = "export PATH=/usr/bin:/bin:/usr/sbin:/sbin";

/// Each says nothing when all is well; what it says is told.
const PROOFS: [(&str, &str); 5] = [
    (
        "git: commits, clone, gc, fsck",
        "export HOME=$PWD; git config --global user.name a; git config --global user.email a@b; \
         git init -q one; cd one; for n in 1 2 3 4 5; do for m in 1 2 3 4 5 6 7 8; do seq $n 500 > $n-$m; done; \
         git add .; git commit -qm $n; done; cd ..; git clone -q --no-local one two; cd two; \
         git fsck --full --strict --no-progress; git gc -q; git fsck --full --strict --no-progress; cd ..; \
         for n in 1 3 5; do cmp one/$n-8 two/$n-8; done",
    ),
    (
        "sqlite: writers that are killed, WAL and rollback journal",
        "for mode in WAL DELETE; do rm -f db*; sqlite3 db \"PRAGMA journal_mode=$mode; create table t(n);\" > said; \
         (while :; do echo 'insert into t values (randomblob(900));'; done) | sqlite3 -cmd '.timeout 20000' db & writer=$!; \
         until [ \"$(sqlite3 -cmd '.timeout 20000' db 'select count(*) > 20 from t')\" = 1 ]; do :; done; \
         kill -9 $writer; sqlite3 -cmd '.timeout 20000' db 'PRAGMA integrity_check' | grep -vx ok; \
         sqlite3 -cmd '.timeout 20000' db 'insert into t values (1); select count(*) > 20 from t' | grep -vx 1; done; true",
    ),
    (
        "fio: random writes and their checksums (libaio with O_DIRECT, mmap, psync)",
        "for engine in 'libaio --direct=1 --iodepth=16' mmap psync; do \
         fio --name=job --rw=randwrite --bs=4k --size=8m --verify=crc32c --do_verify=1 --ioengine=$engine \
         --output=said || { echo $engine; cat said; }; rm -f job*; done",
    ),
    (
        "stress-ng: file stressors, each with --verify",
        "for what in access chmod chown copy-file dentry dir dup fallocate fcntl fiemap flock fsize fstat getdent hdd \
         inotify link locka lockf lockofd metamix mknod mmap open rename seek sendfile splice symlink sync-file touch \
         unlink utime xattr; do stress-ng --temp-path . --$what 1 --$what-ops 5 --hdd-bytes 1M --mmap-bytes 1M --verify \
         --timeout 3 > said 2>&1 || echo $what $?; done",
    ),
    (
        "Postgres: pgbench, a crash, recovery, checksums",
        "as='setpriv --reuid 65534 --regid 65534 --clear-groups'; mkdir pg; chown 65534:65534 pg; cd pg; d=$PWD; \
         bin=$(echo /usr/lib/postgresql/*/bin); \
         start() { $as $bin/pg_ctl -s -w -t 300 -D $d/data -l $d/log -o \"-k $d -h ''\" start; }; \
         $as $bin/initdb -k --locale=C -A trust -U postgres -D $d/data > said 2>&1 && start && \
         $as $bin/pgbench -q -i -s 1 -h $d -U postgres postgres > said 2>&1 && \
         $as $bin/pgbench -c 2 -t 50 -h $d -U postgres postgres > said 2>&1 && \
         $as $bin/pg_ctl -s -D $d/data -m immediate stop && start && \
         $as $bin/psql -h $d -U postgres -Atc 'select count(*) = 100 from pgbench_history' postgres | grep -vx t; \
         $as $bin/pg_ctl -s -w -D $d/data stop && $as $bin/pg_checksums -D $d/data > said || cat said log",
    ),
];

/// Runs them and prints.
///
/// # Errors
/// There is no pod; what the programs find is told.
pub async fn run(registry: &Registry) -> Result<String> {
    let node = Node::start().await?;
    registry.push(&artifact("bench/proofs-image"), "proofs:latest")?;
    let image = format!("{}/proofs:latest", registry.host());
    pod::pull(&node, &image).await?;
    let disk = Disk::new(DISK)?;
    let [own, shared, empty] = [
        "own",
        "shared",
        "pods/uid/volumes/kubernetes.io~empty-dir/e",
    ]
    .map(|name| disk.path().join(name));
    for directory in [&own, &shared, &empty] {
        std::fs::create_dir_all(directory)?;
    }
    let pod = Pod::run(&node, "proofs").await?;
    let mut config = container("proofs", &image, &["/bin/sh", "-c", "sleep 100000"]);
    config.mounts = [(&shared, PLACES[1].1), (&empty, PLACES[2].1)]
        .map(|(host, container)| mount(host, container))
        .into();
    let id = pod.start(config).await?;
    let head = PLACES.map(|(name, _)| name.to_owned());
    let mut rows = vec![[vec![String::new()], head.into()].concat()];
    for (number, (name, script)) in PROOFS.iter().enumerate() {
        let mut row = vec![(*name).to_owned()];
        for (place, directory) in PLACES {
            eprintln!("proofs: {name}, {place}");
            let own = own.to_str().context("a path")?;
            let directory = if directory.is_empty() { own } else { directory };
            let script = format!(
                "{PREPARE}; mkdir {directory}/{number} && cd {directory}/{number} && {{ {script}; }}"
            );
            let began = Instant::now();
            let (output, error) = if directory == own {
                let output = Command::new("sh").args(["-c", &script]).output()?;
                (output.stdout, output.stderr)
            } else {
                let output = exec(&node, &id, &["/bin/sh", "-c", &script], LIMIT).await?;
                (output.stdout, output.stderr)
            };
            let took = began.elapsed().as_secs_f64();
            row.push(format!("{} ({took:.0} s)", told(&[output, error].concat())));
        }
        eprintln!("{row:?}");
        rows.push(row);
    }
    pod.remove().await?;
    drop(disk);
    node.finish()?;
    Ok(table("Others' programs on a pod's file systems", &rows))
}

fn told(said: &[u8]) -> String {
    let said = String::from_utf8_lossy(said);
    let said: Vec<_> = said.lines().collect();
    if said.is_empty() {
        "nothing found".to_owned()
    } else {
        said.join("; ")
    }
}

fn mount(host: &Path, container: &str) -> v1::Mount {
    v1::Mount {
        host_path: host.display().to_string(),
        container_path: container.to_owned(),
        ..Default::default()
    }
}
