//! The calls that hand out addresses of streams: exec, attach and port-forward.

use super::runtime::RuntimeApi;
use bulkhead_cri::v1::{
    AttachRequest, AttachResponse, ExecRequest, ExecResponse, PortForwardRequest,
    PortForwardResponse,
};
use tonic::Status;

fn not_built<T>(call: &str) -> Result<T, Status> {
    Err(Status::unimplemented(format!(
        "{call} is not supported yet"
    )))
}

/// Exec.
pub(super) async fn exec(_: &RuntimeApi, _: ExecRequest) -> Result<ExecResponse, Status> {
    not_built("Exec")
}

/// Attach.
pub(super) async fn attach(_: &RuntimeApi, _: AttachRequest) -> Result<AttachResponse, Status> {
    not_built("Attach")
}

/// PortForward.
pub(super) async fn port_forward(
    _: &RuntimeApi,
    _: PortForwardRequest,
) -> Result<PortForwardResponse, Status> {
    not_built("PortForward")
}
