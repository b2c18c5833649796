//! Connections to ports of a pod, through its agent.

use crate::Result;
use crate::id::new_stream_id;
use crate::sandbox::Sandbox;
use tokio::net::UnixStream;

impl Sandbox {
    /// Connects to a TCP port at the pod's loopback address. Half-close goes through.
    ///
    /// # Errors
    /// [`SandboxError::WrongState`](crate::SandboxError::WrongState) unless the pod is ready; the agent's refusal, FAILED_PRECONDITION
    /// if nothing listens on the port.
    pub async fn forward(&self, port: u16) -> Result<UnixStream> {
        let running = self.running()?;
        let stream = new_stream_id()?;
        running.agent.forward(port, stream).await?;
        running.agent.stream(stream).await
    }

    /// Whether a port could be connected to, as far as the pod's state tells.
    ///
    /// # Errors
    /// [`SandboxError::WrongState`](crate::SandboxError::WrongState) unless the pod is ready.
    pub fn check_ready(&self) -> Result<()> {
        self.running().map(drop)
    }
}
