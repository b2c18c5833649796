//! A SPDY/3.1 client. Like Kubernetes' own it has no flow control unless it is asked for. It shares no
//! code with the server: header blocks are zlib streams of stored blocks, which need no compressor.

use super::{Answer, request};
use anyhow::{Context, Result, bail};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};

/// zlib's head for a stream with a preset dictionary, and the Adler-32 of SPDY's dictionary.
const ZLIB_HEAD: [u8; 6] = [0x78, 0xbb, 0xe3, 0xc6, 0xa7, 0xc2];

/// What the server sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A stream was accepted.
    Reply(u32),
    /// Bytes of a stream.
    Data(u32, Vec<u8>),
    /// The end of a stream.
    Fin(u32),
    /// A stream was cut off, and the reason.
    Reset(u32, u32),
    /// Ids and values.
    Settings(Vec<(u32, u32)>),
    /// The server wants to know whether we are there.
    Ping(u32),
    /// The server goes, and the reason.
    GoAway(u32),
    /// Room for a stream, or for the session (0).
    WindowUpdate(u32, u32),
}

/// The direction to the server.
pub struct Writer<T> {
    output: WriteHalf<T>,
    next: u32,
    begun: bool,
}

/// The direction from the server.
pub struct Reader<T>(ReadHalf<T>);

/// Upgrades a streaming URL to SPDY.
///
/// # Errors
/// The server does not want to; its answer is in the error.
pub async fn connect(
    url: &str,
    versions: &[&str],
) -> Result<(
    Writer<tokio::net::TcpStream>,
    Reader<tokio::net::TcpStream>,
    Answer,
)> {
    let mut fields = "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\n".to_owned();
    for version in versions {
        fields.push_str(&format!("X-Stream-Protocol-Version: {version}\r\n"));
    }
    let (socket, answer) = request(url, "POST", &fields).await?;
    if answer.status != 101 {
        bail!("{}", answer.head);
    }
    let (writer, reader) = over(socket);
    Ok((writer, reader, answer))
}

/// Speaks SPDY over a connection.
pub fn over<T: AsyncRead + AsyncWrite>(io: T) -> (Writer<T>, Reader<T>) {
    let (input, output) = tokio::io::split(io);
    let writer = Writer {
        output,
        next: 1,
        begun: false,
    };
    (writer, Reader(input))
}

impl<T: AsyncRead + AsyncWrite> Writer<T> {
    /// Opens a stream and tells its number.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn open(&mut self, headers: &[(&str, &str)]) -> Result<u32> {
        let id = self.next;
        self.next += 2;
        let mut plain = (headers.len() as u32).to_be_bytes().to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            plain.extend((text.len() as u32).to_be_bytes());
            plain.extend(text.as_bytes());
        }
        let mut content = id.to_be_bytes().to_vec();
        content.extend([0; 6]);
        if !std::mem::replace(&mut self.begun, true) {
            content.extend(ZLIB_HEAD);
        }
        // A stored block of RFC 1951, not the last one; it ends at a byte.
        let length = plain.len() as u16;
        content.push(0);
        content.extend(length.to_le_bytes());
        content.extend((!length).to_le_bytes());
        content.extend(plain);
        // An empty one, as every compressor flushes: Go's decompressor hands nothing out before.
        content.extend([0, 0, 0, 0xff, 0xff]);
        self.control(1, &content).await?;
        Ok(id)
    }

    /// Sends a control frame.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn control(&mut self, kind: u16, content: &[u8]) -> Result<()> {
        let mut frame = vec![0x80, 3];
        frame.extend(kind.to_be_bytes());
        frame.extend((content.len() as u32).to_be_bytes());
        frame.extend(content);
        Ok(self.output.write_all(&frame).await?)
    }

    /// Sends a control frame of two numbers: RST_STREAM (3), GOAWAY (7), WINDOW_UPDATE (9).
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn pair(&mut self, kind: u16, first: u32, second: u32) -> Result<()> {
        let content = [first.to_be_bytes(), second.to_be_bytes()].concat();
        self.control(kind, &content).await
    }

    /// Sends bytes.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn send(&mut self, id: u32, bytes: &[u8]) -> Result<()> {
        self.data(id, bytes, 0).await
    }

    /// Ends our direction of a stream.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn finish(&mut self, id: u32) -> Result<()> {
        self.data(id, b"", 1).await
    }

    async fn data(&mut self, id: u32, bytes: &[u8], flags: u32) -> Result<()> {
        self.output.write_u32(id).await?;
        self.output
            .write_u32(flags << 24 | bytes.len() as u32)
            .await?;
        self.output.write_all(bytes).await?;
        Ok(self.output.flush().await?)
    }
}

impl<T: AsyncRead + AsyncWrite> Reader<T> {
    /// The next event; `None` when the server has closed the connection.
    ///
    /// # Errors
    /// The connection broke, or the server sent what no server sends.
    pub async fn next(&mut self) -> Result<Option<Event>> {
        let mut head = [0; 8];
        match self.0.read_exact(&mut head).await {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
            result => result?,
        };
        let first = u32::from_be_bytes(head[..4].try_into()?);
        let second = u32::from_be_bytes(head[4..].try_into()?);
        let mut content = vec![0; (second & 0x00ff_ffff) as usize];
        self.0.read_exact(&mut content).await?;
        if first & 0x8000_0000 == 0 {
            return Ok(Some(match (second >> 24, content.is_empty()) {
                (1, true) => Event::Fin(first),
                (0, _) => Event::Data(first, content),
                _ => bail!("Data with FIN: this server sends FIN alone"),
            }));
        }
        let number = |index: usize| -> Result<u32> {
            let bytes = content
                .get(4 * index..4 * index + 4)
                .context("A frame is short")?;
            Ok(u32::from_be_bytes(bytes.try_into()?))
        };
        Ok(Some(match first & 0xffff {
            2 => Event::Reply(number(0)?),
            3 => Event::Reset(number(0)?, number(1)?),
            4 => {
                let pair = |index| Ok((number(1 + 2 * index)?, number(2 + 2 * index)?));
                let pairs: Result<_> = (0..number(0)? as usize).map(pair).collect();
                Event::Settings(pairs?)
            }
            6 => Event::Ping(number(0)?),
            7 => Event::GoAway(number(1)?),
            9 => Event::WindowUpdate(number(0)?, number(1)?),
            kind => bail!("The server sent a control frame of type {kind}"),
        }))
    }
}

/// A remote command over SPDY: its streams' numbers.
pub struct Command<T> {
    /// To the server.
    pub writer: Writer<T>,
    /// From the server.
    pub reader: Reader<T>,
    /// The error stream.
    pub error: u32,
    /// 0 without.
    pub stdin: u32,
    /// 0 without.
    pub stdout: u32,
    /// 0 without.
    pub stderr: u32,
    /// 0 without.
    pub resize: u32,
}

/// What a command printed, and the error stream.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Output {
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
    /// What the error stream said.
    pub error: Vec<u8>,
}

impl Command<tokio::net::TcpStream> {
    /// Upgrades an exec or attach URL with version 4 and opens these streams, in the order of kubectl.
    ///
    /// # Errors
    /// The server does not want to.
    pub async fn connect(url: &str, streams: &[&str]) -> Result<Self> {
        let (writer, reader, answer) = connect(url, &["v4.channel.k8s.io"]).await?;
        anyhow::ensure!(answer.field("x-stream-protocol-version") == ["v4.channel.k8s.io"]);
        Self::open(writer, reader, streams).await
    }
}

impl<T: AsyncRead + AsyncWrite> Command<T> {
    /// Opens the streams over a connection.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn open(writer: Writer<T>, reader: Reader<T>, streams: &[&str]) -> Result<Self> {
        let mut command = Self {
            writer,
            reader,
            error: 0,
            stdin: 0,
            stdout: 0,
            stderr: 0,
            resize: 0,
        };
        for stream in ["error"].iter().chain(streams) {
            let id = command.writer.open(&[("streamtype", stream)]).await?;
            *match *stream {
                "error" => &mut command.error,
                "stdin" => &mut command.stdin,
                "stdout" => &mut command.stdout,
                "stderr" => &mut command.stderr,
                _ => &mut command.resize,
            } = id;
        }
        Ok(command)
    }

    /// Reads until the server says good-bye.
    ///
    /// # Errors
    /// It breaks off instead, or cuts a stream off.
    pub async fn output(&mut self) -> Result<Output> {
        let mut output = Output::default();
        loop {
            match self
                .reader
                .next()
                .await?
                .context("The connection broke off")?
            {
                Event::Data(id, bytes) if id == self.stdout => output.stdout.extend(bytes),
                Event::Data(id, bytes) if id == self.stderr => output.stderr.extend(bytes),
                Event::Data(id, bytes) if id == self.error => output.error.extend(bytes),
                Event::Reset(id, reason) => bail!("Stream {id} was reset: {reason}"),
                Event::GoAway(0) => return Ok(output),
                Event::GoAway(reason) => bail!("The server went away: {reason}"),
                _ => {}
            }
        }
    }

    /// Reads standard output until it has some text.
    ///
    /// # Errors
    /// It ends without.
    pub async fn until(&mut self, text: &str) -> Result<String> {
        let mut seen = String::new();
        while !seen.contains(text) {
            match self
                .reader
                .next()
                .await?
                .context("The connection broke off")?
            {
                Event::Data(id, bytes) if id == self.stdout => {
                    seen.push_str(&String::from_utf8_lossy(&bytes));
                }
                Event::Data(id, bytes) => {
                    bail!(
                        "Stream {id}: {}; seen {seen:?}",
                        String::from_utf8_lossy(&bytes)
                    );
                }
                Event::Reset(id, reason) => bail!("Stream {id} was reset: {reason}"),
                Event::GoAway(reason) => bail!("The server went away: {reason}; seen {seen:?}"),
                _ => {}
            }
        }
        Ok(seen)
    }
}
