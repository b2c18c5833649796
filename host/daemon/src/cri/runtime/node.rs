//! The runtime itself: its version, its state, its settings.

use super::{RuntimeApi, not_built};
use bulkhead_cri::v1::*;
use bulkhead_sandbox::kvm;
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

pub(super) async fn status(api: &RuntimeApi, _: StatusRequest) -> Result<StatusResponse, Status> {
    let runtime = match kvm::open() {
        Ok(_) => (true, String::new(), String::new()),
        Err(error) => (false, "NodeUnfit".to_owned(), error.to_string()),
    };
    // Pods have their loopback interface only, so there is no network to wait for.
    let network = (true, String::new(), String::new());
    let conditions = [("RuntimeReady", runtime), ("NetworkReady", network)]
        .map(|(name, (status, reason, message))| RuntimeCondition {
            r#type: name.to_owned(),
            status,
            reason,
            message,
        })
        .into();
    let features = RuntimeHandlerFeatures {
        user_namespaces: true,
        ..Default::default()
    };
    let handlers = api.config.runtimes.keys().map(|name| RuntimeHandler {
        name: name.clone(),
        features: Some(features),
    });
    Ok(StatusResponse {
        status: Some(RuntimeStatus { conditions }),
        info: HashMap::new(),
        runtime_handlers: handlers.collect(),
        features: Some(RuntimeFeatures {
            supplemental_groups_policy: true,
            ..Default::default()
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

pub(super) async fn update_runtime_config(
    _: &RuntimeApi,
    _: UpdateRuntimeConfigRequest,
) -> Result<UpdateRuntimeConfigResponse, Status> {
    not_built("UpdateRuntimeConfig")
}
