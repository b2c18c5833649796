//! Docker's `config.json`: credentials by registry, and the programs that are asked for them
//! (`docker login`'s reference, "Credential stores" and "Credential helpers"; the file is also what
//! `podman login` writes, containers-auth.json(5)).

use super::{Auth, Secret, canonical, server_host};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

const MAX_FILE: u64 = 1 << 20;
const MAX_ANSWER: u64 = 64 << 10;
/// How long a credential helper may take; one that asks a cloud's service needs a few seconds.
const PATIENCE: Duration = Duration::from_secs(30);
/// What Docker's own tools call Docker Hub.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";
/// The user name by which a helper says that its secret is an identity token.
const TOKEN_USER: &str = "<token>";

/// The file, in the parts that matter here.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct DockerConfig {
    auths: BTreeMap<String, Entry>,
    creds_store: String,
    cred_helpers: BTreeMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
    registrytoken: String,
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Entry(hidden)")
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    #[serde(default)]
    username: String,
    #[serde(default)]
    secret: String,
}

impl DockerConfig {
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, String> {
        // serde would take a list for a struct.
        match bytes.trim_ascii_start().first() {
            Some(b'{') => serde_json::from_slice(bytes).map_err(|error| error.to_string()),
            _ => Err("it is no JSON object".to_owned()),
        }
    }

    /// The credentials that the file itself has: those of the longest path that the repository is
    /// below. A path comes from `podman login`; Docker writes hosts only.
    pub(crate) fn entry(&self, host: &str, repository: &str) -> Result<Option<Secret>, String> {
        let wanted = format!("{}/{repository}/", canonical(host));
        let best = self
            .auths
            .iter()
            .map(|(key, entry)| (scope_of(key), key, entry))
            .filter(|(scope, ..)| wanted.starts_with(&format!("{scope}/")))
            .max_by_key(|(scope, ..)| scope.len());
        match best {
            Some((_, key, entry)) => entry
                .secret()
                .map_err(|reason| format!("the entry {key:?} {reason}")),
            None => Ok(None),
        }
    }

    /// The program that is asked for a host's credentials, as the second half of its name.
    fn helper(&self, host: &str) -> Option<&str> {
        let of_host = self
            .cred_helpers
            .iter()
            .find(|(key, _)| canonical(server_host(key)) == canonical(host))
            .map(|(_, helper)| helper.as_str());
        of_host
            .or(Some(self.creds_store.as_str()))
            .filter(|helper| !helper.is_empty())
    }
}

/// `host` or `host/path` of a key, which can also be an address with the version of the API.
fn scope_of(key: &str) -> String {
    let host = server_host(key);
    let rest = key.split_once("://").map_or(key, |(_, rest)| rest);
    let path = rest.strip_prefix(host).unwrap_or_default();
    let path = path.trim_end_matches('/');
    match path {
        "/v1" | "/v2" => canonical(host).to_owned(),
        path => format!("{}{path}", canonical(host)),
    }
}

impl Entry {
    fn secret(&self) -> Result<Option<Secret>, &'static str> {
        if !self.identitytoken.is_empty() {
            return Ok(Some(Secret::IdentityToken(self.identitytoken.clone())));
        }
        if !self.auth.is_empty() {
            let auth = Auth::from_base64(&self.auth);
            let auth = auth.map_err(|_| "has an auth that is not \"username:password\" in Base64");
            return auth.map(|auth| Some(auth.secret));
        }
        if !self.username.is_empty() {
            return Ok(Some(Secret::Basic {
                username: self.username.clone(),
                password: self.password.clone(),
            }));
        }
        let token = Some(self.registrytoken.clone()).filter(|token| !token.is_empty());
        Ok(token.map(Secret::RegistryToken))
    }
}

/// The node's credentials, read when a registry asks for some.
#[derive(Debug, Clone, Default)]
pub(crate) struct Keychain {
    file: Option<PathBuf>,
    /// Where credential helpers are, instead of in `PATH`.
    programs: Option<PathBuf>,
}

impl Keychain {
    pub(crate) fn new(file: Option<PathBuf>) -> Self {
        Self {
            file,
            programs: None,
        }
    }

    #[cfg(test)]
    pub(crate) fn with_programs(file: PathBuf, programs: PathBuf) -> Self {
        Self {
            file: Some(file),
            programs: Some(programs),
        }
    }

    /// What the node has for a repository of a host.
    pub(crate) async fn find(
        &self,
        host: &str,
        repository: &str,
    ) -> Result<Option<Secret>, String> {
        let Some(path) = &self.file else {
            return Ok(None);
        };
        let blame = |reason: String| format!("{}: {reason}", path.display());
        let bytes = read(path).await.map_err(|error| blame(error.to_string()))?;
        let config = DockerConfig::parse(&bytes).map_err(blame)?;
        if let Some(helper) = config.helper(host)
            && let Some(secret) = self.ask(helper, host).await.map_err(blame)?
        {
            return Ok(Some(secret));
        }
        config.entry(host, repository).map_err(blame)
    }

    /// Asks a credential helper, which gets the address on its standard input and answers in JSON
    /// on its standard output.
    async fn ask(&self, helper: &str, host: &str) -> Result<Option<Secret>, String> {
        let name = format!("docker-credential-{helper}");
        if helper.contains('/') {
            return Err(format!("{name:?} is not the name of a program"));
        }
        let program = match &self.programs {
            Some(directory) => directory.join(&name),
            None => PathBuf::from(&name),
        };
        let address = match canonical(host) {
            "docker.io" => DOCKER_HUB,
            _ => host,
        };
        let answer = tokio::time::timeout(PATIENCE, run(&program, address)).await;
        let (success, bytes) = match answer {
            Ok(answer) => answer.map_err(|error| format!("{name} can not be run: {error}"))?,
            Err(_) => return Err(format!("{name} has not answered for {PATIENCE:?}")),
        };
        if bytes.len() as u64 > MAX_ANSWER {
            return Err(format!("{name} answered more than {MAX_ANSWER} bytes"));
        }
        if !success {
            let text = String::from_utf8_lossy(&bytes);
            let text = text.trim();
            // The words are part of the protocol.
            return match text.contains("credentials not found") {
                true => Ok(None),
                false => Err(format!(
                    "{name} failed: {:.300}",
                    text.escape_debug().to_string()
                )),
            };
        }
        let answer: Answer = serde_json::from_slice(&bytes)
            .map_err(|error| format!("{name} answered something else than JSON ({error})"))?;
        Ok(match answer {
            Answer { secret, .. } if secret.is_empty() => None,
            Answer { username, secret } if username == TOKEN_USER => {
                Some(Secret::IdentityToken(secret))
            }
            Answer { username, secret } => Some(Secret::Basic {
                username,
                password: secret,
            }),
        })
    }
}

async fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = tokio::fs::File::open(path).await?;
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).await?;
    if bytes.len() as u64 > MAX_FILE {
        let reason = format!("it has more than {MAX_FILE} bytes");
        return Err(std::io::Error::other(reason));
    }
    Ok(bytes)
}

/// Runs a helper and returns whether it succeeded and what it wrote; it is killed when this is
/// dropped.
async fn run(program: &Path, address: &str) -> std::io::Result<(bool, Vec<u8>)> {
    let mut child = Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // A helper that does not read it knows the address by other means.
        let _ = stdin.write_all(format!("{address}\n").as_bytes()).await;
    }
    let mut bytes = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(MAX_ANSWER + 1).read_to_end(&mut bytes).await?;
    }
    if bytes.len() as u64 > MAX_ANSWER {
        child.start_kill()?;
    }
    Ok((child.wait().await?.success(), bytes))
}
