//! What can go wrong with a pod.

use bulkhead_network::NetworkError;
use std::time::Duration;

/// What an error means to the caller; the daemon chooses the gRPC code by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A field of the request is wrong.
    InvalidArgument,
    /// What the request names does not exist.
    NotFound,
    /// What the request would make exists already.
    AlreadyExists,
    /// The node or the pod is not in a state in which this can be done.
    FailedPrecondition,
    /// A limit is reached: disk, memory, slots, output.
    ResourceExhausted,
    /// It did not end in time.
    DeadlineExceeded,
    /// The pod's VM ended or cannot be reached.
    Unavailable,
    /// Not built.
    Unimplemented,
    /// A fault of ours or of the node.
    Internal,
}

/// What can go wrong with a pod. Every message says to which pod or container it happened.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// A field of a request is wrong.
    #[error("{field}: {problem}")]
    InvalidField {
        /// The field's path in the request.
        field: &'static str,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// A limit is beyond what the pod's VM was booted with.
    #[error("{field}: {problem}; a VM does not grow, start the pod anew with the larger limit")]
    BeyondVm {
        /// Where the limit is in the request.
        field: &'static str,
        /// Which limit, and what the VM has.
        problem: String,
    },
    /// No such pod or container.
    #[error("There is no {what} {id:?}")]
    NotFound {
        /// "pod sandbox" or "container".
        what: &'static str,
        /// As the caller wrote it.
        id: String,
    },
    /// A short id that begins more than one.
    #[error("{id:?} is the beginning of more than one {what} id; write more of it")]
    Ambiguous {
        /// "pod sandbox" or "container".
        what: &'static str,
        /// As the caller wrote it.
        id: String,
    },
    /// The name is taken.
    #[error("The name {name:?} belongs to {what} {id}; remove it first or use another name")]
    NameTaken {
        /// "pod sandbox" or "container".
        what: &'static str,
        /// The name with its parts.
        name: String,
        /// Its owner.
        id: String,
    },
    /// A pod or container is in the wrong state.
    #[error("{what} {id} is {state}; {needed}")]
    WrongState {
        /// "Pod sandbox" or "Container".
        what: &'static str,
        /// Its id.
        id: String,
        /// Its state.
        state: String,
        /// What would be needed.
        needed: &'static str,
    },
    /// The node cannot run VMs.
    #[error("This node cannot run pods: {problem}")]
    NodeUnfit {
        /// What is missing and what to do.
        problem: String,
    },
    /// The VM ended before it was ready.
    #[error("The VM of pod sandbox {pod} ended before it was ready: {cause}")]
    BootFailed {
        /// The pod sandbox.
        pod: String,
        /// Why the VMM ended, with the end of the console where that helps.
        cause: String,
    },
    /// The guest never announced itself.
    #[error(
        "The guest of pod sandbox {pod} did not announce itself within {limit:?}; {vm}; its console ends: {console}"
    )]
    BootTimeout {
        /// The pod sandbox.
        pod: String,
        /// boot_timeout_seconds of the runtime handler.
        limit: Duration,
        /// What the VMM has done.
        vm: String,
        /// The end of its console.
        console: String,
    },
    /// The process that serves a pod's shared volumes has ended, and the next one does not serve yet.
    #[error(
        "The file daemon of pod sandbox {pod} has ended ({cause}): its shared volumes answer with errors until another one serves them; try again"
    )]
    FileDaemonEnded {
        /// The pod sandbox.
        pod: String,
        /// Why.
        cause: String,
    },
    /// The process that serves a pod's shared volumes has ended, and there will be no other.
    #[error(
        "The file daemon of pod sandbox {pod} is lost ({cause}): its shared volumes answer with input/output errors; remove the pod and run it again"
    )]
    FileDaemonLost {
        /// The pod sandbox.
        pod: String,
        /// Why.
        cause: String,
    },
    /// A direct volume.
    #[error("The direct volume {volume} cannot be used: {problem}")]
    DirectVolume {
        /// Its directory on the node.
        volume: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The guest speaks another protocol.
    #[error(
        "The guest of pod sandbox {pod} speaks agent protocol {version}, this daemon speaks {ours}; install an initramfs of the daemon's version"
    )]
    AgentVersion {
        /// The pod sandbox.
        pod: String,
        /// The agent's.
        version: u32,
        /// The daemon's.
        ours: u32,
    },
    /// The pod was stopped meanwhile.
    #[error("Pod sandbox {pod} was stopped while it was starting")]
    Stopped {
        /// The pod sandbox.
        pod: String,
    },
    /// The pod's VM has ended.
    #[error("The VM of pod sandbox {pod} has ended: {cause}")]
    PlaceEnded {
        /// The pod sandbox.
        pod: String,
        /// Why.
        cause: String,
    },
    /// The agent refused.
    #[error("{doing} of {what} failed: {message}")]
    Agent {
        /// The call.
        doing: &'static str,
        /// Which pod or container.
        what: String,
        /// The agent's kind of error.
        kind: Kind,
        /// The agent's words.
        message: String,
    },
    /// The VMM refused.
    #[error("The VMM of pod sandbox {pod} refused to {doing}: {message}")]
    Vmm {
        /// The pod sandbox.
        pod: String,
        /// The request.
        doing: &'static str,
        /// The VMM's words.
        message: String,
    },
    /// The control connection to the VMM failed.
    #[error("The control connection to the VMM of pod sandbox {pod} failed")]
    VmmWire {
        /// The pod sandbox.
        pod: String,
        /// Why.
        #[source]
        source: bulkhead_vmm_api::wire::WireError,
    },
    /// All disk slots are taken.
    #[error(
        "Pod sandbox {pod} has no free {kind} disk slot ({count} in all); raise {option} of its runtime handler"
    )]
    NoSlot {
        /// The pod sandbox.
        pod: String,
        /// "read-only" or "read-write".
        kind: &'static str,
        /// How many there are.
        count: u8,
        /// The option.
        option: &'static str,
    },
    /// Every user for VMMs is taken.
    #[error("All {count} users for VMMs are taken; raise vmm_users.count in the configuration")]
    NoUser {
        /// How many there are.
        count: u32,
    },
    /// A command ran longer than allowed and was killed.
    #[error("The command in container {container} ran longer than {limit:?} and was killed")]
    ExecTimeout {
        /// The container.
        container: String,
        /// The request's time-out.
        limit: Duration,
    },
    /// A file or directory of ours.
    #[error("Cannot {doing}")]
    Io {
        /// What was tried, with the path.
        doing: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The state store.
    #[error("The state store failed to {doing}")]
    Store {
        /// What was tried.
        doing: &'static str,
        /// Why not.
        #[source]
        source: redb::Error,
    },
    /// A record in the state store.
    #[error("The record of {id} in the state store cannot be used")]
    Record {
        /// Whose.
        id: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The OCI specification could not be made.
    #[error("The OCI specification of container {container} cannot be made")]
    Spec {
        /// The container.
        container: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The pod's network.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The request asks for something that this version does not have.
    #[error("{what} is not supported yet")]
    Unsupported {
        /// The field, and its value where only that is refused.
        what: &'static str,
    },
}

impl SandboxError {
    /// What the error means to the caller.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::InvalidField { .. } | Self::Ambiguous { .. } => Kind::InvalidArgument,
            Self::NotFound { .. } => Kind::NotFound,
            Self::NameTaken { .. } => Kind::AlreadyExists,
            Self::WrongState { .. }
            | Self::BeyondVm { .. }
            | Self::NodeUnfit { .. }
            | Self::FileDaemonLost { .. }
            | Self::DirectVolume { .. }
            | Self::AgentVersion { .. } => Kind::FailedPrecondition,
            Self::Unsupported { .. } => Kind::Unimplemented,
            Self::NoSlot { .. } | Self::NoUser { .. } => Kind::ResourceExhausted,
            Self::BootTimeout { .. } | Self::ExecTimeout { .. } => Kind::DeadlineExceeded,
            Self::FileDaemonEnded { .. }
            | Self::BootFailed { .. }
            | Self::Stopped { .. }
            | Self::PlaceEnded { .. } => Kind::Unavailable,
            Self::Agent { kind, .. } => *kind,
            Self::Io { source, .. } => io_kind(source),
            Self::Network(error) => network_kind(error),
            Self::Vmm { .. }
            | Self::VmmWire { .. }
            | Self::Store { .. }
            | Self::Record { .. }
            | Self::Spec { .. } => Kind::Internal,
        }
    }

    pub(crate) fn io(doing: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source }
    }
}

fn io_kind(error: &std::io::Error) -> Kind {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    match error.kind() {
        StorageFull | QuotaExceeded => Kind::ResourceExhausted,
        _ => Kind::Internal,
    }
}

fn network_kind(error: &NetworkError) -> Kind {
    /// CNI specification, "Error": try again later.
    const LATER: u64 = 11;
    match error {
        NetworkError::NoConfiguration { .. }
        | NetworkError::Configuration { .. }
        | NetworkError::PluginMissing { .. }
        | NetworkError::Interfaces { .. } => Kind::FailedPrecondition,
        NetworkError::PluginTimeout { .. } => Kind::DeadlineExceeded,
        NetworkError::PluginRefused { code: LATER, .. } | NetworkError::Cancelled { .. } => {
            Kind::Unavailable
        }
        NetworkError::Field { .. } => Kind::InvalidArgument,
        NetworkError::PluginRefused { .. } | NetworkError::PluginFailed { .. } => Kind::Internal,
        NetworkError::Io { source, .. } => io_kind(source),
    }
}
