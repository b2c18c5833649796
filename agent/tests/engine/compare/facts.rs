//! What the probe printed, with the names that a runtime was given replaced.

use std::collections::BTreeMap;
use std::fs;

pub(super) const ABSENT: &str = "absent";

#[derive(Debug)]
pub(super) struct Facts(BTreeMap<String, String>);

impl Facts {
    /// `id` is the container's, `parent` the cgroup in which it has its own.
    pub(super) fn parse(text: &str, id: &str, parent: &str) -> Self {
        let mut facts = BTreeMap::new();
        for line in text.lines() {
            let Some((name, value)) = line.trim_end_matches('\r').split_once(" = ") else {
                panic!("The probe did not print a fact: {line:?} in\n{text}");
            };
            let value = value.replace(id, "ID").replace(parent, "PARENT");
            let value = match name.strip_prefix("namespace.") {
                Some(kind) => namespace(kind, &value),
                None => value,
            };
            let value = match name {
                // The same set twice.
                "status.Cpus_allowed_list" => continue,
                "status.Cpus_allowed" => without_isolated(&value),
                _ => value,
            };
            facts.insert(name.to_owned(), value);
        }
        assert!(facts.len() > 200, "The probe printed too little:\n{text}");
        Self(facts)
    }

    pub(super) fn get(&self, name: &str) -> String {
        self.0
            .get(name)
            .map_or_else(|| ABSENT.to_owned(), Clone::clone)
    }

    /// Names with both values, where they differ.
    pub(super) fn differences(&self, other: &Self) -> Vec<(String, String, String)> {
        let mut names: Vec<&String> = self.0.keys().chain(other.0.keys()).collect();
        names.sort_unstable();
        names.dedup();
        names
            .into_iter()
            .map(|name| (name.clone(), self.get(name), other.get(name)))
            .filter(|(_, ours, theirs)| ours != theirs)
            .collect()
    }
}

/// A set of processors (hexadecimal) without those that the scheduler leaves alone (`isolcpus=`, as in the lab):
/// a runtime that resets the affinity, as runc does, gives a container these as well.
fn without_isolated(set: &str) -> String {
    let text = fs::read_to_string("/sys/devices/system/cpu/isolated").unwrap_or_default();
    let mut isolated = 0_u64;
    for range in text.trim().split(',').filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let ends: [u32; 2] = [first, last].map(|end| end.parse().unwrap());
        isolated |= (ends[0]..=ends[1]).fold(0, |set, cpu| set | 1 << cpu);
    }
    match u64::from_str_radix(set, 16) {
        Ok(all) => format!("{:x}", all & !isolated),
        // More than 64 processors: as it is.
        Err(_) => set.to_owned(),
    }
}

/// Whether a namespace is that of the runtime, which is the test's own.
fn namespace(kind: &str, value: &str) -> String {
    match fs::read_link(format!("/proc/self/ns/{kind}")) {
        Ok(own) if own.to_string_lossy() == value => "the runtime's".to_owned(),
        Ok(_) if value.starts_with("error") => value.to_owned(),
        Ok(_) => "its own".to_owned(),
        Err(error) => panic!("/proc/self/ns/{kind}: {error}"),
    }
}
