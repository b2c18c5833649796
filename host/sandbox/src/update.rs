//! New limits of a container that is there already.

use crate::container::Container;
use crate::record::ContainerState;
use crate::{Result, SandboxError, limits, spec};
use bulkhead_agent_api::agent::UpdateContainerRequest;
use bulkhead_cri::v1::LinuxContainerResources;

impl Container {
    /// Sets what an update says and leaves the rest as it is; when anything is refused, nothing
    /// changes. That of a container that has exited is remembered only, as by containerd.
    ///
    /// # Errors
    /// [`SandboxError::InvalidField`], [`SandboxError::BeyondVm`], the agent's refusal with the name of the cgroup's file.
    pub async fn update_resources(&self, update: LinuxContainerResources) -> Result<()> {
        spec::check_resources("linux", &update)?;
        if let Some(size) = self.sandbox.record().size {
            limits::check_within("linux", &update, size)?;
        }
        let _turn = self.updates.lock().await;
        let old = self.resources().unwrap_or_default();
        let new = spec::merge_resources(old.clone(), update);
        // The two together can be wrong though each is right.
        spec::check_resources("linux", &new)?;
        let running = match self.state() {
            ContainerState::Exited(_) => None,
            _ => Some(self.sandbox.running()?),
        };
        if let Some(running) = &running {
            running.agent.update(&self.request(&new)?).await?;
        }
        self.set_resources(new);
        let stored = self.store().await;
        if stored.is_err() {
            self.set_resources(old.clone());
            if let Some(running) = &running
                && let Err(error) = running.agent.update(&self.request(&old)?).await
            {
                tracing::error!(container = self.id(), %error, "New limits hold that are not stored");
            }
        }
        stored
    }

    fn request(&self, resources: &LinuxContainerResources) -> Result<UpdateContainerRequest> {
        let mut request = UpdateContainerRequest::new();
        request.container_id = self.id().to_owned();
        let document = spec::oci_resources(resources);
        request.resources = serde_json::to_vec(&document).map_err(|source| SandboxError::Spec {
            container: self.id().to_owned(),
            source,
        })?;
        Ok(request)
    }
}
