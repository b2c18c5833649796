//! Where connections and the processes they are meant for find each other.

use crate::sys::fd::Fd;
use crate::{Error, Result};
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// How many connections may wait for the call that names them.
const MAX_PARKED: usize = 256;
/// How many ids of finished streams are remembered, so that a late connection ends at once.
const MAX_FINISHED: usize = 1024;

/// All streams by id.
#[derive(Debug, Default)]
pub struct Hub(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    claimed: HashMap<u64, UnboundedSender<Fd>>,
    parked: HashMap<u64, Fd>,
    finished: VecDeque<u64>,
}

/// The process's end of a stream: gives its connections. When it is dropped the stream is over.
#[derive(Debug)]
pub struct Port {
    id: u64,
    connections: UnboundedReceiver<Fd>,
    hub: Arc<Hub>,
}

impl Hub {
    /// Takes an id for a process.
    pub fn claim(self: &Arc<Self>, id: u64) -> Result<Port> {
        let (sender, connections) = unbounded_channel();
        let mut table = self.table();
        if id == 0 || table.claimed.contains_key(&id) || table.finished.contains(&id) {
            return Err(Error::Exists(format!("Stream {id} is already in use")));
        }
        if let Some(connection) = table.parked.remove(&id) {
            // The receiver is right here.
            let _ = sender.send(connection);
        }
        table.claimed.insert(id, sender);
        drop(table);
        Ok(Port {
            id,
            connections,
            hub: self.clone(),
        })
    }

    /// Brings a connection to its stream, now or when the id is claimed. One for a finished stream
    /// is closed.
    pub fn connect(&self, id: u64, connection: Fd) {
        let mut table = self.table();
        if id == 0 || table.finished.contains(&id) {
            return;
        }
        if let Some(sender) = table.claimed.get(&id) {
            // A port that goes away at this moment closes the connection.
            let _ = sender.send(connection);
        } else if table.parked.len() < MAX_PARKED || table.parked.contains_key(&id) {
            table.parked.insert(id, connection);
        } else {
            tracing::warn!("Too many connections wait for their stream: closing that of {id}");
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Port {
    /// The newest connection that has not been taken yet, as soon as there is one.
    pub async fn connection(&mut self) -> Fd {
        let mut newest = match self.connections.recv().await {
            Some(connection) => connection,
            // The sender is in the hub until this port is dropped.
            None => std::future::pending().await,
        };
        while let Ok(newer) = self.connections.try_recv() {
            newest = newer;
        }
        newest
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        let mut table = self.hub.table();
        table.claimed.remove(&self.id);
        if table.finished.len() == MAX_FINISHED {
            table.finished.pop_front();
        }
        table.finished.push_back(self.id);
    }
}
