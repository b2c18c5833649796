//! Entry points for the fuzz targets: what a client controls byte by byte. Each panics when something
//! does not hold.

use crate::spdy::{Decoder, Deflater, Frame, Inflater};
use crate::websocket::{Input, Protocol, encode};
use bytes::{Bytes, BytesMut};

/// Frames: the same however the bytes are cut, and what is decoded encodes to what decodes to it.
pub fn frames(bytes: &[u8], cut: usize) {
    let whole = decode(&[bytes]);
    let (head, rest) = bytes.split_at(cut.min(bytes.len()));
    let parts = decode(&[head, rest]);
    assert_eq!(join(&whole.0), join(&parts.0));
    assert_eq!(whole.1, parts.1);
    let mut again = BytesMut::new();
    whole.0.iter().for_each(|frame| frame.encode(&mut again));
    let (frames, broken) = decode(&[&again]);
    assert!(!broken);
    assert_eq!(join(&whole.0), join(&frames));
}

fn decode(parts: &[&[u8]]) -> (Vec<Frame>, bool) {
    let (mut decoder, mut input, mut frames) = (Decoder::default(), BytesMut::new(), Vec::new());
    for part in parts {
        input.extend_from_slice(part);
        loop {
            match decoder.decode(&mut input) {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(_) => return (frames, true),
            }
        }
    }
    (frames, false)
}

/// Pieces of data put together, for where they are cut is not a frame's property.
fn join(frames: &[Frame]) -> Vec<Frame> {
    let mut joined: Vec<Frame> = Vec::new();
    for frame in frames {
        if let Frame::Data { id, fin, bytes } = frame
            && let Some(Frame::Data {
                id: old_id,
                fin: old_fin,
                bytes: old,
            }) = joined.last_mut()
            && id == old_id
            && !*old_fin
        {
            *old = [&old[..], &bytes[..]].concat().into();
            *old_fin = *fin;
            continue;
        }
        joined.push(frame.clone());
    }
    joined
}

/// Header blocks of one connection.
pub fn headers(blocks: &[Vec<u8>]) {
    let mut inflater = Inflater::new();
    for block in blocks {
        let Ok(headers) = inflater.read(block) else {
            return;
        };
        assert!(headers.get("streamtype").len() <= 16 * 1024);
    }
}

/// Pairs survive both contexts.
pub fn header_pairs(blocks: &[Vec<(String, String)>]) {
    let (mut deflater, mut inflater) = (Deflater::new(), Inflater::new());
    for pairs in blocks {
        let texts: Vec<_> = pairs
            .iter()
            .map(|(name, value)| (&name[..], &value[..]))
            .collect();
        let Ok(headers) = inflater.read(&deflater.write(&texts)) else {
            let size: usize = texts
                .iter()
                .map(|(name, value)| name.len() + value.len() + 8)
                .sum();
            assert!(size + 4 >= 16 * 1024 || texts.len() > 64, "{texts:?}");
            return;
        };
        if let [(name, value), ..] = texts[..] {
            let first = value.split('\0').next().unwrap_or_default();
            assert_eq!(headers.get(&name.to_ascii_lowercase()), first);
        }
    }
}

/// What a peer does to a connection's streams.
#[derive(Debug)]
pub enum Step {
    /// The peer opens a stream.
    Open(u8, bool),
    /// The peer sends so many bytes.
    Data(u8, bool, u16),
    /// Somebody reads.
    Read(u8),
    /// Somebody sends.
    Send(u8, u16),
    /// The peer has room.
    Window(u8, u32),
    /// The peer's initial window.
    Initial(u32),
    /// The peer cuts a stream off.
    Reset(u8),
    /// The reader is dropped.
    DropReader(u8),
    /// The writer is dropped.
    DropWriter(u8),
}

/// Streams and windows: nothing is held beyond its caps.
pub fn table(steps: &[Step]) {
    crate::spdy::exercise(steps);
}

/// Messages with channels, in each subprotocol.
pub fn channels(message: &[u8]) {
    for (_, protocol) in Protocol::COMMAND {
        if let Some(Input::Data(channel, content)) =
            protocol.decode(Bytes::copy_from_slice(message))
        {
            let again = protocol.decode(encode(protocol, channel, &content));
            // In version 5 the byte 255 is not a channel.
            assert_eq!(again, Some(Input::Data(channel, content)));
        }
    }
}

/// The resize stream.
pub fn resize(parts: &[Vec<u8>]) {
    let mut sizes = crate::resize::Sizes::default();
    for part in parts {
        if sizes.push(part).is_err() {
            return;
        }
    }
}
