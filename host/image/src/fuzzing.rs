//! Entry points of the fuzz targets in `fuzz/`.

use crate::auth::DockerConfig;
use crate::digest::Digest;
use crate::layer::{self, Layer, Limits, Options};
use crate::manifest::{Configuration, Document, choose_platform};
use crate::name::Name;
use crate::registry::hosts::{Host, parse};
use crate::registry::{challenge, error_message};
use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::path::Path;
use std::sync::atomic::AtomicBool;

/// The first byte says how many layers the manifest had.
pub fn manifest(input: &[u8]) {
    if let Ok(Document::Index(entries)) = Document::parse(input) {
        let _ = choose_platform(&entries);
    }
    if let Some((layers, bytes)) = input.split_first() {
        let layers = usize::from(*layers);
        let parsed = Configuration::parse(bytes, layers);
        assert!(parsed.is_err() || parsed.is_ok_and(|image| image.diff_ids.len() == layers));
    }
}

/// A file that is read has hosts, and their addresses are ones.
pub fn hosts_toml(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    let upstream = Host::upstream("reg.example:5000", false);
    let Ok(hosts) = parse(text, Path::new("/certs.d"), upstream) else {
        return;
    };
    assert!(!hosts.is_empty());
    for host in hosts {
        let address = format!("https://{}{}/x", host.authority, host.path);
        let url = reqwest::Url::parse(&address);
        assert!(url.is_ok_and(|url| url.username().is_empty()), "{address}");
    }
}

/// Both come from the network.
pub fn challenge(input: &[u8]) {
    let _ = error_message(input);
    if let Ok(text) = std::str::from_utf8(input) {
        challenge::parse(text);
    }
}

/// The normal form of a name is a name, and the same one.
pub fn image_name(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    let Ok(name) = Name::parse(text) else {
        return;
    };
    let normal = name.to_string();
    assert!(
        Name::parse(&normal).is_ok_and(|again| again == name),
        "{text:?} {normal:?}"
    );
    // A host can look like one and be none (`1.2.3.400`), but a name leads nowhere else.
    let path = format!("/v2/{}/", name.repository);
    if let Ok(url) = reqwest::Url::parse(&format!("https://{}{path}", name.registry)) {
        assert_eq!(
            (url.path(), url.username()),
            (path.as_str(), ""),
            "{text:?}"
        );
    }
}

/// Looks up what the file has.
pub fn docker_config(input: &[u8]) {
    if let Ok(config) = DockerConfig::parse(input) {
        for host in ["docker.io", "reg.example:5000"] {
            let _ = config.entry(host, "team/app");
        }
    }
}

/// Makes an EROFS file of blobs, whose digests and header sums are not checked here. Nothing when
/// they are refused.
///
/// # Panics
///
/// When the file system in `directory` fails.
#[must_use]
#[expect(clippy::expect_used, reason = "a fuzzer wants to know")]
pub fn build(blobs: &[&[u8]], directory: &Path, out: &mut File) -> Option<Vec<u8>> {
    let cancelled = AtomicBool::new(false);
    let options = Options {
        limits: Limits {
            bytes: 1 << 20,
            entries: 500,
            ratio: 50,
            ratio_free: 64 << 10,
        },
        uuid: [7; 16],
        parallel: 2,
        directory: directory.to_owned(),
        cancelled: &cancelled,
        progress: &|_, _| {},
    };
    let layers = blobs.iter().map(|blob| Layer {
        blob: Box::new(*blob),
        reserve: blob.len() as u64,
        diff_id: Digest::sha256(b""),
    });
    out.set_len(0).expect("the file for the image");
    let built = layer::build(layers.collect(), out, &options).ok()?;
    // A sparse file of a few bytes can make a large image.
    if built.size > 64 << 20 {
        return None;
    }
    let mut bytes = Vec::new();
    out.rewind().expect("the file for the image");
    out.read_to_end(&mut bytes).expect("the file for the image");
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    /// The committed seeds, and what becomes of them when they are cut off or bytes change; the
    /// fuzzer goes much further.
    fn around_the_seeds(target: &str, entry: fn(&[u8])) {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
        let mut state = 1_u64;
        let mut next = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as usize
        };
        let mut seeds = 0;
        for file in std::fs::read_dir(corpus.join(target)).unwrap() {
            let seed = std::fs::read(file.unwrap().path()).unwrap();
            seeds += 1;
            (0..=seed.len()).for_each(|length| entry(&seed[..length]));
            for _ in 0..2000 {
                let mut input = seed.clone();
                for _ in 0..1 + next() % 4 {
                    let (at, from) = (next() % input.len(), next() % input.len());
                    input[at] = match next() % 3 {
                        0 => input[from],
                        1 => input[at] ^ (1 << (next() % 8)),
                        _ => next() as u8,
                    };
                }
                entry(&input);
            }
        }
        assert!(seeds > 0, "{target} has no seeds");
    }

    #[test]
    fn registry_documents() {
        around_the_seeds("manifest", super::manifest);
        around_the_seeds("challenge", super::challenge);
    }

    #[test]
    fn settings() {
        around_the_seeds("hosts_toml", super::hosts_toml);
        around_the_seeds("docker_config", super::docker_config);
    }

    #[test]
    fn names() {
        around_the_seeds("image_name", super::image_name);
    }
}
