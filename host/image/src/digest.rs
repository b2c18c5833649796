//! Content digests: `algorithm:hex` (OCI Image Format Specification, "Digests").

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256, Sha512};
use std::fmt;

/// A well-formed digest of an algorithm that this crate can compute.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Digest(String);

impl Digest {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (algorithm, hex) = text.split_once(':')?;
        let length = match algorithm {
            "sha256" => 64,
            "sha512" => 128,
            _ => return None,
        };
        let lower_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        (hex.len() == length && hex.bytes().all(lower_hex)).then(|| Self(text.to_owned()))
    }

    pub(crate) fn sha256(bytes: &[u8]) -> Self {
        let mut hasher = Hasher::Sha256(Sha256::new());
        hasher.update(bytes);
        hasher.finish()
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// The hexadecimal digits.
    pub(crate) fn hex(&self) -> &str {
        self.0.split_once(':').map_or("", |(_, hex)| hex)
    }

    /// The digest as a file name.
    pub(crate) fn file_name(&self) -> String {
        self.0.replace(':', "-")
    }

    /// A UUID made of the digest (RFC 9562, version 8).
    pub(crate) fn uuid(&self) -> [u8; 16] {
        let mut uuid = [0; 16];
        let digits = self.hex().as_bytes().as_chunks::<2>().0;
        for (byte, digits) in uuid.iter_mut().zip(digits) {
            let text = std::str::from_utf8(digits).unwrap_or_default();
            *byte = u8::from_str_radix(text, 16).unwrap_or(0);
        }
        let [_, _, _, _, _, _, version, _, variant, ..] = &mut uuid;
        *version = 0x80 | (*version & 0x0f);
        *variant = 0x80 | (*variant & 0x3f);
        uuid
    }

    /// A hasher of the same algorithm.
    pub(crate) fn hasher(&self) -> Hasher {
        if self.0.starts_with("sha512:") {
            Hasher::Sha512(Sha512::new())
        } else {
            Hasher::Sha256(Sha256::new())
        }
    }

    /// The digest of `bytes` by the same algorithm.
    pub(crate) fn of_same_kind(&self, bytes: &[u8]) -> Self {
        let mut hasher = self.hasher();
        hasher.update(bytes);
        hasher.finish()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Digest {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text).ok_or_else(|| format!("{text:?} is not a sha256 or sha512 digest"))
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.0
    }
}

/// Computes a digest piece by piece.
pub(crate) enum Hasher {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Hasher {
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Sha512(hasher) => hasher.update(bytes),
        }
    }

    pub(crate) fn finish(self) -> Digest {
        match self {
            Self::Sha256(hasher) => Digest(format!("sha256:{}", hex(&hasher.finalize()))),
            Self::Sha512(hasher) => Digest(format!("sha512:{}", hex(&hasher.finalize()))),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
