//! The `process` part of the specification: what runs, as whom, with which environment.

use super::security;
use crate::container::ContainerImage;
use crate::{Result, SandboxError};
use bulkhead_cri::v1;
use serde_json::{Value, json};

const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

pub(super) fn build(
    container: &v1::ContainerConfig,
    pod: &v1::PodSandboxConfig,
    image: &ContainerImage,
    security: &v1::LinuxContainerSecurityContext,
    resources: &v1::LinuxContainerResources,
) -> Result<Value> {
    let working_directory = [&container.working_dir, &image.working_dir]
        .into_iter()
        .find(|dir| !dir.is_empty());
    Ok(json!({
        "terminal": container.tty,
        "args": arguments(container, image)?,
        "env": environment(container, pod, image)?,
        "cwd": working_directory.map_or("/", String::as_str),
        "user": { "uid": 0, "gid": 0, "additionalGids": groups(security)? },
        "capabilities": security::capabilities(security)?,
        "noNewPrivileges": security.no_new_privs,
        "oomScoreAdj": resources.oom_score_adj,
    }))
}

/// The request's command takes the place of the image's entrypoint and its default arguments, the
/// request's arguments only that of the arguments (Kubernetes' rule).
fn arguments(container: &v1::ContainerConfig, image: &ContainerImage) -> Result<Vec<String>> {
    let (command, default_args) = match container.command.is_empty() {
        true => (&image.entrypoint, &image.cmd),
        false => (&container.command, &container.args),
    };
    let args = if container.args.is_empty() {
        default_args
    } else {
        &container.args
    };
    let all: Vec<String> = command.iter().chain(args).cloned().collect();
    match all.is_empty() {
        true => Err(SandboxError::InvalidField {
            field: "config.command",
            problem: format!(
                "must be set, for image {} has no command of its own",
                image.reference
            ),
        }),
        false => Ok(all),
    }
}

/// The image's variables, then the request's, the last one of a name standing.
fn environment(
    container: &v1::ContainerConfig,
    pod: &v1::PodSandboxConfig,
    image: &ContainerImage,
) -> Result<Vec<String>> {
    let mut all = vec![DEFAULT_PATH.to_owned()];
    if container.tty {
        all.push("TERM=xterm".to_owned());
    }
    if !pod.hostname.is_empty() {
        all.push(format!("HOSTNAME={}", pod.hostname));
    }
    all.extend(image.env.iter().cloned());
    for env in &container.envs {
        let value = std::str::from_utf8(&env.value).map_err(|_| SandboxError::InvalidField {
            field: "config.envs",
            problem: format!(
                "the value of {} is not UTF-8, which the OCI format needs",
                env.key
            ),
        })?;
        all.push(format!("{}={value}", env.key));
    }
    let mut result: Vec<String> = Vec::new();
    for variable in all {
        let name = variable.split('=').next().unwrap_or_default();
        let same = result
            .iter_mut()
            .find(|other| other.split('=').next() == Some(name));
        match same {
            Some(other) => *other = variable,
            None => result.push(variable),
        }
    }
    Ok(result)
}

/// "user[:group]" by the request, else by the image; root if neither says.
pub(super) fn user(
    security: &v1::LinuxContainerSecurityContext,
    image: &ContainerImage,
) -> Result<String> {
    let by_request = match (&security.run_as_user, security.run_as_username.as_str()) {
        (Some(uid), _) => Some(number("run_as_user", uid.value)?.to_string()),
        (None, "") => None,
        (None, name) => Some(name.to_owned()),
    };
    let Some(group) = &security.run_as_group else {
        let by_image = || {
            if image.user.is_empty() {
                "0"
            } else {
                &image.user
            }
            .to_owned()
        };
        return Ok(by_request.unwrap_or_else(by_image));
    };
    match by_request {
        Some(user) => Ok(format!("{user}:{}", number("run_as_group", group.value)?)),
        None => Err(SandboxError::InvalidField {
            field: "config.linux.security_context.run_as_group",
            problem: "must not be set without run_as_user or run_as_username".to_owned(),
        }),
    }
}

fn groups(security: &v1::LinuxContainerSecurityContext) -> Result<Vec<u32>> {
    security
        .supplemental_groups
        .iter()
        .map(|gid| number("supplemental_groups", *gid))
        .collect()
}

fn number(what: &str, value: i64) -> Result<u32> {
    u32::try_from(value).map_err(|_| SandboxError::InvalidField {
        field: "config.linux.security_context",
        problem: format!("{what} is {value}; it must be from 0 to {}", u32::MAX),
    })
}

/// The number of a signal by the image's `StopSignal`: a name with or without SIG, or a number.
/// SIGTERM where nothing is said.
pub(crate) fn stop_signal(text: &str) -> Result<u32> {
    let name = text.trim().to_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    let found = match name {
        "" => Some(15),
        _ => SIGNALS
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, number)| *number),
    };
    let number = found
        .or_else(|| real_time(name))
        .or_else(|| name.parse().ok())
        .filter(|number| (1..=64).contains(number));
    number.ok_or_else(|| SandboxError::InvalidField {
        field: "config.stop_signal",
        problem: format!("{text:?} is no signal of Linux; use a name such as SIGTERM or a number"),
    })
}

/// `RTMIN+3` as images write it, `RTMINPLUS3` as the CRI does.
fn real_time(name: &str) -> Option<u32> {
    let offset = |rest: &str, signs: [&str; 2]| match rest {
        "" => Some(0),
        _ => signs
            .iter()
            .find_map(|sign| rest.strip_prefix(sign))?
            .parse::<u32>()
            .ok(),
    };
    if let Some(rest) = name.strip_prefix("RTMIN") {
        return RT_MIN.checked_add(offset(rest, ["+", "PLUS"])?);
    }
    RT_MAX.checked_sub(offset(name.strip_prefix("RTMAX")?, ["-", "MINUS"])?)
}

/// The first real-time signal that glibc leaves to programs.
const RT_MIN: u32 = 34;
const RT_MAX: u32 = 64;

/// signal(7), x86-64.
const SIGNALS: [(&str, u32); 31] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("PWR", 30),
    ("SYS", 31),
];
