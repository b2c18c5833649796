//! Which seccomp profile a container has.
//!
//! RuntimeDefault (`default.toml`) is what it has when nothing is said, unless it is privileged. A
//! Localhost profile is a file of the node in the format of the OCI specification (`linux.seccomp`),
//! as for containerd; the agent translates it.

use crate::config::SeccompDefault;
use crate::store::blocking;
use crate::{Result, SandboxError};
use bulkhead_cri::v1;
use bulkhead_cri::v1::security_profile::ProfileType;
use oci_spec::runtime::{Capability, LinuxSeccomp, Process, Spec};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

/// The largest profile in bytes; a thorough one has 20 KiB.
const MAX_PROFILE: u64 = 1 << 20;
/// Architectures of the programs that a guest runs.
const ARCHITECTURES: [&str; 3] = ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"];
const ENOSYS: u32 = 38;
const FIELD: &str = "config.linux.security_context.seccomp.localhost_ref";

/// `default.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Default {
    allow: Vec<String>,
    with: BTreeMap<String, Vec<String>>,
    when: Vec<When>,
    unknown: Vec<Unknown>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct When {
    syscall: String,
    without: Option<String>,
    argument: u8,
    mask: Option<u64>,
    values: Vec<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Unknown {
    syscall: String,
    without: Option<String>,
}

static DEFAULT: LazyLock<Result<Default, toml::de::Error>> =
    LazyLock::new(|| toml::from_str(include_str!("seccomp/default.toml")));

/// Gives a specification its profile, which depends on the capabilities that it has already.
///
/// # Errors
/// [`SandboxError::InvalidField`] for a Localhost profile that cannot be used.
pub(crate) async fn apply(
    spec: &mut Spec,
    config: &v1::ContainerConfig,
    unset: SeccompDefault,
    profiles: &Path,
) -> Result<()> {
    let process = spec.process().clone().unwrap_or_default();
    let profile = profile(config, &process, unset, profiles).await?;
    let mut linux = spec.linux().clone().unwrap_or_default();
    linux.set_seccomp(profile);
    spec.set_linux(Some(linux));
    Ok(())
}

/// The profile of a container with this process.
async fn profile(
    config: &v1::ContainerConfig,
    process: &Process,
    unset: SeccompDefault,
    root: &Path,
) -> Result<Option<LinuxSeccomp>> {
    let linux = config.linux.clone().unwrap_or_default();
    let security = linux.security_context.unwrap_or_default();
    let asked = match (security.seccomp, unset) {
        (None, SeccompDefault::Unconfined) => return Ok(None),
        (asked, _) => asked.unwrap_or_default(),
    };
    match asked.profile_type() {
        ProfileType::Unconfined => Ok(None),
        ProfileType::RuntimeDefault if security.privileged => Ok(None),
        ProfileType::RuntimeDefault => {
            let none = HashSet::new();
            let capabilities = process.capabilities().as_ref();
            let bounding = capabilities.and_then(|sets| sets.bounding().as_ref());
            default(bounding.unwrap_or(&none)).map(Some)
        }
        ProfileType::Localhost => {
            let (root, reference) = (root.to_owned(), asked.localhost_ref);
            blocking(move || localhost(&root, &reference))
                .await
                .map(Some)
        }
    }
}

/// RuntimeDefault for a container that may have these capabilities.
fn default(bounding: &HashSet<Capability>) -> Result<LinuxSeccomp> {
    let unusable = |problem: String| SandboxError::InvalidField {
        field: "config.linux.security_context.seccomp",
        problem: format!("the built-in profile cannot be used: {problem}"),
    };
    let data = DEFAULT
        .as_ref()
        .map_err(|error| unusable(error.to_string()))?;
    let names: Vec<String> = bounding.iter().map(ToString::to_string).collect();
    let has = |name: &str| {
        let plain = |one: &String| one.strip_prefix("CAP_").unwrap_or(one) == name;
        names.iter().any(plain)
    };
    let lacks = |name: &Option<String>| name.as_deref().is_none_or(|name| !has(name));
    let names = data.allow.iter().chain(
        data.with
            .iter()
            .filter(|(capability, _)| has(capability))
            .flat_map(|(_, names)| names),
    );
    let mut rules = vec![json!({
        "names": names.collect::<Vec<_>>(), "action": "SCMP_ACT_ALLOW",
    })];
    for when in data.when.iter().filter(|when| lacks(&when.without)) {
        rules.extend(when.values.iter().map(|value| rule(when, *value)));
    }
    for one in data.unknown.iter().filter(|one| lacks(&one.without)) {
        rules.push(json!({
            "names": [one.syscall], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS,
        }));
    }
    let document = json!({
        "defaultAction": "SCMP_ACT_ERRNO", "architectures": ARCHITECTURES, "syscalls": rules,
    });
    serde_json::from_value(document).map_err(|error| unusable(error.to_string()))
}

fn rule(when: &When, value: u64) -> Value {
    let argument = match when.mask {
        Some(mask) => json!({
            "index": when.argument, "op": "SCMP_CMP_MASKED_EQ", "value": mask, "valueTwo": value,
        }),
        None => json!({ "index": when.argument, "op": "SCMP_CMP_EQ", "value": value }),
    };
    json!({ "names": [when.syscall], "action": "SCMP_ACT_ALLOW", "args": [argument] })
}

/// Reads a profile of the node: an absolute path, or one beneath `root` that does not leave it.
fn localhost(root: &Path, reference: &str) -> Result<LinuxSeccomp> {
    let refuse = |problem: String| SandboxError::InvalidField {
        field: FIELD,
        problem,
    };
    if reference.is_empty() {
        return Err(refuse("must name the file of the Localhost profile".into()));
    }
    let path = match Path::new(reference) {
        path if path.is_absolute() => path.to_owned(),
        path => root.join(path),
    };
    let shown = path.display();
    let text = read(root, reference, &path)
        .map_err(|error| refuse(format!("the profile {shown} cannot be read: {error}")))?;
    serde_json::from_slice(&text)
        .map_err(|error| refuse(format!("the profile {shown} is not valid: {error}")))
}

fn read(root: &Path, reference: &str, path: &PathBuf) -> std::io::Result<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = if Path::new(reference).is_absolute() {
        rustix::fs::open(path, flags, Mode::empty())?
    } else {
        let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(root, directory, Mode::empty())?;
        let inside = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        rustix::fs::openat2(&root, reference, flags, Mode::empty(), inside)?
    };
    let stat = rustix::fs::fstat(&file)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(std::io::Error::other("it is not a plain file"));
    }
    let mut text = Vec::new();
    File::from(file)
        .take(MAX_PROFILE + 1)
        .read_to_end(&mut text)?;
    if text.len() as u64 > MAX_PROFILE {
        let problem = format!("it is larger than {MAX_PROFILE} bytes");
        return Err(std::io::Error::other(problem));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::{DEFAULT, default, localhost, profile};
    use crate::config::SeccompDefault;
    use crate::error::Kind;
    use bulkhead_cri::v1;
    use bulkhead_cri::v1::security_profile::ProfileType;
    use oci_spec::runtime::{Capability, LinuxSeccomp, Process};
    use std::collections::HashSet;
    use std::fs;
    use std::path::Path;

    /// Whether a rule of the profile allows a system call whatever its arguments are.
    fn allows(profile: &LinuxSeccomp, name: &str) -> bool {
        let rules = profile.syscalls().as_ref().unwrap().iter();
        rules
            .filter(|rule| rule.args().is_none() && rule.errno_ret().is_none())
            .any(|rule| rule.names().iter().any(|known| known == name))
    }

    #[test]
    fn the_default_depends_on_the_capabilities() {
        assert!(DEFAULT.is_ok(), "{:?}", DEFAULT.as_ref().err());
        let none = default(&HashSet::new()).unwrap();
        for name in ["read", "execve", "ptrace", "openat2", "futex_waitv", "rseq"] {
            assert!(allows(&none, name), "{name}");
        }
        for name in [
            "mount",
            "unshare",
            "clone",
            "socket",
            "bpf",
            "keyctl",
            "io_uring_setup",
            "reboot",
            "kexec_load",
            "userfaultfd",
            "syslog",
            "chroot",
            "setns",
            "personality",
            "add_key",
        ] {
            assert!(!allows(&none, name), "{name}");
        }
        let admin = default(&[Capability::SysAdmin, Capability::SysChroot].into()).unwrap();
        for name in ["mount", "unshare", "clone", "clone3", "bpf", "chroot"] {
            assert!(allows(&admin, name), "{name}");
        }
        assert!(!allows(&admin, "reboot"));
        // Names are written once.
        let names = &DEFAULT.as_ref().unwrap().allow;
        assert_eq!(names.iter().collect::<HashSet<_>>().len(), names.len());
    }

    /// The engine's tests run containers with it, and compare what they see under runc.
    #[test]
    fn the_engine_is_tested_with_this_profile() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../agent/tests/engine/compare/seccomp.json");
        let security = v1::LinuxContainerSecurityContext::default();
        let sets = super::super::security::capabilities(&security).unwrap();
        let bounding: HashSet<Capability> =
            serde_json::from_value(sets["bounding"].clone()).unwrap();
        let profile = serde_json::to_string_pretty(&default(&bounding).unwrap()).unwrap();
        if std::env::var_os("BULKHEAD_WRITE").is_some() {
            fs::write(&file, format!("{profile}\n")).unwrap();
        }
        let written = fs::read_to_string(&file).unwrap();
        assert_eq!(
            written.trim_end(),
            profile,
            "run this test once with BULKHEAD_WRITE=1"
        );
    }

    async fn of(
        kind: ProfileType,
        reference: &str,
        privileged: bool,
    ) -> crate::Result<Option<LinuxSeccomp>> {
        let mut seccomp = v1::SecurityProfile {
            localhost_ref: reference.to_owned(),
            ..Default::default()
        };
        seccomp.set_profile_type(kind);
        let config = v1::ContainerConfig {
            linux: Some(v1::LinuxContainerConfig {
                security_context: Some(v1::LinuxContainerSecurityContext {
                    privileged,
                    seccomp: Some(seccomp),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        profile(
            &config,
            &Process::default(),
            SeccompDefault::RuntimeDefault,
            Path::new("/nonexistent"),
        )
        .await
    }

    #[tokio::test]
    async fn nothing_said_is_the_default() {
        let process = Process::default();
        let config = v1::ContainerConfig::default();
        let silent = profile(
            &config,
            &process,
            SeccompDefault::RuntimeDefault,
            Path::new("/"),
        );
        assert!(silent.await.unwrap().is_some());
        let unconfined = SeccompDefault::Unconfined;
        let silent = profile(&config, &process, unconfined, Path::new("/"));
        assert!(silent.await.unwrap().is_none(), "the handler's word");
        assert!(
            of(ProfileType::RuntimeDefault, "", false)
                .await
                .unwrap()
                .is_some()
        );
        assert!(
            of(ProfileType::RuntimeDefault, "", true)
                .await
                .unwrap()
                .is_none()
        );
        assert!(
            of(ProfileType::Unconfined, "", false)
                .await
                .unwrap()
                .is_none()
        );
        for privileged in [false, true] {
            let error = of(ProfileType::Localhost, "x.json", privileged)
                .await
                .unwrap_err();
            assert_eq!(error.kind(), Kind::InvalidArgument);
            assert!(error.to_string().contains("localhost_ref"), "{error}");
        }
    }

    #[test]
    fn profiles_of_the_node_are_read_beneath_the_root() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        fs::create_dir_all(root.join("sub")).unwrap();
        let text = r#"{"defaultAction": "SCMP_ACT_LOG", "syscalls": []}"#;
        fs::write(root.join("sub/log.json"), text).unwrap();
        fs::write(directory.path().join("outside.json"), text).unwrap();
        fs::write(root.join("wrong.json"), "{}").unwrap();
        fs::write(root.join("large.json"), vec![b' '; (1 << 20) + 1]).unwrap();
        std::os::unix::fs::symlink("sub/log.json", root.join("link.json")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", root.join("escape.json")).unwrap();
        let absolute = directory.path().join("outside.json");
        for reference in ["sub/log.json", "link.json", absolute.to_str().unwrap()] {
            localhost(&root, reference).unwrap();
        }
        for reference in [
            "",
            "../outside.json",
            "sub",
            "none.json",
            "wrong.json",
            "large.json",
            "escape.json",
            "/dev/zero",
        ] {
            let error = localhost(&root, reference).unwrap_err().to_string();
            assert!(
                error.starts_with("config.linux.security_context.seccomp.localhost_ref"),
                "{error}"
            );
            assert!(error.contains(reference), "{error}");
        }
    }
}
