//! What can go wrong with a pod's network.

use std::path::PathBuf;
use std::time::Duration;

/// What can go wrong with a pod's network.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// There is no CNI configuration.
    #[error(
        "There is no CNI configuration in {directories}; install a network plugin, or set network.mode to \"none\""
    )]
    NoConfiguration {
        /// Where it was looked for.
        directories: String,
    },
    /// A CNI configuration cannot be used.
    #[error("The CNI configuration {} cannot be used: {problem}", path.display())]
    Configuration {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A plugin's program is not there.
    #[error("The CNI plugin {plugin:?} is in none of {directories}")]
    PluginMissing {
        /// Its type.
        plugin: String,
        /// Where it was looked for.
        directories: String,
    },
    /// A plugin said no, and why.
    #[error("The CNI plugin {plugin:?} refused {command}: {message} (code {code})")]
    PluginRefused {
        /// Its type.
        plugin: String,
        /// ADD, DEL, ...
        command: &'static str,
        /// CNI specification, "Error".
        code: u64,
        /// Its words.
        message: String,
    },
    /// A plugin ended badly or said something that cannot be understood.
    #[error("The CNI plugin {plugin:?} failed at {command}: {problem}")]
    PluginFailed {
        /// Its type.
        plugin: String,
        /// ADD, DEL, ...
        command: &'static str,
        /// How it ended, what is wrong with its output, its last words.
        problem: String,
    },
    /// A plugin ran too long and was killed.
    #[error("The CNI plugin {plugin:?} did not finish {command} within {limit:?} and was killed")]
    PluginTimeout {
        /// Its type.
        plugin: String,
        /// ADD, DEL, ...
        command: &'static str,
        /// network.plugin_timeout_seconds.
        limit: Duration,
    },
    /// The pod's interfaces are not such that a VM can have them.
    #[error("The network of pod sandbox {pod} cannot be given to a VM: {problem}")]
    Interfaces {
        /// The pod sandbox.
        pod: String,
        /// What is wrong.
        problem: String,
    },
    /// The pod is not wanted any more.
    #[error("Pod sandbox {pod} was stopped while its network was made")]
    Cancelled {
        /// The pod sandbox.
        pod: String,
    },
    /// A value of the request cannot be handed to a plugin.
    #[error("{field}: {problem}")]
    Field {
        /// The field's path in the request.
        field: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// The system refused.
    #[error("Cannot {doing}")]
    Io {
        /// What was tried, with names.
        doing: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
}

impl NetworkError {
    pub(crate) fn io(doing: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source }
    }
}
