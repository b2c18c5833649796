//! The state store: what the daemon intends and knows, kept across its own death.
//!
//! One redb table for pods and one for containers, id to record as JSON. A write returns when it is
//! durable. It holds intent before action, so that a daemon started after a kill finds everything
//! that its predecessor may have made.

use crate::record::{ContainerRecord, SandboxRecord};
use crate::{Result, SandboxError};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::{Serialize, de::DeserializeOwned};
use std::path::Path;
use std::sync::Arc;

type Table = TableDefinition<'static, &'static str, &'static [u8]>;
const SANDBOXES: Table = TableDefinition::new("sandboxes");
const CONTAINERS: Table = TableDefinition::new("containers");

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
        let database = Database::create(path).map_err(|error| failed(error.into()))?;
        let transaction = database
            .begin_write()
            .map_err(|error| failed(error.into()))?;
        for table in [SANDBOXES, CONTAINERS] {
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

    pub(crate) async fn delete_sandbox(&self, id: &str) -> Result<()> {
        self.delete(SANDBOXES, id).await
    }

    pub(crate) async fn delete_container(&self, id: &str) -> Result<()> {
        self.delete(CONTAINERS, id).await
    }

    /// Every pod that is remembered. Blocks.
    pub(crate) fn sandboxes(&self) -> Result<Vec<SandboxRecord>> {
        self.all(SANDBOXES)
    }

    /// Every container that is remembered. Blocks.
    pub(crate) fn containers(&self) -> Result<Vec<ContainerRecord>> {
        self.all(CONTAINERS)
    }

    async fn put(&self, table: Table, id: &str, record: &impl Serialize) -> Result<()> {
        let bytes = serde_json::to_vec(record).map_err(|source| SandboxError::Record {
            id: id.to_owned(),
            source,
        })?;
        self.write(table, "write", id, Some(bytes)).await
    }

    async fn delete(&self, table: Table, id: &str) -> Result<()> {
        self.write(table, "delete", id, None).await
    }

    async fn write(
        &self,
        table: Table,
        doing: &'static str,
        id: &str,
        value: Option<Vec<u8>>,
    ) -> Result<()> {
        let database = Arc::clone(&self.database);
        let id = id.to_owned();
        blocking(move || {
            let change = || -> Result<(), redb::Error> {
                let transaction = database.begin_write()?;
                {
                    let mut table = transaction.open_table(table)?;
                    match &value {
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
