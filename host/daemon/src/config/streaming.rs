//! The `[streaming]` table.

use anyhow::{Result, bail, ensure};
use bulkhead_stream::{Limits, ServerConfig, TlsFiles};
use serde::{Deserialize, Serialize};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

/// Where exec, attach and port-forward are served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct StreamingConfig {
    /// The address that the server listens on and that its URLs name; port 0 is any free one.
    pub(crate) address: SocketAddr,
    /// The certificate chain, in PEM form; with it the server speaks HTTPS only.
    pub(crate) tls_certificate: Option<PathBuf>,
    /// The certificate's key, in PEM form.
    pub(crate) tls_key: Option<PathBuf>,
}

impl Default for StreamingConfig {
    fn default() -> Self {
        Self {
            address: (Ipv4Addr::LOCALHOST, 0).into(),
            tls_certificate: None,
            tls_key: None,
        }
    }
}

impl StreamingConfig {
    /// As the server takes it.
    pub(crate) fn server(&self) -> Result<ServerConfig> {
        let tls = match (self.tls_certificate.clone(), self.tls_key.clone()) {
            (Some(certificate), Some(key)) => Some(TlsFiles { certificate, key }),
            (None, None) => None,
            _ => bail!(
                "streaming.tls_certificate and streaming.tls_key must be set both or not at all"
            ),
        };
        let ip = self.address.ip();
        ensure!(
            !ip.is_unspecified(),
            "streaming.address is {}; it must be one that clients can connect to",
            self.address
        );
        ensure!(
            ip.is_loopback() || tls.is_some(),
            "streaming.address is {}, which is not of this machine only; set streaming.tls_certificate and streaming.tls_key",
            self.address
        );
        Ok(ServerConfig {
            address: self.address,
            tls,
            limits: Limits::default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::StreamingConfig;

    #[test]
    fn only_loopback_goes_without_tls() {
        let error = |text: &str| {
            let config: StreamingConfig = toml::from_str(text).unwrap();
            format!("{:#}", config.server().unwrap_err())
        };
        assert!(error("address = '0.0.0.0:1'").contains("streaming.address is 0.0.0.0:1"));
        assert!(error("address = '192.0.2.1:1'").contains("streaming.tls_certificate"));
        assert!(error("tls_key = '/x'").contains("both"));
        let config: StreamingConfig = toml::from_str("address = '[::1]:10010'").unwrap();
        assert_eq!(config.server().unwrap().address.port(), 10010);
        assert!(StreamingConfig::default().server().unwrap().tls.is_none());
    }
}
