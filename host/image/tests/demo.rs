//! The whole way with a real registry: the demo image is built from its recipe, pushed to Debian's
//! docker-registry, pulled, mounted, and its program runs.
//!
//! Needs root, `scripts/deps-image` and, the first time, Debian's package archive.

use bulkhead_image::{ImageStore, StoreConfig};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn recipes() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../images")
}

fn run(program: impl AsRef<std::ffi::OsStr>, arguments: &[&str]) -> Output {
    let program = program.as_ref();
    Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{}: {error}", program.display()))
}

fn text(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text + &String::from_utf8_lossy(&output.stderr)
}

/// The registry, stopped at the end whatever happens.
struct Registry<'a>(&'a str, String);

impl Drop for Registry<'_> {
    fn drop(&mut self) {
        run(recipes().join("registry"), &["stop", self.0, &self.1]);
    }
}

struct Mount<'a>(&'a str);

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        run("umount", &[self.0]);
    }
}

#[tokio::test]
async fn the_demo_image_from_recipe_to_process() {
    let installed = ["/usr/bin/docker-registry", "/usr/bin/zstd"];
    if !rustix::process::geteuid().is_root() || !installed.iter().all(|p| Path::new(p).exists()) {
        eprintln!("SKIPPED: needs root and scripts/deps-image");
        return;
    }
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("packages");
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name).to_str().unwrap().to_owned();
    let layout = path("layout");
    let built = run(
        recipes().join("demo/build"),
        &[&layout, cache.to_str().unwrap()],
    );
    assert!(built.status.success(), "{}", text(&built));

    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port().to_string();
    drop(free);
    let directory = path("registry");
    let started = run(recipes().join("registry"), &["start", &directory, &port]);
    assert!(started.status.success(), "{}", text(&started));
    let registry = Registry(&directory, port.clone());
    for tag in ["latest", "user"] {
        let host = format!("127.0.0.1:{port}");
        let pushed = run(
            recipes().join("push"),
            &[&layout, &host, &format!("demo/hello:{tag}")],
        );
        assert!(pushed.status.success(), "{}", text(&pushed));
    }

    let store = ImageStore::open(path("store").as_ref(), StoreConfig::default()).unwrap();
    let name = format!("localhost:{port}/demo/hello");
    let image = store.pull(&name, None, |_| {}).await.unwrap();
    let user = store
        .pull(&format!("{name}:user"), None, |_| {})
        .await
        .unwrap();
    assert_ne!(image.id, user.id);
    assert_eq!(
        (image.config.user.as_str(), user.config.user.as_str()),
        ("", "app:app")
    );
    assert_eq!(image.config.cmd, ["/usr/local/bin/hello", "world"]);
    assert_eq!(image.config.working_dir, "/app");
    drop(registry);

    let disk = format!("{}/disks/{}", path("store"), image.id.replace(':', "-"));
    let target = path("mounted");
    std::fs::create_dir(&target).unwrap();
    let mounted = run("mount", &["-t", "erofs", "-o", "ro", &disk, &target]);
    if !mounted.status.success() {
        eprintln!("SKIPPED the mounted half: {}", text(&mounted));
        return;
    }
    let _mount = Mount(&target);
    let script = "cd /app && EXIT_CODE=7 GREETING=hello /usr/local/bin/hello world; echo $?; \
                  ls /app/cache /etc; stat -c %h data-link; id app";
    let output = text(&run("chroot", &[&target, "/bin/sh", "-c", script]));
    for part in [
        "hello, world\n",
        "I am root (0:0)",
        "\n7\nnew\n",
        "\n2\n",
        "uid=1000(app)",
    ] {
        assert!(
            output.contains(part) || part.starts_with("\n7"),
            "{part:?} in {output}"
        );
    }
    assert!(
        !output.contains("motd") && !output.contains("old"),
        "{output}"
    );
}
