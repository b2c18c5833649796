//! A registry in this process: real sockets, canned answers, misbehaviour on demand.

use crate::digest::Digest;
use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

/// What the registry does with a path.
#[derive(Clone, Default)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    pub(crate) manner: Manner,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Manner {
    #[default]
    Decent,
    /// Closes the connection after so many bytes of the body.
    Cut(usize),
    /// Sends nothing more after so many bytes of the body.
    Stall(usize),
    /// Waits in the middle of the body until the gate is opened.
    Gate,
    /// Sends the body without its length.
    Endless,
}

#[derive(Default)]
struct Shared {
    answers: Mutex<HashMap<String, Answer>>,
    /// Requests with their `Authorization` header.
    requests: Mutex<Vec<(String, String)>>,
    /// Requires this header.
    authorization: Mutex<Option<(String, String)>>,
    gate: (Mutex<bool>, Condvar),
}

/// A running registry; its threads end with the process.
#[derive(Clone)]
pub(crate) struct Server {
    shared: Arc<Shared>,
    pub(crate) port: u16,
}

impl Server {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared::default());
        let server = Self {
            shared: Arc::clone(&shared),
            port,
        };
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || serve(&shared, stream.unwrap()));
            }
        });
        server
    }

    pub(crate) fn name(&self, rest: &str) -> String {
        format!("127.0.0.1:{}/{rest}", self.port)
    }

    pub(crate) fn put(&self, path: &str, answer: Answer) {
        self.shared
            .answers
            .lock()
            .unwrap()
            .insert(path.to_owned(), answer);
    }

    pub(crate) fn put_blob(&self, repository: &str, body: &[u8]) -> Digest {
        let digest = Digest::sha256(body);
        self.put(
            &format!("/v2/{repository}/blobs/{digest}"),
            Answer {
                status: 200,
                body: body.to_vec(),
                ..Answer::default()
            },
        );
        digest
    }

    pub(crate) fn put_manifest(&self, repository: &str, tag: &str, body: &[u8]) -> Digest {
        let digest = Digest::sha256(body);
        for reference in [tag, digest.as_str()] {
            self.put(
                &format!("/v2/{repository}/manifests/{reference}"),
                Answer {
                    status: 200,
                    body: body.to_vec(),
                    ..Answer::default()
                },
            );
        }
        digest
    }

    /// Changes how everything whose path contains a text is answered.
    pub(crate) fn alter(&self, part: &str, change: impl Fn(&mut Answer)) {
        let mut answers = self.shared.answers.lock().unwrap();
        let mut count = 0;
        for (_, answer) in answers.iter_mut().filter(|(path, _)| path.contains(part)) {
            change(answer);
            count += 1;
        }
        assert!(count > 0, "nothing contains {part}");
    }

    /// Wants this `Authorization`, else answers 401 with this challenge.
    pub(crate) fn protect(&self, authorization: &str, challenge: &str) {
        *self.shared.authorization.lock().unwrap() =
            Some((authorization.to_owned(), challenge.to_owned()));
    }

    pub(crate) fn open_gate(&self) {
        *self.shared.gate.0.lock().unwrap() = true;
        self.shared.gate.1.notify_all();
    }

    pub(crate) fn requests(&self, part: &str) -> Vec<(String, String)> {
        let requests = self.shared.requests.lock().unwrap();
        requests
            .iter()
            .filter(|(path, _)| path.contains(part))
            .cloned()
            .collect()
    }
}

fn serve(shared: &Shared, stream: TcpStream) {
    let mut reader = BufReader::new(stream);
    let (mut request, mut authorization, mut length) = (String::new(), String::new(), 0);
    if reader.read_line(&mut request).unwrap_or(0) == 0 {
        return;
    }
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 || line == "\r\n" {
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
    let target = request.split(' ').nth(1).unwrap_or_default().to_owned();
    let seen = format!("{target} {}", String::from_utf8_lossy(&body))
        .trim()
        .to_owned();
    shared
        .requests
        .lock()
        .unwrap()
        .push((seen, authorization.clone()));
    let wanted = shared.authorization.lock().unwrap().clone();
    let path = target.split('?').next().unwrap_or_default();
    let answer = match wanted {
        Some((wanted, challenge)) if wanted != authorization && path.starts_with("/v2/") => {
            Answer {
                status: 401,
                headers: vec![("WWW-Authenticate".to_owned(), challenge)],
                ..Answer::default()
            }
        }
        _ => shared
            .answers
            .lock()
            .unwrap()
            .get(path)
            .cloned()
            .unwrap_or(Answer {
                status: 404,
                ..Answer::default()
            }),
    };
    // A client that has seen enough closes the connection.
    let _ = reply(shared, reader.into_inner(), &answer);
}

fn reply(shared: &Shared, mut stream: TcpStream, answer: &Answer) -> std::io::Result<()> {
    let mut head = format!("HTTP/1.1 {} Answer\r\nConnection: close\r\n", answer.status);
    if answer.manner != Manner::Endless {
        head += &format!("Content-Length: {}\r\n", answer.body.len());
    }
    for (key, value) in &answer.headers {
        head += &format!("{key}: {value}\r\n");
    }
    stream.write_all((head + "\r\n").as_bytes())?;
    match answer.manner {
        Manner::Decent | Manner::Endless => stream.write_all(&answer.body),
        Manner::Cut(count) => stream.write_all(&answer.body[..count]),
        Manner::Stall(count) => {
            stream.write_all(&answer.body[..count])?;
            std::thread::sleep(Duration::from_secs(60));
            Ok(())
        }
        Manner::Gate => {
            let half = answer.body.len() / 2;
            stream.write_all(&answer.body[..half])?;
            let mut open = shared.gate.0.lock().unwrap();
            while !*open {
                open = shared.gate.1.wait(open).unwrap();
            }
            drop(open);
            stream.write_all(&answer.body[half..])
        }
    }
}
