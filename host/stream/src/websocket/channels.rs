//! What the messages say.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use tokio_tungstenite::tungstenite::Message;

/// In version 5: the channel that follows has ended.
const CLOSE: u8 = 255;

/// A subprotocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Protocol {
    /// Messages are text: the channel as a digit, then base64.
    pub(crate) base64: bool,
    /// The error channel carries a `metav1.Status` as JSON.
    pub(crate) json: bool,
    /// The client can end a channel.
    pub(crate) close: bool,
}

impl Protocol {
    /// The names for exec and attach, newest first. A client that names none gets the oldest.
    pub(crate) const COMMAND: [(&'static str, Self); 5] = [
        ("v5.channel.k8s.io", Self::new(false, true, true)),
        ("v4.channel.k8s.io", Self::new(false, true, false)),
        ("v4.base64.channel.k8s.io", Self::new(true, true, false)),
        ("base64.channel.k8s.io", Self::new(true, false, false)),
        ("channel.k8s.io", Self::new(false, false, false)),
    ];
    /// The names for port-forward with channels.
    pub(crate) const FORWARD: [(&'static str, Self); 2] = [
        ("v4.channel.k8s.io", Self::new(false, true, false)),
        ("v4.base64.channel.k8s.io", Self::new(true, true, false)),
    ];

    const fn new(base64: bool, json: bool, close: bool) -> Self {
        Self {
            base64,
            json,
            close,
        }
    }

    /// Reads a message.
    pub(crate) fn decode(self, message: Bytes) -> Option<Input> {
        let (channel, content) = message.split_first()?;
        if self.close && *channel == CLOSE {
            return content.first().map(|channel| Input::End(*channel));
        }
        if !self.base64 {
            return Some(Input::Data(*channel, message.slice(1..)));
        }
        let channel = char::from(*channel).to_digit(10)?;
        let content = STANDARD.decode(content).ok()?;
        Some(Input::Data(u8::try_from(channel).ok()?, content.into()))
    }

    /// Makes a message.
    pub(crate) fn encode(self, channel: u8, content: &[u8]) -> Message {
        if self.base64 {
            // Ten channels have a digit; port-forward's ports are limited accordingly.
            let digit = char::from_digit(channel.into(), 10).unwrap_or('0');
            let mut text = String::from(digit);
            STANDARD.encode_string(content, &mut text);
            return Message::text(text);
        }
        let mut bytes = Vec::with_capacity(1 + content.len());
        bytes.push(channel);
        bytes.extend_from_slice(content);
        Message::binary(bytes)
    }
}

/// What a client's message says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Input {
    /// Bytes for a channel.
    Data(u8, Bytes),
    /// A channel has ended.
    End(u8),
}

#[cfg(fuzzing)]
pub(crate) fn encode(protocol: Protocol, channel: u8, content: &[u8]) -> Bytes {
    protocol.encode(channel, content).into_data()
}

#[cfg(test)]
mod tests {
    use super::{Input, Protocol};
    use bytes::Bytes;

    #[test]
    fn messages_say_what_they_should_in_every_protocol() {
        for (name, protocol) in Protocol::COMMAND {
            for content in [&b""[..], b"x", b"\0\xff\x01"] {
                let message = protocol.encode(2, content).into_data();
                let data = Input::Data(2, Bytes::copy_from_slice(content));
                assert_eq!(protocol.decode(message), Some(data), "{name}");
            }
            assert_eq!(protocol.decode(Bytes::new()), None, "{name}");
        }
        let [(_, v5), (_, v4), (_, base64), ..] = Protocol::COMMAND;
        assert_eq!(
            v5.decode(Bytes::from_static(&[255, 0])),
            Some(Input::End(0))
        );
        assert_eq!(v5.decode(Bytes::from_static(&[255])), None);
        let plain = Input::Data(255, Bytes::from_static(&[0]));
        assert_eq!(v4.decode(Bytes::from_static(&[255, 0])), Some(plain));
        let hello = Input::Data(0, Bytes::from_static(b"hello"));
        assert_eq!(base64.decode(Bytes::from_static(b"0aGVsbG8=")), Some(hello));
        assert_eq!(base64.decode(Bytes::from_static(b"0a")), None);
        assert_eq!(base64.decode(Bytes::from_static(b"x")), None);
    }
}
