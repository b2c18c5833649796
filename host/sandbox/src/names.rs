//! Names of pods and containers: each belongs to one at a time.

use crate::{Result, SandboxError};
use bulkhead_cri::v1;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Names in use. Clones share them.
#[derive(Clone, Default)]
pub(crate) struct Names {
    owners: Arc<Mutex<HashMap<String, String>>>,
}

impl Names {
    /// Takes a name for an id until [`Names::release`].
    pub(crate) fn reserve(&self, what: &'static str, name: &str, id: &str) -> Result<()> {
        let mut owners = self.owners.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(owner) = owners.get(name) {
            return Err(SandboxError::NameTaken {
                what,
                name: name.to_owned(),
                id: owner.clone(),
            });
        }
        owners.insert(name.to_owned(), id.to_owned());
        Ok(())
    }

    /// Gives a name back; nothing happens if it belongs to another id by now.
    pub(crate) fn release(&self, name: &str, id: &str) {
        let mut owners = self.owners.lock().unwrap_or_else(PoisonError::into_inner);
        if owners.get(name).is_some_and(|owner| owner == id) {
            owners.remove(name);
        }
    }
}

/// The name that a pod sandbox reserves.
pub(crate) fn of_sandbox(config: &v1::PodSandboxConfig) -> Result<String> {
    let metadata = config
        .metadata
        .as_ref()
        .ok_or_else(|| missing("config.metadata"))?;
    for (field, value) in [
        ("config.metadata.name", &metadata.name),
        ("config.metadata.namespace", &metadata.namespace),
        ("config.metadata.uid", &metadata.uid),
    ] {
        if value.is_empty() {
            return Err(missing(field));
        }
    }
    let v1::PodSandboxMetadata {
        name,
        uid,
        namespace,
        attempt,
    } = metadata;
    Ok(format!("{name}_{namespace}_{uid}_{attempt}"))
}

/// The name that a container reserves.
pub(crate) fn of_container(config: &v1::ContainerConfig, sandbox_id: &str) -> Result<String> {
    let metadata = config
        .metadata
        .as_ref()
        .ok_or_else(|| missing("config.metadata"))?;
    if metadata.name.is_empty() {
        return Err(missing("config.metadata.name"));
    }
    Ok(format!(
        "{}_{sandbox_id}_{}",
        metadata.name, metadata.attempt
    ))
}

fn missing(field: &'static str) -> SandboxError {
    SandboxError::InvalidField {
        field,
        problem: "must be set".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::Names;

    #[test]
    fn of_many_at_once_one_gets_the_name() {
        let names = Names::default();
        for round in 0..50 {
            let name = format!("pod-{round}");
            let barrier = std::sync::Barrier::new(8);
            let won: Vec<String> = std::thread::scope(|scope| {
                let tries: Vec<_> = (0..8)
                    .map(|number| {
                        let (names, name, barrier) = (names.clone(), &name, &barrier);
                        scope.spawn(move || {
                            let id = number.to_string();
                            barrier.wait();
                            names.reserve("pod sandbox", name, &id).ok().map(|()| id)
                        })
                    })
                    .collect();
                let tries = tries.into_iter();
                tries.filter_map(|one| one.join().unwrap()).collect()
            });
            assert_eq!(won.len(), 1, "{won:?}");
            names.release(&name, "somebody else");
            names.reserve("pod sandbox", &name, "x").unwrap_err();
            names.release(&name, &won[0]);
            names.reserve("pod sandbox", &name, "x").unwrap();
        }
    }
}
