//! Byte streams between processes and the host.
//!
//! The daemon chooses the id of a stream, names it in a control call and connects; in either order
//! ([`hub`]). A [`pump`] copies between the connection and a pipe or a terminal. A connection that
//! breaks can be made again: the newest one counts, and output is held back, in the pipe, until it
//! is there. [`server`] takes the connections. [`forward`] joins a stream with a port of the pod.

pub mod forward;
pub mod hub;
pub mod pump;
pub mod server;

pub use forward::Forwards;
pub use hub::{Hub, Port};

#[cfg(test)]
mod tests;
