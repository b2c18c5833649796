//! Which namespaces a container shares with others of its pod, and the ids of its user namespace.

use crate::{Result, SandboxError};
use bulkhead_agent_api::agent::PidNamespace;
use bulkhead_cri::v1::{self, NamespaceMode};
use serde_json::{Value, json};

const FIELD: &str = "config.linux.security_context.namespace_options";
const USER_FIELD: &str = "config.linux.security_context.namespace_options.userns_options";

/// Checks what a pod asks for.
pub(super) fn check_sandbox(options: &v1::NamespaceOption) -> Result<()> {
    if options.pid() == NamespaceMode::Target {
        return Err(invalid(
            FIELD,
            "pid is TARGET, which only a container can ask for",
        ));
    }
    user_mappings(options).map(drop)
}

/// The pid namespace of a container, and the container whose it is with TARGET.
pub(super) fn pid(options: Option<&v1::NamespaceOption>) -> Result<(PidNamespace, String)> {
    // A caller that says nothing of namespaces gets what containers usually have.
    let Some(options) = options else {
        return Ok((PidNamespace::SPEC_PID, String::new()));
    };
    match options.pid() {
        NamespaceMode::Pod => Ok((PidNamespace::POD_PID, String::new())),
        NamespaceMode::Target if options.target_id.is_empty() => {
            Err(invalid(FIELD, "pid is TARGET, but target_id is empty"))
        }
        NamespaceMode::Target => Ok((PidNamespace::TARGET_PID, options.target_id.clone())),
        NamespaceMode::Container | NamespaceMode::Node => {
            Ok((PidNamespace::SPEC_PID, String::new()))
        }
    }
}

/// The mappings of a user namespace as the OCI format has them, uids and gids; `None` without one.
pub(super) fn user_mappings(options: &v1::NamespaceOption) -> Result<Option<(Value, Value)>> {
    let Some(user) = &options.userns_options else {
        return Ok(None);
    };
    match user.mode() {
        // The guest's own: no user namespace at all.
        NamespaceMode::Node => return Ok(None),
        NamespaceMode::Pod => {}
        NamespaceMode::Container | NamespaceMode::Target => {
            return Err(invalid(USER_FIELD, "mode must be POD or NODE"));
        }
    }
    if user.uids.is_empty() || user.gids.is_empty() {
        return Err(invalid(
            USER_FIELD,
            "mode is POD, but uids or gids have no mapping",
        ));
    }
    Ok(Some((mappings(&user.uids), mappings(&user.gids))))
}

fn mappings(list: &[v1::IdMapping]) -> Value {
    list.iter()
        .map(|map| {
            json!({ "containerID": map.container_id, "hostID": map.host_id, "size": map.length })
        })
        .collect()
}

/// A container's user namespace is its pod's.
pub(super) fn check_same_user(
    pod: Option<&(Value, Value)>,
    container: &v1::NamespaceOption,
) -> Result<()> {
    match container.userns_options {
        Some(_) if user_mappings(container)?.as_ref() != pod => Err(invalid(
            USER_FIELD,
            "the mappings are not those of the pod sandbox",
        )),
        _ => Ok(()),
    }
}

fn invalid(field: &'static str, problem: &str) -> SandboxError {
    SandboxError::InvalidField {
        field,
        problem: problem.to_owned(),
    }
}
