//! Identifiers of pods and containers: 64 hexadecimal digits, as containerd's and CRI-O's.

use crate::{Result, SandboxError};
use std::collections::BTreeMap;

/// A new identifier from 256 random bits.
pub(crate) fn new_id() -> Result<String> {
    let mut bytes = [0_u8; 32];
    random(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// A new, non-zero identifier of a byte stream; random, so that a restarted daemon makes none twice.
pub(crate) fn new_stream_id() -> Result<u64> {
    let mut bytes = [0_u8; 8];
    random(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes).max(1))
}

fn random(bytes: &mut [u8]) -> Result<()> {
    getrandom::fill(bytes).map_err(|error| {
        SandboxError::io("read the kernel's random numbers")(std::io::Error::other(error))
    })
}

/// Finds by full id or by a beginning that only one id has.
pub(crate) fn find<'a, T>(
    all: &'a BTreeMap<String, T>,
    what: &'static str,
    id: &str,
) -> Result<&'a T> {
    if let Some(found) = all.get(id) {
        return Ok(found);
    }
    let mut matches = all
        .range(id.to_owned()..)
        .take_while(|(key, _)| key.starts_with(id));
    match (matches.next(), matches.next()) {
        (Some((_, found)), None) if !id.is_empty() => Ok(found),
        (Some(_), Some(_)) if !id.is_empty() => Err(SandboxError::Ambiguous {
            what,
            id: id.to_owned(),
        }),
        _ => Err(SandboxError::NotFound {
            what,
            id: id.to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::{find, new_id};
    use crate::SandboxError;
    use std::collections::BTreeMap;

    #[test]
    fn ids_are_long_and_differ() {
        let (one, other) = (new_id().unwrap(), new_id().unwrap());
        assert_eq!(one.len(), 64);
        assert_ne!(one, other);
    }

    #[test]
    fn a_beginning_finds_if_it_is_unique() {
        let all: BTreeMap<String, u8> =
            [("abc1".into(), 1), ("abd2".into(), 2), ("ab".into(), 3)].into();
        assert_eq!(find(&all, "pod", "abc").unwrap(), &1);
        assert_eq!(
            find(&all, "pod", "ab").unwrap(),
            &3,
            "a full id wins over being a beginning"
        );
        assert!(matches!(
            find(&all, "pod", "a"),
            Err(SandboxError::Ambiguous { .. })
        ));
        assert!(matches!(
            find(&all, "pod", "x"),
            Err(SandboxError::NotFound { .. })
        ));
        assert!(matches!(
            find(&all, "pod", ""),
            Err(SandboxError::NotFound { .. })
        ));
    }

    proptest::proptest! {
        /// A beginning means the one id that has it, a whole id itself, and nothing means nothing.
        #[test]
        fn beginnings_are_found_as_by_looking_at_all(
            ids in proptest::collection::btree_set("[01]{1,5}", 0..12),
            wanted in "[01]{0,5}",
        ) {
            let all: BTreeMap<String, String> = ids.into_iter().map(|id| (id.clone(), id)).collect();
            let begun: Vec<_> = all.keys().filter(|id| id.starts_with(&wanted)).collect();
            let found = find(&all, "pod", &wanted);
            match begun.as_slice() {
                _ if wanted.is_empty() => {
                    let nothing = matches!(found, Err(SandboxError::NotFound { .. }));
                    proptest::prop_assert!(nothing);
                }
                _ if all.contains_key(&wanted) => proptest::prop_assert_eq!(found.unwrap(), &wanted),
                [] => {
                    let nothing = matches!(found, Err(SandboxError::NotFound { .. }));
                    proptest::prop_assert!(nothing);
                }
                [one] => proptest::prop_assert_eq!(&found.unwrap(), one),
                _ => {
                    let many = matches!(found, Err(SandboxError::Ambiguous { .. }));
                    proptest::prop_assert!(many);
                }
            }
        }
    }
}
