//! Messages and attributes: a fixed part, then attributes of type, length and value, each padded to four
//! bytes; a nested attribute has attributes as its value (netlink(7), rtnetlink(7)).

/// `struct nlmsghdr`.
pub(crate) const HEADER: usize = 16;
/// `struct rtattr`.
const ATTRIBUTE: usize = 4;
/// The bits of an attribute's type that are its number (NLA_TYPE_MASK).
const NUMBER: u16 = 0x3fff;

/// A message being written: its fixed part and attributes, without the header.
#[derive(Debug, Clone, Default)]
pub struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// With its fixed part.
    #[must_use]
    pub fn new(fixed: &[u8]) -> Self {
        let mut message = Self {
            bytes: fixed.to_vec(),
        };
        message.pad();
        message
    }

    /// Adds an attribute. One that is too long for its 16-bit length is cut, and refused by the kernel.
    #[must_use]
    pub fn with(mut self, number: u16, value: &[u8]) -> Self {
        let length = u16::try_from(ATTRIBUTE + value.len()).unwrap_or(u16::MAX);
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(number.to_ne_bytes());
        self.bytes
            .extend(value.iter().take(usize::from(length) - ATTRIBUTE));
        self.pad();
        self
    }

    /// Adds a 32-bit number.
    #[must_use]
    pub fn with_u32(self, number: u16, value: u32) -> Self {
        self.with(number, &value.to_ne_bytes())
    }

    /// Adds a string with its NUL.
    #[must_use]
    pub fn with_text(self, number: u16, text: &str) -> Self {
        let mut bytes = text.as_bytes().to_vec();
        bytes.push(0);
        self.with(number, &bytes)
    }

    /// Adds attributes as one. The flag NLA_F_NESTED is left out, as the older families have it.
    #[must_use]
    pub fn with_nested(self, number: u16, nested: &Message) -> Self {
        self.with(number, &nested.bytes)
    }

    /// What has been written.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// The attributes in a piece of a message; ends at the first that does not fit.
#[derive(Debug, Clone)]
pub struct Attributes<'a> {
    rest: &'a [u8],
}

impl<'a> Attributes<'a> {
    /// Those after a fixed part of so many bytes.
    #[must_use]
    pub fn after(payload: &'a [u8], fixed: usize) -> Self {
        Self {
            rest: payload.get(fixed.next_multiple_of(4)..).unwrap_or_default(),
        }
    }
}

impl<'a> Iterator for Attributes<'a> {
    /// Number and value.
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(u16_at(self.rest, 0)?);
        let number = u16_at(self.rest, 2)? & NUMBER;
        let value = self.rest.get(ATTRIBUTE..length)?;
        self.rest = self
            .rest
            .get(length.next_multiple_of(4)..)
            .unwrap_or_default();
        Some((number, value))
    }
}

/// The 16-bit number at an offset.
#[must_use]
pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at.checked_add(2)?)?;
    Some(u16::from_ne_bytes(bytes.try_into().ok()?))
}

/// The 32-bit number at an offset.
#[must_use]
pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

/// The 64-bit number at an offset.
#[must_use]
pub fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..at.checked_add(8)?)?;
    Some(u64::from_ne_bytes(bytes.try_into().ok()?))
}

/// A string up to its NUL.
#[must_use]
pub fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0);
    let bytes = bytes.get(..end.unwrap_or(bytes.len())).unwrap_or_default();
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::{Attributes, Message, text};

    #[test]
    fn what_is_written_is_read_again() {
        let inner = Message::new(&[]).with_u32(1, 7);
        let message = Message::new(&[9, 9, 9])
            .with_text(3, "eth0")
            .with_nested(18, &inner)
            .with(4, &[]);
        let all: Vec<_> = Attributes::after(message.bytes(), 3).collect();
        assert_eq!(all.len(), 3);
        assert_eq!((all[0].0, text(all[0].1)), (3, "eth0".to_owned()));
        let nested: Vec<_> = Attributes::after(all[1].1, 0).collect();
        assert_eq!(nested, [(1, 7u32.to_ne_bytes().as_slice())]);
        assert_eq!(all[2], (4, [].as_slice()));
    }

    #[test]
    fn nonsense_ends_the_attributes() {
        for bytes in [
            [0, 0, 0, 0].as_slice(),
            &[3, 0, 1, 0, 5],
            &[255, 255, 1, 0],
            &[4],
        ] {
            assert_eq!(Attributes::after(bytes, 0).count(), 0, "{bytes:?}");
        }
        assert_eq!(Attributes::after(&[], 16).count(), 0);
    }
}
