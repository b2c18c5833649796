//! The calls that hand out addresses of streams: exec, attach and port-forward.

use super::runtime::RuntimeApi;
use super::sandbox_status;
use bulkhead_cri::v1::{
    AttachRequest, AttachResponse, ExecRequest, ExecResponse, PortForwardRequest,
    PortForwardResponse,
};
use bulkhead_stream::{ForwardRequest, StreamError, Wants};
use tonic::Status;

/// The longest command, all words together: what execve(2) takes at most with the usual stack limit.
const MAX_COMMAND: usize = 2 << 20;

/// Exec.
pub(super) async fn exec(api: &RuntimeApi, request: ExecRequest) -> Result<ExecResponse, Status> {
    let wants = Wants {
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
        tty: request.tty,
    };
    check(&request.container_id, wants)?;
    if request.cmd.is_empty() {
        return Err(Status::invalid_argument("cmd: must name a program"));
    }
    if request.cmd.iter().map(|word| word.len() + 1).sum::<usize>() > MAX_COMMAND {
        return Err(Status::invalid_argument("cmd: is longer than 2 MiB"));
    }
    let container = running(api, &request.container_id)?;
    let request = bulkhead_stream::ExecRequest {
        container,
        command: request.cmd,
        wants,
    };
    let url = api.streams.exec(request).map_err(refused)?;
    Ok(ExecResponse { url })
}

/// Attach.
pub(super) async fn attach(
    api: &RuntimeApi,
    request: AttachRequest,
) -> Result<AttachResponse, Status> {
    let wants = Wants {
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
        tty: request.tty,
    };
    check(&request.container_id, wants)?;
    let container = running(api, &request.container_id)?;
    let request = bulkhead_stream::AttachRequest { container, wants };
    let url = api.streams.attach(request).map_err(refused)?;
    Ok(AttachResponse { url })
}

/// PortForward.
pub(super) async fn port_forward(
    api: &RuntimeApi,
    request: PortForwardRequest,
) -> Result<PortForwardResponse, Status> {
    if request.pod_sandbox_id.is_empty() {
        return Err(Status::invalid_argument("pod_sandbox_id: must be set"));
    }
    let ports = request.port.iter().map(|port| match u16::try_from(*port) {
        Ok(port @ 1..) => Ok(port),
        _ => Err(Status::invalid_argument(format!(
            "port: {port} is not from 1 to 65535"
        ))),
    });
    let ports = ports.collect::<Result<Vec<u16>, Status>>()?;
    let found = api.sandboxes.sandbox(&request.pod_sandbox_id);
    let sandbox = found.map_err(sandbox_status)?;
    sandbox.check_ready().map_err(sandbox_status)?;
    let pod = sandbox.id();
    let url = api.streams.forward(ForwardRequest { pod, ports });
    Ok(PortForwardResponse {
        url: url.map_err(refused)?,
    })
}

/// What holds for exec and attach, in the words of the kubelet's own server.
fn check(container_id: &str, wants: Wants) -> Result<(), Status> {
    if container_id.is_empty() {
        return Err(Status::invalid_argument("container_id: must be set"));
    }
    if wants.tty && wants.stderr {
        return Err(Status::invalid_argument(
            "tty and stderr cannot both be true: a terminal has one output",
        ));
    }
    if !(wants.stdin || wants.stdout || wants.stderr) {
        return Err(Status::invalid_argument(
            "one of stdin, stdout, or stderr must be set",
        ));
    }
    Ok(())
}

/// The whole id of a container that runs.
fn running(api: &RuntimeApi, id: &str) -> Result<String, Status> {
    let container = api.sandboxes.container(id).map_err(sandbox_status)?;
    let needed = "its streams can be joined only while it runs";
    container.check_running(needed).map_err(sandbox_status)?;
    Ok(container.id().to_owned())
}

fn refused(error: StreamError) -> Status {
    match error {
        StreamError::TooManyUrls { .. } => Status::resource_exhausted(error.to_string()),
        _ => Status::internal(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::check;
    use bulkhead_stream::Wants;

    #[test]
    fn streams_must_make_sense() {
        let wants = |stdin, stdout, stderr, tty| Wants {
            stdin,
            stdout,
            stderr,
            tty,
        };
        assert!(check("x", wants(true, false, false, false)).is_ok());
        assert!(check("x", wants(true, true, false, true)).is_ok());
        for (id, wanted, word) in [
            ("", wants(true, true, true, false), "container_id"),
            ("x", wants(true, true, true, true), "tty"),
            ("x", wants(false, false, false, true), "one of"),
        ] {
            let refused = check(id, wanted).unwrap_err();
            assert_eq!(refused.code(), tonic::Code::InvalidArgument);
            assert!(refused.message().contains(word), "{refused}");
        }
    }
}
