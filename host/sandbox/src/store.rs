//! The state store: what the daemon intends and knows, kept across its own death.
//!
//! One redb table for pods and one for containers, id to record as JSON. A write returns when it is
//! durable. It holds intent before action, so that a daemon started after a kill finds everything
//! that its predecessor may have made.

use crate::record::{ContainerRecord, SandboxRecord};
use crate::{Result, SandboxError};
use ipnet::IpNet;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::{Serialize, de::DeserializeOwned};
use std::path::Path;
use std::sync::Arc;

type Table = TableDefinition<'static, &'static str, &'static [u8]>;
/// A table, the key, and the new value or its removal.
type Change = (Table, String, Option<Vec<u8>>);
const SANDBOXES: Table = TableDefinition::new("sandboxes");
const CONTAINERS: Table = TableDefinition::new("containers");
/// The OCI specifications of containers. Apart, for they are large and seldom wanted.
const SPECS: Table = TableDefinition::new("specs");
/// What the kubelet has told the node, by name.
const SETTINGS: Table = TableDefinition::new("settings");
const POD_CIDRS: &str = "pod-cidrs";
/// Pages kept in memory, bytes. What is read often is in the daemon's own maps, and the rest in the node's page cache.
const CACHE: usize = 256 << 10;

/// The state store; clones share it.
#[derive(Clone)]
pub(crate) struct Store {
    database: Arc<Database>,
}

impl Store {
    /// Opens the store, making it if there is none. Blocks.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let failed = |error: redb::Error| SandboxError::Store {
            doing: "open",
            source: error,
        };
        let database = Database::builder()
            .set_cache_size(CACHE)
            .create(path)
            .map_err(|error| failed(error.into()))?;
        let transaction = database
            .begin_write()
            .map_err(|error| failed(error.into()))?;
        for table in [SANDBOXES, CONTAINERS, SPECS, SETTINGS] {
            transaction
                .open_table(table)
                .map_err(|error| failed(error.into()))?;
        }
        transaction.commit().map_err(|error| failed(error.into()))?;
        Ok(Self {
            database: Arc::new(database),
        })
    }

    pub(crate) async fn put_sandbox(&self, record: &SandboxRecord) -> Result<()> {
        self.put(SANDBOXES, &record.id, record).await
    }

    pub(crate) async fn put_container(&self, record: &ContainerRecord) -> Result<()> {
        self.put(CONTAINERS, &record.id, record).await
    }

    /// Remembers a new container together with its OCI specification (JSON).
    pub(crate) async fn put_new_container(
        &self,
        record: &ContainerRecord,
        spec: Vec<u8>,
    ) -> Result<()> {
        let id = record.id.clone();
        let changes = vec![
            (CONTAINERS, id.clone(), Some(json(&id, record)?)),
            (SPECS, id, Some(spec)),
        ];
        self.write("write", changes).await
    }

    /// The OCI specification of a container; nothing if none is remembered.
    pub(crate) async fn spec(&self, id: &str) -> Result<Option<Vec<u8>>> {
        let (database, id) = (Arc::clone(&self.database), id.to_owned());
        blocking(move || {
            let read = || -> Result<Option<Vec<u8>>, redb::Error> {
                let table = database.begin_read()?.open_table(SPECS)?;
                Ok(table.get(id.as_str())?.map(|bytes| bytes.value().to_vec()))
            };
            let failed = |source| SandboxError::Store {
                doing: "read",
                source,
            };
            read().map_err(failed)
        })
        .await
    }

    pub(crate) async fn delete_sandbox(&self, id: &str) -> Result<()> {
        self.write("delete", vec![(SANDBOXES, id.to_owned(), None)])
            .await
    }

    pub(crate) async fn delete_container(&self, id: &str) -> Result<()> {
        let changes = vec![
            (CONTAINERS, id.to_owned(), None),
            (SPECS, id.to_owned(), None),
        ];
        self.write("delete", changes).await
    }

    pub(crate) async fn put_pod_cidrs(&self, cidrs: &[IpNet]) -> Result<()> {
        self.put(SETTINGS, POD_CIDRS, cidrs).await
    }

    /// The pods' networks as they were told last. Blocks.
    pub(crate) fn pod_cidrs(&self) -> Result<Vec<IpNet>> {
        let mut all: Vec<Vec<IpNet>> = self.all(SETTINGS)?;
        Ok(all.pop().unwrap_or_default())
    }

    /// Every pod that is remembered. Blocks.
    pub(crate) fn sandboxes(&self) -> Result<Vec<SandboxRecord>> {
        self.all(SANDBOXES)
    }

    /// Every container that is remembered. Blocks.
    pub(crate) fn containers(&self) -> Result<Vec<ContainerRecord>> {
        self.all(CONTAINERS)
    }

    async fn put(&self, table: Table, id: &str, record: &(impl Serialize + ?Sized)) -> Result<()> {
        let change = (table, id.to_owned(), Some(json(id, record)?));
        self.write("write", vec![change]).await
    }

    /// Sets or removes values, all or none.
    async fn write(&self, doing: &'static str, changes: Vec<Change>) -> Result<()> {
        let database = Arc::clone(&self.database);
        blocking(move || {
            let change = || -> Result<(), redb::Error> {
                let transaction = database.begin_write()?;
                for (table, id, value) in &changes {
                    let mut table = transaction.open_table(*table)?;
                    match value {
                        Some(bytes) => table.insert(id.as_str(), bytes.as_slice())?,
                        None => table.remove(id.as_str())?,
                    };
                }
                Ok(transaction.commit()?)
            };
            change().map_err(|source| SandboxError::Store { doing, source })
        })
        .await
    }

    fn all<T: DeserializeOwned>(&self, table: Table) -> Result<Vec<T>> {
        let read = || -> Result<Vec<(String, Vec<u8>)>, redb::Error> {
            let transaction = self.database.begin_read()?;
            let table = transaction.open_table(table)?;
            let mut rows = Vec::new();
            for row in table.iter()? {
                let (id, bytes) = row?;
                rows.push((id.value().to_owned(), bytes.value().to_vec()));
            }
            Ok(rows)
        };
        let rows = read().map_err(|source| SandboxError::Store {
            doing: "read",
            source,
        })?;
        rows.into_iter()
            .map(|(id, bytes)| {
                serde_json::from_slice(&bytes).map_err(|source| SandboxError::Record { id, source })
            })
            .collect()
    }
}

fn json(id: &str, record: &(impl Serialize + ?Sized)) -> Result<Vec<u8>> {
    serde_json::to_vec(record).map_err(|source| SandboxError::Record {
        id: id.to_owned(),
        source,
    })
}

/// Runs what blocks where it may.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(SandboxError::io("finish a blocking task")(error.into())),
    }
}

#[cfg(test)]
mod tests;
