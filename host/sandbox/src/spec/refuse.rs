//! What is asked for and cannot be had: refused by the name of its field.

use crate::{Result, SandboxError};
use bulkhead_cri::v1;
use bulkhead_cri::v1::NamespaceMode;

/// Refuses a pod that needs the host, or what is not built.
pub(crate) fn sandbox(config: &v1::PodSandboxConfig) -> Result<()> {
    let linux = config.linux.clone().unwrap_or_default();
    let security = linux.security_context.unwrap_or_default();
    if let Some(options) = &security.namespace_options {
        namespaces("config.linux.security_context.namespace_options", options)?;
    }
    super::namespaces::check_sandbox(&security.namespace_options.unwrap_or_default())?;
    Ok(())
}

/// Refuses a container that needs the host, or what is not built.
pub(crate) fn container(config: &v1::ContainerConfig) -> Result<()> {
    let linux = config.linux.clone().unwrap_or_default();
    let security = linux.security_context.unwrap_or_default();
    if let Some(options) = &security.namespace_options {
        namespaces("config.linux.security_context.namespace_options", options)?;
    }
    if !config.cdi_devices.is_empty() {
        return Err(not_built("config.CDI_devices"));
    }
    Ok(())
}

fn namespaces(field: &'static str, options: &v1::NamespaceOption) -> Result<()> {
    for (name, mode) in [
        ("network", options.network()),
        ("pid", options.pid()),
        ("ipc", options.ipc()),
    ] {
        if mode == NamespaceMode::Node {
            return Err(SandboxError::InvalidField {
                field,
                problem: format!(
                    "{name} is NODE, but a pod in a virtual machine cannot share the node's; give such pods another runtime handler"
                ),
            });
        }
    }
    Ok(())
}

fn not_built(what: &'static str) -> SandboxError {
    SandboxError::Unsupported { what }
}
