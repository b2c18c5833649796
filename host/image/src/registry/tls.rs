//! TLS towards registries: the system's authorities and those of the settings, our certificates,
//! and the check left out where the settings say so.

use super::hosts::{TlsFiles, read};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore};
use rustls::{DistinguishedName, SignatureScheme};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The system's certificate authorities. A node without any can still use registries whose
/// authority is in their settings.
pub(super) fn system_roots() -> RootCertStore {
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::warn!(%error, "Some certificates of the system can not be read");
    }
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    roots
}

/// The settings for a host's connections. Blocks.
pub(super) fn client_config(
    roots: &RootCertStore,
    files: &TlsFiles,
) -> Result<ClientConfig, (PathBuf, String)> {
    let provider = Arc::new(ring::default_provider());
    let mut own = Vec::new();
    for path in &files.ca {
        own.extend(certificates(path)?);
    }
    let verifier: Arc<dyn ServerCertVerifier> = if files.skip_verify == Some(true) {
        Arc::new(Unchecked(provider.clone()))
    } else {
        let mut roots = roots.clone();
        // A certificate that can not be a root can still be the server's own.
        roots.add_parsable_certificates(own.iter().cloned());
        Checked::build(roots, own, &provider)
    };
    let mut keys = Vec::new();
    for (certificate, key) in &files.client {
        keys.push(Arc::new(client_key(
            &provider,
            certificate,
            key.as_deref(),
        )?));
    }
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| (PathBuf::new(), error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    Ok(match keys.is_empty() {
        true => config.with_no_client_auth(),
        false => config.with_client_cert_resolver(Arc::new(ClientKeys(keys))),
    })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, (PathBuf, String)> {
    let bad = |reason: String| (path.to_owned(), reason);
    let bytes = read(path).map_err(|error| bad(error.to_string()))?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let found = found.map_err(|error| bad(format!("it is no PEM file: {error}")))?;
    match found.is_empty() {
        true => Err(bad("it has no certificate in PEM form".to_owned())),
        false => Ok(found),
    }
}

fn client_key(
    provider: &CryptoProvider,
    certificate: &Path,
    key: Option<&Path>,
) -> Result<CertifiedKey, (PathBuf, String)> {
    let chain = certificates(certificate)?;
    let path = key.unwrap_or(certificate);
    let bad = |reason: String| (path.to_owned(), reason);
    let bytes = read(path).map_err(|error| bad(error.to_string()))?;
    let key = PrivateKeyDer::from_pem_slice(&bytes)
        .map_err(|error| bad(format!("it has no private key in PEM form: {error}")))?;
    CertifiedKey::from_der(chain, key, provider)
        .map_err(|error| bad(format!("its private key can not be used: {error}")))
}

/// Checks a certificate as everybody does, and takes the very certificates that the settings name
/// as authorities also when they are a server's own: what `openssl req -x509` makes is both, and
/// containerd takes it.
#[derive(Debug)]
struct Checked {
    inner: Arc<WebPkiServerVerifier>,
    own: Vec<CertificateDer<'static>>,
}

impl Checked {
    fn build(
        roots: RootCertStore,
        own: Vec<CertificateDer<'static>>,
        provider: &Arc<CryptoProvider>,
    ) -> Arc<dyn ServerCertVerifier> {
        let builder =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
        match builder.build() {
            Ok(inner) => Arc::new(Self { inner, own }),
            // Without a single authority nothing can be trusted; plain HTTP still works.
            Err(_) => Arc::new(NoRoots(Arc::clone(provider))),
        }
    }
}

impl ServerCertVerifier for Checked {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self.inner.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        );
        match verified {
            // The validity has been checked before this error can come.
            Err(error) if is_authority(&error) && self.own.contains(end_entity) => {
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
                Ok(ServerCertVerified::assertion())
            }
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// The server showed a certificate that is an authority's.
fn is_authority(error: &Error) -> bool {
    match error {
        Error::InvalidCertificate(CertificateError::Other(other)) => matches!(
            other.0.downcast_ref::<webpki::Error>(),
            Some(webpki::Error::CaUsedAsEndEntity)
        ),
        _ => false,
    }
}

/// Takes every certificate (`skip_verify`); the server must still have its key.
#[derive(Debug)]
struct Unchecked(Arc<CryptoProvider>);

impl ServerCertVerifier for Unchecked {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Takes no certificate, as there is no authority.
#[derive(Debug)]
struct NoRoots(Arc<CryptoProvider>);

impl ServerCertVerifier for NoRoots {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Err(Error::General(
            "this node trusts no certificate authority; install ca-certificates".to_owned(),
        ))
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::InvalidCertificate(CertificateError::UnknownIssuer))
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::InvalidCertificate(CertificateError::UnknownIssuer))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Our certificates for a host: the first one that an authority of the server's list issued.
#[derive(Debug)]
struct ClientKeys(Vec<Arc<CertifiedKey>>);

impl ResolvesClientCert for ClientKeys {
    fn resolve(
        &self,
        authorities: &[&[u8]],
        schemes: &[SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        let usable = || {
            let keys = self.0.iter();
            keys.filter(|key| key.key.choose_scheme(schemes).is_some())
        };
        let wanted = |key: &&Arc<CertifiedKey>| {
            key.cert.iter().any(|certificate| {
                webpki::EndEntityCert::try_from(certificate).is_ok_and(|certificate| {
                    let issuer = DistinguishedName::in_sequence(certificate.issuer());
                    authorities.contains(&issuer.as_ref())
                })
            })
        };
        // A list that fits none may be incomplete: servers behind a private authority often send
        // one of the system's.
        let mut keys = usable();
        keys.find(wanted).or_else(|| usable().next()).cloned()
    }

    fn has_certs(&self) -> bool {
        !self.0.is_empty()
    }
}
