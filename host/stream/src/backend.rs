//! What the server serves: processes and ports, by whoever runs them.

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};

/// Something to read from. Its end is end of file.
pub type Reader = Box<dyn AsyncRead + Send + Unpin>;
/// Something to write to. Shutting it down is end of file for the other side.
pub type Writer = Box<dyn AsyncWrite + Send + Unpin>;
/// Sets the size of a terminal.
pub type Resize = Box<dyn Fn(Size) -> BoxFuture<'static, ()> + Send + Sync>;
/// The end of a process: its exit code, or why there is none.
pub type Exit = BoxFuture<'static, Result<i32, String>>;

/// Which streams a client wants.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wants {
    /// It sends standard input.
    pub stdin: bool,
    /// It gets standard output, or the terminal.
    pub stdout: bool,
    /// It gets standard error; never with a terminal.
    pub stderr: bool,
    /// The process has a terminal.
    pub tty: bool,
}

/// A new process in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecRequest {
    /// The container's id.
    pub container: String,
    /// Program and arguments.
    pub command: Vec<String>,
    /// The client's streams.
    pub wants: Wants,
}

/// The streams of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachRequest {
    /// The container's id.
    pub container: String,
    /// The client's streams.
    pub wants: Wants,
}

/// Connections to ports of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForwardRequest {
    /// The pod sandbox's id.
    pub pod: String,
    /// The ports of the older WebSocket protocol, which has no other way to name them.
    pub ports: Vec<u16>,
}

/// Columns and rows of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

/// A process that a session is about. To drop it is to leave it: a process of exec is killed, one that
/// was attached to goes on.
pub struct Process {
    /// Its standard input, if it was asked for.
    pub stdin: Option<Writer>,
    /// Its output, if it was asked for.
    pub stdout: Option<Reader>,
    /// Its standard error, if it was asked for.
    pub stderr: Option<Reader>,
    /// Sets the size of its terminal.
    pub resize: Resize,
    /// Comes when it has ended, or when the session is over for another reason: of a container that was
    /// attached to, when it has taken all of the client's input, if that is the way to detach.
    pub exit: Exit,
}

/// Whoever runs processes and reaches ports. Errors are sentences for the client.
#[async_trait]
pub trait Backend: Send + Sync + 'static {
    /// Starts a process.
    async fn exec(&self, request: &ExecRequest) -> Result<Process, String>;

    /// Joins a container's streams.
    async fn attach(&self, request: &AttachRequest) -> Result<Process, String>;

    /// Connects to a port of a pod.
    async fn forward(&self, pod: &str, port: u16) -> Result<(Reader, Writer), String>;
}
