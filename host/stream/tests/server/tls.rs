//! The server with a certificate.

use crate::support::Local;
use bulkhead_stream::{ForwardRequest, Limits, Server, ServerConfig, StreamError, TlsFiles};
use std::process::Stdio;
use std::sync::Arc;
use tokio::process::Command;

#[tokio::test]
async fn https_only_with_a_certificate() {
    let directory = tempfile::tempdir().unwrap();
    let own = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let files = TlsFiles {
        certificate: directory.path().join("cert.pem"),
        key: directory.path().join("key.pem"),
    };
    let config = |files: &TlsFiles| ServerConfig {
        address: "127.0.0.1:0".parse().unwrap(),
        tls: Some(files.clone()),
        limits: Limits::default(),
    };
    std::fs::write(&files.certificate, own.cert.pem()).unwrap();
    let missing = Server::start(config(&files), Arc::new(Local))
        .await
        .err()
        .unwrap();
    assert!(
        matches!(missing, StreamError::Tls { what: "key", .. }),
        "{missing}"
    );
    std::fs::write(&files.key, own.signing_key.serialize_pem()).unwrap();
    let server = Server::start(config(&files), Arc::new(Local))
        .await
        .unwrap();
    let request = ForwardRequest {
        pod: "pod".to_owned(),
        ports: vec![80],
    };
    let url = server.urls().forward(request).unwrap();
    assert!(url.starts_with("https://127.0.0.1:"), "{url}");
    // A client of others', which has its own idea of TLS and WebSocket.
    let curl = async |url: &str| {
        let certificate = files.certificate.to_str().unwrap();
        let head = [
            "-sS",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            "--max-time",
            "60",
        ];
        let fields = [
            "-H",
            "Connection: Upgrade",
            "-H",
            "Upgrade: h2c",
            "--http1.1",
        ];
        let mut command = Command::new("curl");
        command
            .args(head)
            .args(fields)
            .args(["--cacert", certificate, url]);
        let output = command.stdin(Stdio::null()).output().await.unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(
        curl(&url.replace("https", "http")).await,
        "000",
        "no plain HTTP"
    );
    assert_eq!(
        curl(&url).await,
        "400",
        "the token is known, the upgrade is not"
    );
    assert_eq!(curl(&url).await, "404");
}
