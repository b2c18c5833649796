//! A token server whose tokens docker-registry takes (the Distribution project's "Token
//! Authentication Implementation").

use super::support::{Site, run};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

struct Shared {
    /// PEM file of the key that signs.
    key: String,
    /// The certificate of the key, in Base64.
    certificate: String,
    requests: AtomicUsize,
}

/// A running token server for the user `me` with the password `secret`, or the identity token `me`.
/// Its thread ends with the process.
pub(crate) struct Server {
    shared: Arc<Shared>,
    pub(crate) port: u16,
}

impl Server {
    /// Signs with `tokens.key` of the site.
    pub(crate) fn start(site: &Site) -> Self {
        let pem = std::fs::read_to_string(site.path("tokens.crt")).unwrap();
        let lines = pem.lines().filter(|line| !line.starts_with("---"));
        let shared = Arc::new(Shared {
            key: site.text("tokens.key"),
            certificate: lines.collect(),
            requests: AtomicUsize::new(0),
        });
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = Self {
            shared: Arc::clone(&shared),
            port,
        };
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                serve(&shared, stream.unwrap());
            }
        });
        server
    }

    /// How many tokens were asked for with the right credentials.
    pub(crate) fn requests(&self) -> usize {
        self.shared.requests.load(Ordering::Relaxed)
    }

    pub(crate) fn token(&self, scope: &str) -> String {
        self.shared.token(scope)
    }
}

impl Shared {
    /// A signed token (RFC 7519) for `repository:NAME:ACTION,…`.
    fn token(&self, scope: &str) -> String {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_secs();
        let mut parts = scope.split(':');
        let (kind, name) = (parts.next().unwrap(), parts.next().unwrap());
        let actions: Vec<&str> = parts.next().unwrap().split(',').collect();
        let header = serde_json::json!({"typ": "JWT", "alg": "ES256", "x5c": [self.certificate]});
        let claims = serde_json::json!({
            "iss": "tests", "sub": "me", "aud": "s", "jti": now.to_string(),
            "iat": now, "nbf": now - 5, "exp": now + 300,
            "access": [{"type": kind, "name": name, "actions": actions}],
        });
        let encode = |value: &serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let text = format!("{}.{}", encode(&header), encode(&claims));
        format!(
            "{text}.{}",
            URL_SAFE_NO_PAD.encode(self.sign(text.as_bytes()))
        )
    }

    /// ES256: the two numbers of the signature one after the other (RFC 7518, 3.4).
    fn sign(&self, bytes: &[u8]) -> Vec<u8> {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
        std::fs::write(path("text"), bytes).unwrap();
        let (text, signature) = (path("text"), path("signature"));
        run(
            "openssl",
            &[
                "dgst", "-sha256", "-sign", &self.key, "-out", &signature, &text,
            ],
        );
        let der = std::fs::read(signature).unwrap();
        let mut rest = &der[2..];
        let mut numbers = Vec::new();
        for _ in 0..2 {
            let length = usize::from(rest[1]);
            let number = &rest[2..2 + length];
            let number = number.strip_prefix(&[0]).unwrap_or(number);
            numbers.extend(std::iter::repeat_n(0, 32 - number.len()));
            numbers.extend_from_slice(number);
            rest = &rest[2 + length..];
        }
        numbers
    }

    /// The answer to a request with this query or form and this `Authorization` header.
    fn answer(&self, fields: &str, authorization: &str) -> Option<String> {
        let field = |name: &str| {
            let mut pairs = fields.split('&').filter_map(|pair| pair.split_once('='));
            let (_, value) = pairs.find(|(key, _)| *key == name)?;
            Some(
                value
                    .replace("%3A", ":")
                    .replace("%2F", "/")
                    .replace("%2C", ","),
            )
        };
        let password = format!("Basic {}", STANDARD.encode("me:secret"));
        let refreshed = field("grant_type").as_deref() == Some("refresh_token")
            && field("refresh_token").as_deref() == Some("me");
        if authorization != password && !refreshed {
            return None;
        }
        assert_eq!(field("service").as_deref(), Some("s"));
        self.requests.fetch_add(1, Ordering::Relaxed);
        let token = self.token(&field("scope").unwrap());
        Some(serde_json::json!({"access_token": token, "expires_in": 300}).to_string())
    }
}

fn serve(shared: &Shared, stream: TcpStream) {
    let mut reader = BufReader::new(stream);
    let (mut first, mut authorization, mut length) = (String::new(), String::new(), 0);
    reader.read_line(&mut first).unwrap();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap() == 0 || line == "\r\n" {
            break;
        }
        let (key, value) = line.trim().split_once(':').unwrap();
        match key.to_ascii_lowercase().as_str() {
            "authorization" => authorization = value.trim().to_owned(),
            "content-length" => length = value.trim().parse().unwrap(),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let target = first.split(' ').nth(1).unwrap();
    let fields = match target.split_once('?') {
        Some((_, query)) => query.to_owned(),
        None => String::from_utf8(body).unwrap(),
    };
    let (status, body) = match shared.answer(&fields, &authorization) {
        Some(body) => (200, body),
        None => (
            401,
            r#"{"details":"incorrect username or password"}"#.to_owned(),
        ),
    };
    let head = format!(
        "HTTP/1.1 {status} Answer\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let _ = reader.into_inner().write_all((head + &body).as_bytes());
}
