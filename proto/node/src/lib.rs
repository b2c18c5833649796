//! What Bulkhead's own command line needs beyond the CRI, generated from `node.proto`.

/// Package `bulkhead.node.v1`.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod v1 {
    tonic::include_proto!("bulkhead.node.v1");
}
