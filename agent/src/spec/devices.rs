//! `linux.resources.devices`: which devices a container may make and open.

use crate::cgroup::devices::{ALWAYS, Kind, Rule, access};
use crate::id::quote;
use crate::{Error, Result};
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

/// The most rules: each is a few instructions that every opening of a device goes through.
const MAX_RULES: usize = 1024;

/// The specification's rules, then what every container may do. Without any the rest is refused.
pub(super) fn rules(list: &[LinuxDeviceCgroup]) -> Result<Vec<Rule>> {
    if list.len() > MAX_RULES {
        return Err(Error::Invalid(format!(
            "The spec has more than {MAX_RULES} linux.resources.devices"
        )));
    }
    list.iter()
        .map(rule)
        .chain(ALWAYS.into_iter().map(Ok))
        .collect()
}

fn rule(rule: &LinuxDeviceCgroup) -> Result<Rule> {
    let allow = rule.allow();
    let kind = match rule.typ() {
        // As for runc this is about everything, whatever else the rule says.
        None | Some(LinuxDeviceType::A) => {
            return Ok(Rule {
                allow,
                kind: Kind::Any,
                major: None,
                minor: None,
                access: access::ALL,
            });
        }
        Some(LinuxDeviceType::B) => Kind::Block,
        Some(LinuxDeviceType::C | LinuxDeviceType::U) => Kind::Char,
        Some(LinuxDeviceType::P) => {
            return Err(Error::Invalid(
                "linux.resources.devices has type p, but a pipe is no device".to_owned(),
            ));
        }
    };
    let number = |number: Option<i64>| match number {
        None | Some(-1) => Ok(None),
        Some(number) => u32::try_from(number).map(Some).map_err(|_| {
            Error::Invalid(format!("linux.resources.devices has the number {number}"))
        }),
    };
    Ok(Rule {
        allow,
        kind,
        major: number(rule.major())?,
        minor: number(rule.minor())?,
        access: device_access(rule.access().as_deref().unwrap_or("rwm"))?,
    })
}

/// Reads letters of "rwm" as bits of [`access`].
pub(crate) fn device_access(letters: &str) -> Result<u32> {
    let mut bits = 0;
    for letter in letters.chars() {
        bits |= match letter {
            'r' => access::READ,
            'w' => access::WRITE,
            'm' => access::MKNOD,
            _ => {
                return Err(Error::Invalid(format!(
                    "A device's access is made of r, w and m, not {}",
                    quote(letters)
                )));
            }
        };
    }
    Ok(bits)
}

#[cfg(test)]
mod tests {
    use super::{ALWAYS, Kind, Rule, access, rules};
    use serde_json::{Value, json};

    fn parse(list: Value) -> crate::Result<Vec<Rule>> {
        rules(&serde_json::from_value::<Vec<_>>(list).unwrap())
    }

    #[test]
    fn rules_are_read() {
        let list = parse(json!([
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "b", "major": 8, "minor": -1, "access": "rm"},
            {"allow": true, "type": "c", "major": 10, "minor": 229},
        ]))
        .unwrap();
        let [none, disk, fuse, rest @ ..] = list.as_slice() else {
            panic!("three rules")
        };
        assert_eq!((none.allow, none.kind), (false, Kind::Any));
        assert_eq!((disk.major, disk.minor), (Some(8), None));
        assert_eq!(disk.access, access::READ | access::MKNOD);
        assert_eq!((fuse.access, fuse.kind), (access::ALL, Kind::Char));
        assert_eq!(rest, ALWAYS);
    }

    #[test]
    fn nonsense_is_refused() {
        for rule in [
            json!({"allow": true, "type": "p"}),
            json!({"allow": true, "type": "c", "major": -2}),
            json!({"allow": true, "type": "c", "access": "x"}),
        ] {
            assert!(parse(json!([rule])).is_err(), "{rule}");
        }
        let many = vec![json!({"allow": true}); 1025];
        assert!(parse(json!(many)).is_err());
    }
}
