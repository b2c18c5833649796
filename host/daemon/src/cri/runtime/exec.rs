//! Commands in containers, run to their end.

use super::RuntimeApi;
use crate::cri::sandbox_status;
use bulkhead_cri::v1::{ExecSyncRequest, ExecSyncResponse};
use std::time::Duration;
use tonic::Status;

pub(super) async fn sync(
    api: &RuntimeApi,
    request: ExecSyncRequest,
) -> Result<ExecSyncResponse, Status> {
    let limit = Duration::from_secs(u64::try_from(request.timeout).unwrap_or(0));
    let found = api.sandboxes.container(&request.container_id);
    let container = found.map_err(sandbox_status)?;
    let output = container.exec_sync(request.cmd, limit).await;
    let output = output.map_err(sandbox_status)?;
    Ok(ExecSyncResponse {
        stdout: output.stdout,
        stderr: output.stderr,
        exit_code: output.code,
    })
}
