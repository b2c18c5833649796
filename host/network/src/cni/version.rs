//! Versions of the specification.

/// The versions that are spoken, oldest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// 0.3.0.
    V030,
    /// 0.3.1.
    V031,
    /// 0.4.0: CHECK, `prevResult` for DEL.
    V040,
    /// 1.0.0: addresses without their version.
    V100,
    /// 1.1.0: GC and STATUS.
    V110,
}

const NAMES: [(Version, &str); 5] = [
    (Version::V030, "0.3.0"),
    (Version::V031, "0.3.1"),
    (Version::V040, "0.4.0"),
    (Version::V100, "1.0.0"),
    (Version::V110, "1.1.0"),
];

impl Version {
    /// By its name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        NAMES
            .iter()
            .find(|(_, known)| *known == name)
            .map(|(version, _)| *version)
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::V030 => "0.3.0",
            Self::V031 => "0.3.1",
            Self::V040 => "0.4.0",
            Self::V100 => "1.0.0",
            Self::V110 => "1.1.0",
        }
    }
}
