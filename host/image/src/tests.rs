//! Tests of the whole store against a registry in this process.

mod crash;
mod damage;
mod disk;
pub(crate) mod fixture;
mod names;
mod pulls;
pub(crate) mod server;
pub(crate) mod tarball;
