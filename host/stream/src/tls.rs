//! TLS of the streaming server.

use crate::server::TlsFiles;
use crate::{Result, StreamError};
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::path::Path;
use std::sync::Arc;

/// Reads certificate chain and key, in PEM form.
pub(crate) fn load(files: &TlsFiles) -> Result<ServerConfig> {
    let (certificate, key) = (&files.certificate, &files.key);
    let chain: Result<Vec<_>, _> = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect)
        .map_err(|error| wrong("certificate", certificate, error));
    let chain = chain?;
    if chain.is_empty() {
        return Err(wrong(
            "certificate",
            certificate,
            "it has no certificate in PEM form",
        ));
    }
    let secret = PrivateKeyDer::from_pem_file(key).map_err(|error| wrong("key", key, error))?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong("certificate", certificate, error))?
        .with_no_client_auth()
        .with_single_cert(chain, secret)
        .map_err(|error| wrong("key", key, error))?;
    // Connections are upgraded, which HTTP/2 has no way for.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn wrong(what: &'static str, path: &Path, reason: impl std::fmt::Display) -> StreamError {
    StreamError::Tls {
        what,
        path: path.to_owned(),
        reason: reason.to_string(),
    }
}
