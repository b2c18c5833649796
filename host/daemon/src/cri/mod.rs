//! The CRI's two services on top of the pods and the image store.

mod convert;
mod filter;
mod images;
mod metrics;
mod paging;
mod runtime;
mod stats;
mod status;
mod streaming;

pub(crate) use images::{ImageApi, pull_phase};
pub(crate) use runtime::RuntimeApi;
pub(crate) use status::{image_status, sandbox_status};

#[cfg(test)]
mod tests;
