//! For the fuzz targets in `agent/fuzz`: what checks untrusted input and is not public.

use crate::engine::{StdioSpec, terminal_size};
use crate::id::Id;
use crate::{pod, spec};
use bulkhead_agent_api::agent::{
    ConfigureRequest, ContainerRequest, CreateContainerRequest, EventsRequest, ExecRequest,
    ResizeTerminalRequest, SignalRequest, StatsRequest, UpdateContainerRequest,
};
use protobuf::Message;
use std::path::Component;

/// Decodes a request and checks it as the service does, without doing what it asks for.
///
/// # Panics
/// If what is accepted breaks a rule.
pub fn request(method: u8, payload: &[u8]) {
    match method % 9 {
        0 => with(payload, |request: ConfigureRequest| {
            for (_, path, _) in pod::check(&request).into_iter().flatten() {
                let plain = |part| matches!(part, Component::Normal(_));
                assert!(path.components().all(plain), "{path:?}");
            }
        }),
        1 => with(payload, |request: CreateContainerRequest| {
            name(&request.container_id);
            stdio(&request.stdio);
            // Either is an error or a plan; the target `spec` looks at it.
            let _ = spec::parse(&request.spec);
            let _ = spec::user(&request.user);
        }),
        2 => with(payload, |request: ContainerRequest| {
            name(&request.container_id)
        }),
        3 => with(payload, |request: ExecRequest| {
            name(&request.container_id);
            name(&request.exec_id);
            stdio(&request.stdio);
            let _ = spec::parse_process(&request.process);
        }),
        4 => with(payload, |request: SignalRequest| name(&request.exec_id)),
        5 => with(payload, |request: ResizeTerminalRequest| {
            let _ = terminal_size(request.width, request.height);
        }),
        6 => with(payload, |request: UpdateContainerRequest| {
            let _ = spec::parse_update(&request.resources);
        }),
        7 => with(payload, |request: StatsRequest| {
            request.container_ids.iter().for_each(|id| name(id));
        }),
        _ => with(payload, |_: EventsRequest| {}),
    }
}

fn with<T: Message>(payload: &[u8], check: impl FnOnce(T)) {
    if let Ok(request) = T::parse_from_bytes(payload) {
        check(request);
    }
}

/// A name that is accepted is one plain component of a path.
fn name(text: &str) {
    if let Ok(id) = Id::parse("Container", text) {
        assert!(!id.as_str().is_empty() && !id.as_str().starts_with('.'));
        assert!(!id.as_str().contains(['/', '\0', '\n']));
    }
}

/// What is accepted says the same again.
fn stdio(message: &protobuf::MessageField<bulkhead_agent_api::agent::Stdio>) {
    if let Ok(parsed) = StdioSpec::parse(message.get_or_default()) {
        assert_eq!(StdioSpec::parse(&parsed.to_message()).ok(), Some(parsed));
    }
}
