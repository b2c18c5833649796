//! Names that the daemon chooses and that become path components: checked once, then typed.

use crate::{Error, Result};
use std::fmt;

/// The longest name in bytes.
const MAX: usize = 128;

/// The name of a container or of an exec in it: 1 to 128 of `A-Z a-z 0-9 _ . -`, the first a letter
/// or a digit. It can be a path component as it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id(String);

impl Id {
    /// Checks a name; `field` is what the error calls it.
    pub fn parse(field: &str, text: &str) -> Result<Self> {
        check(text)
            .then(|| Self(text.to_owned()))
            .ok_or_else(|| Error::Invalid(format!("{field} {} is not a valid name", quote(text))))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether a text may be used as a path component and in messages: the rule of [`Id`].
pub fn check(text: &str) -> bool {
    text.len() <= MAX
        && text
            .bytes()
            .next()
            .is_some_and(|first| first.is_ascii_alphanumeric())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
}

/// A text from outside for a message: quoted, escaped, of bounded length.
pub fn quote(text: &str) -> String {
    let shown: String = text.chars().take(200).collect();
    let more = if shown.len() < text.len() { "..." } else { "" };
    format!("{shown:?}{more}")
}

#[cfg(test)]
#[path = "id/tests.rs"]
mod tests;
