//! The Kubernetes container runtime interface (CRI), v1 as of Kubernetes 1.36, generated from
//! `runtime.proto`.

/// Package `runtime.v1`.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod v1 {
    tonic::include_proto!("runtime.v1");
}

#[cfg(test)]
mod tests;
