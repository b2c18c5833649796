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
    /// Only so many answers are in this manner (and with this status, if it is an error's); those
    /// after them are decent.
    pub(crate) times: Option<usize>,
    /// `Range` is understood.
    pub(crate) ranges: bool,
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
    /// Turns over a bit of the body.
    Corrupt,
    /// Answers with this status and an empty body.
    Status(u16),
}

/// A request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: String,
    /// The target and the body.
    pub(crate) text: String,
    /// Names in lower case.
    pub(crate) headers: HashMap<String, String>,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

#[derive(Default)]
struct Shared {
    answers: Mutex<HashMap<String, Answer>>,
    requests: Mutex<Vec<Seen>>,
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

    /// Answers a path with 200 and a body.
    pub(crate) fn put_at(&self, path: &str, body: &[u8]) {
        let answer = Answer {
            status: 200,
            body: body.to_vec(),
            ..Answer::default()
        };
        self.put(path, answer);
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

    /// The requests whose target or body contains a text, with their `Authorization` header.
    pub(crate) fn requests(&self, part: &str) -> Vec<(String, String)> {
        let pair = |seen: Seen| (seen.text.clone(), seen.header("authorization").to_owned());
        self.seen(part).into_iter().map(pair).collect()
    }

    /// The requests whose target or body contains a text.
    pub(crate) fn seen(&self, part: &str) -> Vec<Seen> {
        let requests = self.shared.requests.lock().unwrap();
        requests
            .iter()
            .filter(|seen| seen.text.contains(part))
            .cloned()
            .collect()
    }

    pub(crate) fn forget_requests(&self) {
        self.shared.requests.lock().unwrap().clear();
    }
}

fn serve(shared: &Shared, stream: TcpStream) {
    let mut first = [0];
    // As Go's server does with a TLS handshake.
    if stream.peek(&mut first).unwrap_or(0) == 1 && first[0] == 0x16 {
        let _ = (&stream).write_all(b"HTTP/1.0 400 Bad Request\r\n\r\n");
        return;
    }
    let mut reader = BufReader::new(stream);
    let (mut request, mut headers) = (String::new(), HashMap::new());
    if reader.read_line(&mut request).unwrap_or(0) == 0 {
        return;
    }
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 || line == "\r\n" {
            break;
        }
        let (key, value) = line.trim().split_once(':').unwrap();
        headers.insert(key.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length");
    let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
    reader.read_exact(&mut body).unwrap();
    let mut words = request.split(' ');
    let method = words.next().unwrap_or_default().to_owned();
    let target = words.next().unwrap_or_default().to_owned();
    let text = format!("{target} {}", String::from_utf8_lossy(&body));
    let seen = Seen {
        method,
        text: text.trim().to_owned(),
        headers,
    };
    shared.requests.lock().unwrap().push(seen.clone());
    let wanted = shared.authorization.lock().unwrap().clone();
    let path = target.split('?').next().unwrap_or_default();
    let answer = match wanted {
        Some((wanted, challenge))
            if wanted != seen.header("authorization") && path.starts_with("/v2/") =>
        {
            Answer {
                status: 401,
                headers: vec![("WWW-Authenticate".to_owned(), challenge)],
                ..Answer::default()
            }
        }
        _ => answer(shared, path),
    };
    // A client that has seen enough closes the connection.
    let _ = reply(shared, reader.into_inner(), &seen, &answer);
}

/// The answer of a path, one of whose times is used up.
fn answer(shared: &Shared, path: &str) -> Answer {
    let mut answers = shared.answers.lock().unwrap();
    let Some(answer) = answers.get_mut(path) else {
        return Answer {
            status: 404,
            ..Answer::default()
        };
    };
    let now = answer.clone();
    match &mut answer.times {
        Some(1) => {
            answer.manner = Manner::Decent;
            answer.times = None;
        }
        Some(times) => *times -= 1,
        None => {}
    }
    now
}

fn reply(
    shared: &Shared,
    mut stream: TcpStream,
    seen: &Seen,
    answer: &Answer,
) -> std::io::Result<()> {
    let mut body = answer.body.clone();
    let (mut status, mut headers) = (answer.status, answer.headers.clone());
    if let Manner::Status(other) = answer.manner {
        (status, body) = (other, Vec::new());
    }
    let range = seen.header("range").strip_prefix("bytes=");
    if let Some(range) = range.filter(|_| answer.ranges && status == 200) {
        let start: usize = range.trim_end_matches('-').parse().unwrap();
        let whole = body.len();
        status = 206;
        headers.push((
            "Content-Range".to_owned(),
            format!("bytes {start}-{}/{whole}", whole - 1),
        ));
        body.drain(..start);
    }
    let mut head = format!("HTTP/1.1 {status} Answer\r\nConnection: close\r\n");
    if answer.manner != Manner::Endless {
        head += &format!("Content-Length: {}\r\n", body.len());
    }
    for (key, value) in &headers {
        head += &format!("{key}: {value}\r\n");
    }
    stream.write_all((head + "\r\n").as_bytes())?;
    if seen.method == "HEAD" {
        return Ok(());
    }
    match answer.manner {
        Manner::Decent | Manner::Endless | Manner::Status(_) => stream.write_all(&body),
        Manner::Cut(count) => stream.write_all(&body[..count.min(body.len())]),
        Manner::Corrupt => {
            let middle = body.len() / 2;
            body[middle] ^= 1;
            stream.write_all(&body)
        }
        Manner::Stall(count) => {
            stream.write_all(&body[..count.min(body.len())])?;
            std::thread::sleep(Duration::from_secs(60));
            Ok(())
        }
        Manner::Gate => {
            let half = body.len() / 2;
            stream.write_all(&body[..half])?;
            let mut open = shared.gate.0.lock().unwrap();
            while !*open {
                open = shared.gate.1.wait(open).unwrap();
            }
            drop(open);
            stream.write_all(&body[half..])
        }
    }
}
