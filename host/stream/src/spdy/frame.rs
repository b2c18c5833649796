//! Frames of SPDY/3.1 (draft 3.1, 2.2 and 2.6), without I/O.
//!
//! A data frame can be 16 MiB long: its bytes are given out in pieces as they arrive. Control frames
//! are short and taken whole.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// The version in control frames.
const VERSION: u16 = 3;
/// The longest control frame, without its head.
const MAX_CONTROL: usize = 32 * 1024;
/// The largest piece of a data frame, and the largest data frame that is sent.
pub(crate) const MAX_PIECE: usize = 32 * 1024;
/// Bytes before a frame's content.
const HEAD: usize = 8;
const FIN: u8 = 1;
const ID_MASK: u32 = 0x7fff_ffff;

/// Reasons in RST_STREAM (2.6.3).
pub(crate) mod reset {
    pub(crate) const REFUSED_STREAM: u32 = 3;
    pub(crate) const CANCEL: u32 = 5;
    pub(crate) const FLOW_CONTROL_ERROR: u32 = 7;
    pub(crate) const STREAM_ALREADY_CLOSED: u32 = 9;
}

/// Ids in SETTINGS (2.6.4).
pub(crate) mod setting {
    pub(crate) const MAX_CONCURRENT_STREAMS: u32 = 4;
    pub(crate) const INITIAL_WINDOW_SIZE: u32 = 7;
}

/// A frame, or a piece of a data frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Frame {
    SynStream {
        id: u32,
        fin: bool,
        block: Bytes,
    },
    SynReply {
        id: u32,
        fin: bool,
        block: Bytes,
    },
    RstStream {
        id: u32,
        reason: u32,
    },
    /// Ids and values.
    Settings(Vec<(u32, u32)>),
    Ping(u32),
    /// The last stream that the sender has accepted, and why it goes: 0 is nothing wrong.
    GoAway {
        last: u32,
        reason: u32,
    },
    Headers {
        id: u32,
        fin: bool,
        block: Bytes,
    },
    WindowUpdate {
        id: u32,
        delta: u32,
    },
    /// `fin` is set in the last piece only.
    Data {
        id: u32,
        fin: bool,
        bytes: Bytes,
    },
}

/// A connection that can not be understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("A control frame has version {0}; this is SPDY/3.1, which has 3")]
    Version(u16),
    #[error("A control frame is {0} bytes long; {MAX_CONTROL} are allowed")]
    TooLong(usize),
    #[error("A control frame of type {0} does not have the length that its type has")]
    Length(u16),
}

/// Finds frames in a stream of bytes.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    /// The data frame that is under way: its stream, whether it is the last one, what is missing.
    data: Option<(u32, bool, usize)>,
}

impl Decoder {
    /// The next frame; `None` when it has not arrived as a whole.
    pub(crate) fn decode(&mut self, input: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
        loop {
            if let Some((id, last, missing)) = self.data {
                if input.is_empty() && missing > 0 {
                    return Ok(None);
                }
                let bytes = input
                    .split_to(input.len().min(missing).min(MAX_PIECE))
                    .freeze();
                let missing = missing - bytes.len();
                self.data = (missing > 0).then_some((id, last, missing));
                let fin = last && missing == 0;
                return Ok(Some(Frame::Data { id, fin, bytes }));
            }
            let Some((head, rest)) = input.split_first_chunk::<HEAD>() else {
                return Ok(None);
            };
            let [a, b, c, d, flags, x, y, z] = *head;
            let length = u32::from_be_bytes([0, x, y, z]) as usize;
            if a & 0x80 == 0 {
                let id = u32::from_be_bytes([a, b, c, d]);
                input.advance(HEAD);
                self.data = Some((id, flags & FIN != 0, length));
                continue;
            }
            let version = u16::from_be_bytes([a & 0x7f, b]);
            if version != VERSION {
                return Err(FrameError::Version(version));
            }
            if length > MAX_CONTROL {
                return Err(FrameError::TooLong(length));
            }
            if rest.len() < length {
                input.reserve(HEAD + length);
                return Ok(None);
            }
            input.advance(HEAD);
            let kind = u16::from_be_bytes([c, d]);
            let content = input.split_to(length).freeze();
            let frame = control(kind, flags & FIN != 0, content);
            if let Some(frame) = frame.ok_or(FrameError::Length(kind))? {
                return Ok(Some(frame));
            }
        }
    }
}

/// Reads a control frame's content; the inner `None` is a type that is unknown, and skipped (2.2.1).
fn control(kind: u16, fin: bool, mut content: Bytes) -> Option<Option<Frame>> {
    let mut number = || content.try_get_u32().ok();
    let frame = match kind {
        1 => {
            let id = number()? & ID_MASK;
            // The associated stream; then priority and slot.
            number()?;
            content.try_get_u16().ok()?;
            let block = content;
            return Some(Some(Frame::SynStream { id, fin, block }));
        }
        2 | 8 => {
            let id = number()? & ID_MASK;
            let block = content;
            return Some(Some(match kind {
                2 => Frame::SynReply { id, fin, block },
                _ => Frame::Headers { id, fin, block },
            }));
        }
        3 => Frame::RstStream {
            id: number()? & ID_MASK,
            reason: number()?,
        },
        4 => {
            let count = number()?;
            let mut settings = Vec::new();
            for _ in 0..count {
                // The upper byte has flags, for settings that are to be kept: none is.
                settings.push((number()? & 0x00ff_ffff, number()?));
            }
            Frame::Settings(settings)
        }
        6 => Frame::Ping(number()?),
        7 => Frame::GoAway {
            last: number()? & ID_MASK,
            reason: number()?,
        },
        9 => Frame::WindowUpdate {
            id: number()? & ID_MASK,
            delta: number()? & ID_MASK,
        },
        _ => return Some(None),
    };
    content.is_empty().then_some(Some(frame))
}

impl Frame {
    /// Appends the frame as it goes over the wire.
    pub(crate) fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::SynStream { id, fin, block } => {
                head(out, 1, *fin, 10 + block.len());
                out.put_u32(*id);
                // No associated stream, priority 0, no slot.
                out.put_bytes(0, 6);
                out.put_slice(block);
            }
            Self::SynReply { id, fin, block } => {
                head(out, 2, *fin, 4 + block.len());
                out.put_u32(*id);
                out.put_slice(block);
            }
            Self::RstStream { id, reason } => pair(out, 3, *id, *reason),
            Self::Settings(settings) => {
                head(out, 4, false, 4 + 8 * settings.len());
                out.put_u32(settings.len() as u32);
                for (id, value) in settings {
                    out.put_u32(*id);
                    out.put_u32(*value);
                }
            }
            Self::Ping(id) => {
                head(out, 6, false, 4);
                out.put_u32(*id);
            }
            Self::GoAway { last, reason } => pair(out, 7, *last, *reason),
            Self::Headers { id, fin, block } => {
                head(out, 8, *fin, 4 + block.len());
                out.put_u32(*id);
                out.put_slice(block);
            }
            Self::WindowUpdate { id, delta } => pair(out, 9, *id, *delta),
            Self::Data { id, fin, bytes } => {
                out.put_u32(*id);
                flags_and_length(out, *fin, bytes.len());
                out.put_slice(bytes);
            }
        }
    }
}

fn head(out: &mut BytesMut, kind: u16, fin: bool, length: usize) {
    out.put_u16(0x8000 | VERSION);
    out.put_u16(kind);
    flags_and_length(out, fin, length);
}

fn flags_and_length(out: &mut BytesMut, fin: bool, length: usize) {
    // What is sent is far below 2^24.
    out.put_u32(u32::from(fin) << 24 | (length as u32 & 0x00ff_ffff));
}

fn pair(out: &mut BytesMut, kind: u16, first: u32, second: u32) {
    head(out, kind, false, 8);
    out.put_u32(first);
    out.put_u32(second);
}

#[cfg(test)]
mod tests {
    use super::{Decoder, Frame, FrameError, MAX_PIECE};
    use bytes::{Bytes, BytesMut};

    fn all() -> Vec<Frame> {
        let block = Bytes::from_static(b"block");
        vec![
            Frame::SynStream {
                id: 1,
                fin: false,
                block: block.clone(),
            },
            Frame::SynReply {
                id: 1,
                fin: true,
                block: block.clone(),
            },
            Frame::RstStream { id: 3, reason: 5 },
            Frame::Settings(vec![(4, 100), (7, 65536)]),
            Frame::Ping(7),
            Frame::GoAway { last: 9, reason: 0 },
            Frame::Headers {
                id: 5,
                fin: true,
                block,
            },
            Frame::WindowUpdate { id: 0, delta: 1 },
            Frame::Data {
                id: 7,
                fin: false,
                bytes: Bytes::from_static(b"data"),
            },
            Frame::Data {
                id: 7,
                fin: true,
                bytes: Bytes::new(),
            },
        ]
    }

    #[test]
    fn frames_are_found_however_they_are_cut() {
        let mut bytes = BytesMut::new();
        all().iter().for_each(|frame| frame.encode(&mut bytes));
        let mut whole = bytes.clone();
        let mut decoder = Decoder::default();
        let mut found = Vec::new();
        while let Some(frame) = decoder.decode(&mut whole).unwrap() {
            found.push(frame);
        }
        assert_eq!(found, all());
        let (mut input, mut decoder, mut found) = (BytesMut::new(), Decoder::default(), Vec::new());
        for byte in &bytes {
            input.extend_from_slice(&[*byte]);
            while let Some(frame) = decoder.decode(&mut input).unwrap() {
                match (found.last_mut(), frame) {
                    // Data comes as soon as it is there.
                    (
                        Some(Frame::Data {
                            bytes: old,
                            fin: false,
                            ..
                        }),
                        Frame::Data {
                            bytes: new,
                            fin: false,
                            ..
                        },
                    ) => *old = [&old[..], &new[..]].concat().into(),
                    (_, frame) => found.push(frame),
                }
            }
        }
        assert_eq!(found, all());
    }

    /// Bytes that moby/spdystream writes for `CreateStream` and `Ping`, and the RFC-like drawing.
    #[test]
    fn the_layout_is_the_specification_s() {
        let mut out = BytesMut::new();
        Frame::Ping(1).encode(&mut out);
        assert_eq!(&out[..], [0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1]);
        out.clear();
        Frame::Data {
            id: 5,
            fin: true,
            bytes: Bytes::from_static(b"ab"),
        }
        .encode(&mut out);
        assert_eq!(&out[..], [0, 0, 0, 5, 1, 0, 0, 2, b'a', b'b']);
        out.clear();
        Frame::WindowUpdate { id: 5, delta: 256 }.encode(&mut out);
        assert_eq!(
            &out[..],
            [0x80, 3, 0, 9, 0, 0, 0, 8, 0, 0, 0, 5, 0, 0, 1, 0]
        );
    }

    #[test]
    fn a_huge_data_frame_comes_in_pieces() {
        let mut input = BytesMut::from(&[0, 0, 0, 1, 1, 0xff, 0xff, 0xff][..]);
        let (mut decoder, mut missing) = (Decoder::default(), 0x00ff_ffff);
        while missing > 0 {
            input.resize(missing.min(50_000), 0);
            while let Some(Frame::Data { bytes, fin, .. }) = decoder.decode(&mut input).unwrap() {
                assert!(bytes.len() <= MAX_PIECE);
                missing -= bytes.len();
                assert_eq!(fin, missing == 0);
                if fin {
                    break;
                }
            }
        }
    }

    #[test]
    fn nonsense_is_refused_and_the_unknown_skipped() {
        let decode = |bytes: &[u8]| Decoder::default().decode(&mut BytesMut::from(bytes));
        assert_eq!(
            decode(b"\x80\x02\0\x01\0\0\0\0"),
            Err(FrameError::Version(2))
        );
        assert_eq!(
            decode(b"\x80\x03\0\x01\0\xff\xff\xff"),
            Err(FrameError::TooLong(0x00ff_ffff))
        );
        assert_eq!(
            decode(b"\x80\x03\0\x06\0\0\0\x01\0"),
            Err(FrameError::Length(6))
        );
        assert_eq!(
            decode(b"\x80\x03\0\x06\0\0\0\x05\0\0\0\x01\0"),
            Err(FrameError::Length(6))
        );
        assert_eq!(
            decode(b"\x80\x03\0\x04\0\0\0\x04\xff\xff\xff\xff"),
            Err(FrameError::Length(4))
        );
        let credential = b"\x80\x03\0\x0a\0\0\0\x01x\x80\x03\0\x06\0\0\0\x04\0\0\0\x09";
        assert_eq!(decode(credential), Ok(Some(Frame::Ping(9))));
    }
}
