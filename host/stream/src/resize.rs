//! The resize stream: JSON objects one after the other, `{"Width":80,"Height":24}`.

use crate::backend::Size;
use serde::Deserialize;

/// The longest that an object can be.
const MAX_PENDING: usize = 1024;

#[derive(Deserialize)]
struct Message {
    #[serde(rename = "Width", alias = "width")]
    width: u16,
    #[serde(rename = "Height", alias = "height")]
    height: u16,
}

/// Finds sizes in a stream of bytes.
#[derive(Debug, Default)]
pub(crate) struct Sizes {
    pending: Vec<u8>,
}

impl Sizes {
    /// Takes bytes and gives the newest size that is complete; those before it do not matter. `Err`
    /// when this is no such stream.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<Option<Size>, ()> {
        self.pending.extend_from_slice(bytes);
        let mut newest = None;
        let mut messages =
            serde_json::Deserializer::from_slice(&self.pending).into_iter::<Message>();
        let mut used = 0;
        loop {
            match messages.next() {
                Some(Ok(Message { width, height })) => {
                    newest = Some(Size { width, height });
                    used = messages.byte_offset();
                }
                Some(Err(error)) if !error.is_eof() => return Err(()),
                _ => break,
            }
        }
        self.pending.drain(..used);
        match self.pending.len() > MAX_PENDING {
            true => Err(()),
            false => Ok(newest),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{MAX_PENDING, Size, Sizes};

    #[test]
    fn sizes_are_found_however_they_are_cut() {
        let text = b"{\"Width\":80,\"Height\":24}\n{\"Width\":132,\"Height\":43}\n";
        for cut in 0..text.len() {
            let mut sizes = Sizes::default();
            let (head, rest) = text.split_at(cut);
            sizes.push(head).unwrap();
            let newest = sizes.push(rest).unwrap();
            if cut < text.len() - 1 {
                assert_eq!(
                    newest,
                    Some(Size {
                        width: 132,
                        height: 43
                    }),
                    "{cut}"
                );
            }
            assert!(sizes.pending.len() <= 1, "{cut}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(
            Sizes::default()
                .push(b"{\"Width\":70000,\"Height\":1}")
                .is_err()
        );
        assert!(Sizes::default().push(b"hello").is_err());
        assert!(Sizes::default().push(&[b' '; MAX_PENDING + 1]).is_err());
        assert!(Sizes::default().push(b"{\"Width\":1,").unwrap().is_none());
    }
}
