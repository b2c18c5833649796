//! Figures of running containers, by one call for each pod.

use crate::container::Container;
use crate::record::{ContainerRecord, ContainerState};
use crate::{Result, SandboxError, Sandboxes};
use bulkhead_agent_api::agent::ContainerStats;
use std::collections::BTreeMap;
use std::sync::Arc;

impl Sandboxes {
    /// The figures of those of these containers that run. The pods are asked all at once; one that
    /// does not answer is left out, for the others are asked for too.
    pub async fn stats(
        &self,
        containers: Vec<Arc<Container>>,
    ) -> Vec<(ContainerRecord, ContainerStats)> {
        let mut pods: BTreeMap<String, Vec<Arc<Container>>> = BTreeMap::new();
        for container in containers {
            if matches!(container.state(), ContainerState::Running { .. }) {
                let pod = container.sandbox.id();
                pods.entry(pod).or_default().push(container);
            }
        }
        let mut calls = tokio::task::JoinSet::new();
        for (pod, containers) in pods {
            calls.spawn(async move {
                let result = of_pod(&containers).await;
                result.unwrap_or_else(|error| {
                    tracing::warn!(pod, %error, "The pod has no figures");
                    Vec::new()
                })
            });
        }
        calls.join_all().await.into_iter().flatten().collect()
    }
}

impl Container {
    /// Its figures.
    ///
    /// # Errors
    /// [`SandboxError::WrongState`] unless it runs, those of the agent.
    pub async fn stats(self: &Arc<Self>) -> Result<(ContainerRecord, ContainerStats)> {
        if !matches!(self.state(), ContainerState::Running { .. }) {
            return Err(self.wrong_state("only a running container has figures"));
        }
        let found = of_pod(&[Arc::clone(self)]).await?;
        found.into_iter().next().ok_or(SandboxError::NotFound {
            what: "container",
            id: self.id().to_owned(),
        })
    }
}

/// Figures of containers of one pod. What the agent says of others is dropped.
async fn of_pod(containers: &[Arc<Container>]) -> Result<Vec<(ContainerRecord, ContainerStats)>> {
    let Some(first) = containers.first() else {
        return Ok(Vec::new());
    };
    let running = first.sandbox.running()?;
    let ids = containers.iter().map(|one| one.id().to_owned()).collect();
    let answer = running.agent.stats(ids).await?;
    let mut figures: BTreeMap<String, ContainerStats> = answer
        .containers
        .into_iter()
        .map(|stats| (stats.container_id.clone(), stats))
        .collect();
    Ok(containers
        .iter()
        .filter_map(|one| Some((one.record(), figures.remove(one.id())?)))
        .collect())
}
