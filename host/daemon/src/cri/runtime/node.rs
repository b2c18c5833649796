//! The runtime itself: its version, its state, its settings.

use super::{RuntimeApi, required};
use crate::config::Config;
use crate::cri::sandbox_status;
use bulkhead_cri::v1::*;
use bulkhead_sandbox::kvm;
use ipnet::IpNet;
use serde_json::json;
use std::collections::HashMap;
use tonic::Status;

/// The version of the kubelet's runtime API, which has been this since the CRI began.
const KUBELET_API: &str = "0.1.0";

pub(super) async fn version(_: &RuntimeApi, _: VersionRequest) -> Result<VersionResponse, Status> {
    Ok(VersionResponse {
        version: KUBELET_API.to_owned(),
        runtime_name: "bulkhead".to_owned(),
        runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
        runtime_api_version: "v1".to_owned(),
    })
}

fn condition(name: &str, problem: Option<(&str, String)>) -> RuntimeCondition {
    let (reason, message) = problem.clone().unwrap_or_default();
    RuntimeCondition {
        r#type: name.to_owned(),
        status: problem.is_none(),
        reason: reason.to_owned(),
        message,
    }
}

/// Why no pod of the default handler can be run, if so.
fn unfit(config: &Config) -> Option<(&'static str, String)> {
    if let Err(error) = kvm::open() {
        return Some(("NodeUnfit", error.to_string()));
    }
    let runtime = config.runtimes.get(&config.default_runtime)?;
    for (what, path) in [
        ("VMM", &config.vmm),
        ("guest kernel", &runtime.kernel),
        ("initramfs", &runtime.initramfs),
    ] {
        if !path.is_file() {
            let message = format!("The {what} {} is not there; install it", path.display());
            return Some(("FilesMissing", message));
        }
    }
    None
}

pub(super) async fn status(
    api: &RuntimeApi,
    request: StatusRequest,
) -> Result<StatusResponse, Status> {
    let network = api.sandboxes.network_status().await.err();
    let network = network.map(|error| ("NetworkPluginNotReady", error.to_string()));
    let conditions = vec![
        condition("RuntimeReady", unfit(&api.config)),
        condition("NetworkReady", network),
    ];
    let features = RuntimeHandlerFeatures {
        user_namespaces: true,
        // No volume of the node is mounted yet.
        recursive_read_only_mounts: true,
    };
    let handlers = api.config.runtimes.keys().map(|name| RuntimeHandler {
        name: name.clone(),
        features: Some(features),
    });
    let mut info = HashMap::new();
    if request.verbose {
        let cidrs = api.sandboxes.pod_cidrs();
        let text = json!({ "config": *api.config, "podCIDRs": cidrs }).to_string();
        info.insert("info".to_owned(), text);
    }
    // The handler of pods that name none is listed without a name too, as the kubelet looks for it.
    let default = RuntimeHandler {
        name: String::new(),
        features: Some(features),
    };
    Ok(StatusResponse {
        status: Some(RuntimeStatus { conditions }),
        info,
        runtime_handlers: std::iter::once(default).chain(handlers).collect(),
        features: Some(RuntimeFeatures {
            supplemental_groups_policy: true,
            // A pod in a VM never has the node's network.
            user_namespaces_host_network: false,
        }),
    })
}

pub(super) async fn runtime_config(
    _: &RuntimeApi,
    _: RuntimeConfigRequest,
) -> Result<RuntimeConfigResponse, Status> {
    let cgroup_driver = CgroupDriver::Cgroupfs.into();
    let linux = Some(LinuxRuntimeConfiguration { cgroup_driver });
    Ok(RuntimeConfigResponse { linux })
}

/// The most networks that pods of a node have: one of each family, with room.
const MAX_CIDRS: usize = 8;

pub(super) async fn update_runtime_config(
    api: &RuntimeApi,
    request: UpdateRuntimeConfigRequest,
) -> Result<UpdateRuntimeConfigResponse, Status> {
    let config = required(request.runtime_config, "runtime_config")?;
    let network = config.network_config.unwrap_or_default();
    // As containerd: a kubelet that knows none changes nothing.
    if !network.pod_cidr.is_empty() {
        let cidrs = pod_cidrs(&network.pod_cidr)?;
        let stored = api.sandboxes.set_pod_cidrs(cidrs).await;
        stored.map_err(sandbox_status)?;
    }
    Ok(UpdateRuntimeConfigResponse {})
}

/// Networks with commas between them.
fn pod_cidrs(text: &str) -> Result<Vec<IpNet>, Status> {
    let invalid = |problem: String| {
        Status::invalid_argument(format!("runtime_config.network_config.pod_cidr: {problem}"))
    };
    let parts: Vec<&str> = text.split(',').collect();
    if parts.len() > MAX_CIDRS {
        return Err(invalid(format!("has more than {MAX_CIDRS} networks")));
    }
    let parsed = parts.into_iter().map(|part| {
        let part = part.trim();
        let network: IpNet = part
            .parse()
            .map_err(|_| invalid(format!("{part:?} is not a network such as 10.1.2.0/24")))?;
        match network.trunc() == network {
            true => Ok(network),
            false => Err(invalid(format!(
                "{part} has bits of a host; the network is {}",
                network.trunc()
            ))),
        }
    });
    parsed.collect()
}

#[cfg(test)]
mod tests {
    use super::pod_cidrs;
    use tonic::Code;

    #[test]
    fn networks_of_both_families_are_taken_and_nonsense_is_named() {
        let good = pod_cidrs("10.1.0.0/16, fd00:1::/64").unwrap();
        let text: Vec<_> = good.iter().map(ToString::to_string).collect();
        assert_eq!(text, ["10.1.0.0/16", "fd00:1::/64"]);
        for bad in [
            "x",
            "10.1.0.0",
            "10.1.0.0/33",
            "10.1.0.1/16",
            "10.1.0.0/16,",
            &"::/0,".repeat(9),
        ] {
            let error = pod_cidrs(bad).unwrap_err();
            assert_eq!(error.code(), Code::InvalidArgument, "{bad}");
            assert!(
                error
                    .message()
                    .starts_with("runtime_config.network_config.pod_cidr: ")
            );
        }
    }
}
