//! Users and groups of an image: `/etc/passwd` and `/etc/group` (passwd(5), group(5)), read without
//! the C library's name service.
//!
//! The rules are those that users know from other runtimes. A user is a name or a number; a number
//! need not be in `/etc/passwd`, its group is then 0. A group given after a colon takes the place of
//! the user's. The groups that list the user as a member are supplementary groups, and so is the
//! primary one.

use super::plan::{Failure, FailureKind};
use crate::id::quote;
use serde::{Deserialize, Serialize};

/// The largest file that is read.
pub const MAX_FILE: u64 = 1024 * 1024;

/// Who the program runs as.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// User.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// Resolves `user` or `user:group`.
pub fn resolve(spec: &str, passwd: &str, group: &str) -> Result<Identity, Failure> {
    let (user, group_spec) = match spec.split_once(':') {
        Some((user, group_spec)) => (user, Some(group_spec)),
        None => (spec, None),
    };
    let entry = entries(passwd).find(|entry| entry.name == user);
    let number = number(user);
    // A name that is all digits is found by name first, as in other runtimes.
    let entry = entry.or_else(|| entries(passwd).find(|entry| Some(entry.id) == number));
    let uid = match (&entry, number) {
        (Some(entry), _) => entry.id,
        (None, Some(number)) => number,
        (None, None) => return Err(missing("user", user, "/etc/passwd")),
    };
    let gid = match group_spec {
        Some(text) => group_id(text, group)?,
        None => entry
            .as_ref()
            .and_then(|entry| entry.primary_group)
            .unwrap_or(0),
    };
    let mut groups = vec![gid];
    if let Some(entry) = &entry {
        for member in memberships(entry.name, group) {
            if !groups.contains(&member) {
                groups.push(member);
            }
        }
    }
    Ok(Identity { uid, gid, groups })
}

/// The home directory of a user.
pub fn home(uid: u32, passwd: &str) -> Option<&str> {
    entries(passwd)
        .find(|entry| entry.id == uid)
        .and_then(|entry| entry.home)
        .filter(|home| !home.is_empty())
}

/// A line of either file: name, password, number; of passwd also group, comment, home.
struct Entry<'a> {
    name: &'a str,
    id: u32,
    primary_group: Option<u32>,
    home: Option<&'a str>,
}

fn entries(file: &str) -> impl Iterator<Item = Entry<'_>> {
    file.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let name = fields
            .next()
            .filter(|name| !name.is_empty() && !name.starts_with('#'))?;
        let id = fields.nth(1).and_then(number)?;
        Some(Entry {
            name,
            id,
            primary_group: fields.next().and_then(number),
            home: fields.nth(1),
        })
    })
}

fn group_id(text: &str, group: &str) -> Result<u32, Failure> {
    if let Some(number) = number(text) {
        return Ok(number);
    }
    entries(group)
        .find(|entry| entry.name == text)
        .map(|entry| entry.id)
        .ok_or_else(|| missing("group", text, "/etc/group"))
}

/// The groups whose fourth field lists the user.
fn memberships(user: &str, group: &str) -> Vec<u32> {
    group
        .lines()
        .filter_map(|line| {
            let mut fields = line.trim().split(':');
            let id = fields.nth(2).and_then(number)?;
            let is_member = fields.next()?.split(',').any(|member| member == user);
            is_member.then_some(id)
        })
        .collect()
}

/// A user or group number: digits only; the largest one means "none" to the kernel.
fn number(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits
        .then(|| text.parse().ok())
        .flatten()
        .filter(|number| *number != u32::MAX)
}

fn missing(what: &str, name: &str, file: &str) -> Failure {
    Failure {
        kind: FailureKind::NotFound,
        message: format!("The {what} {} is not in the image's {file}", quote(name)),
    }
}

#[cfg(test)]
#[path = "user/tests.rs"]
mod tests;
