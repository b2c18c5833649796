//! Real registries, certificates and an image to serve.

use sha2::{Digest as _, Sha256};
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// `secret`, for `me`, as `htpasswd -B` writes it.
pub(crate) const HTPASSWD: &str =
    "me:$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";

/// Says what is missing, or that nothing is.
pub(crate) fn missing() -> Option<&'static str> {
    let programs = [
        "/usr/bin/docker-registry",
        "/usr/bin/openssl",
        "/usr/bin/python3",
    ];
    let there = programs.iter().all(|path| Path::new(path).exists());
    match there && rustix::process::geteuid().is_root() {
        true => None,
        false => Some("needs root and scripts/deps-image"),
    }
}

pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {stdout}{stderr}"
    );
    stdout
}

pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// A docker-registry, killed at the end whatever happens.
pub(crate) struct Registry {
    child: Child,
    pub(crate) port: u16,
}

impl Registry {
    /// Starts one whose blobs are in a directory; several can serve the same ones. `http` and `more`
    /// are put into its configuration, which is YAML.
    pub(crate) fn start(storage: &Path, http: &str, more: &str) -> Self {
        let port = free_port();
        let config = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n\
             storage: {{filesystem: {{rootdirectory: {}}}}}\n\
             http:\n  addr: 127.0.0.1:{port}\n{http}\n{more}\n",
            storage.display()
        );
        let file = storage.with_extension(format!("{port}.yml"));
        fs::write(&file, config).unwrap();
        let child = Command::new("/usr/bin/docker-registry")
            .arg("serve")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(file.with_extension("log")).unwrap())
            .spawn()
            .unwrap();
        let mut registry = Self { child, port };
        let deadline = Instant::now() + Duration::from_secs(30);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            let ended = registry.child.try_wait().unwrap();
            let log = || fs::read_to_string(file.with_extension("log")).unwrap();
            assert!(ended.is_none() && Instant::now() < deadline, "{}", log());
            std::thread::sleep(Duration::from_millis(5));
        }
        registry
    }

    pub(crate) fn plain(storage: &Path) -> Self {
        Self::start(storage, "", "")
    }

    pub(crate) fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A directory with a registry's storage, certificates and settings.
pub(crate) struct Site {
    directory: tempfile::TempDir,
}

impl Site {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let site = Self { directory };
        for name in ["storage", "certs.d", "store"] {
            fs::create_dir(site.path(name)).unwrap();
        }
        site
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// Writes a file into a registry's directory below `certs.d`.
    pub(crate) fn configure(&self, registry: &str, file: &str, text: &str) {
        let directory = self.path("certs.d").join(registry);
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join(file), text).unwrap();
    }

    /// Makes an authority (`NAME.crt`, `NAME.key`).
    pub(crate) fn authority(&self, name: &str) {
        let (key, certificate) = (
            self.text(&format!("{name}.key")),
            self.text(&format!("{name}.crt")),
        );
        let subject = format!("/CN={name}");
        run(
            "openssl",
            &[
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-nodes",
                "-days",
                "2",
                "-subj",
                &subject,
                "-keyout",
                &key,
                "-out",
                &certificate,
                "-addext",
                "subjectAltName=DNS:localhost,IP:127.0.0.1",
            ],
        );
    }

    /// Makes a certificate that an authority signs, for a server and a client.
    pub(crate) fn certificate(&self, name: &str, authority: &str) {
        let file = |name: &str, ending: &str| self.text(&format!("{name}.{ending}"));
        let (key, request) = (file(name, "key"), file(name, "csr"));
        let subject = format!("/CN={name}");
        run(
            "openssl",
            &[
                "req",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-nodes",
                "-subj",
                &subject,
                "-keyout",
                &key,
                "-out",
                &request,
            ],
        );
        let extensions = file(name, "ext");
        let text = "subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=CA:FALSE\n";
        fs::write(&extensions, text).unwrap();
        run(
            "openssl",
            &[
                "x509",
                "-req",
                "-days",
                "2",
                "-in",
                &request,
                "-CA",
                &file(authority, "crt"),
                "-CAkey",
                &file(authority, "key"),
                "-CAcreateserial",
                "-extfile",
                &extensions,
                "-out",
                &file(name, "crt"),
            ],
        );
    }

    /// Pushes an image whose one layer has so many bytes to a registry without TLS. Returns the
    /// manifest's digest.
    pub(crate) fn push(&self, registry: &Registry, name: &str, length: usize) -> String {
        let layout = self.path(&format!("layout-{length}"));
        let tag = name.rsplit_once(':').unwrap().1;
        layout_with(&layout, tag, &noise(length));
        let push = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../images/push");
        let arguments = [layout.to_str().unwrap(), &registry.host(), name];
        run(push.to_str().unwrap(), &arguments).trim().to_owned()
    }
}

/// Bytes that do not compress (xorshift64).
fn noise(length: usize) -> Vec<u8> {
    let mut state = length as u64 | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Writes an OCI image layout with an image of one layer with one file.
fn layout_with(layout: &Path, tag: &str, content: &[u8]) {
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8]| -> serde_json::Value {
        let hex: String = Sha256::digest(bytes)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        fs::write(blobs.join(&hex), bytes).unwrap();
        serde_json::json!({"digest": format!("sha256:{hex}"), "size": bytes.len()})
    };
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    tar.append_data(&mut header, "noise", content).unwrap();
    let layer = put(&tar.into_inner().unwrap());
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let config = serde_json::json!({"os": "linux", "architecture": architecture,
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]}});
    let with_type = |mut descriptor: serde_json::Value, kind: &str| {
        descriptor["mediaType"] = format!("application/vnd.oci.image.{kind}").into();
        descriptor
    };
    let config = with_type(put(config.to_string().as_bytes()), "config.v1+json");
    let manifest = serde_json::json!({"schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config, "layers": [with_type(layer, "layer.v1.tar")]});
    let mut manifest = with_type(put(manifest.to_string().as_bytes()), "manifest.v1+json");
    manifest["annotations"] = serde_json::json!({"org.opencontainers.image.ref.name": tag});
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [manifest]});
    fs::write(layout.join("index.json"), index.to_string()).unwrap();
}
