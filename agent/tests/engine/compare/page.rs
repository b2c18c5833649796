//! The table of `docs/runc-differences.md`.

use std::collections::BTreeMap;
use std::path::Path;

/// What is different in the same way and under the same specifications.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Difference {
    pub(super) runc: String,
    pub(super) crun: String,
    pub(super) ours: String,
}

/// Every difference by the fact, with the names of the specifications.
pub(super) type Found = BTreeMap<(String, Difference), Vec<String>>;

/// The first five columns of the table.
fn rows(found: &Found, names: &[&str]) -> Vec<String> {
    let mut rows: BTreeMap<(Vec<String>, &Difference), Vec<String>> = BTreeMap::new();
    for ((fact, difference), specs) in found {
        let facts = rows.entry((specs.clone(), difference)).or_default();
        facts.push(cell(fact));
    }
    let mut rows: Vec<String> = rows
        .iter()
        .map(|((specs, difference), facts)| {
            let Difference { runc, crun, ours } = difference;
            let [runc, crun, ours] = [runc, crun, ours].map(|value| cell(value));
            let others: Vec<&str> = names
                .iter()
                .copied()
                .filter(|name| !specs.iter().any(|spec| spec == name))
                .collect();
            let specs = match others.as_slice() {
                [] => "all".to_owned(),
                [_] | [_, _] => format!("all but {}", others.join(", ")),
                _ => specs.join(", "),
            };
            format!("| {} | {runc} | {crun} | {ours} | {specs}", facts.join(" "))
        })
        .collect();
    rows.sort_unstable();
    rows
}

fn cell(text: &str) -> String {
    format!("`{}`", text.replace('|', "\\|"))
}

/// Compares what was found with the page, whose last column is the reason.
pub(super) fn check(found: &Found, names: &[&str]) {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/runc-differences.md");
    let text = std::fs::read_to_string(page).unwrap();
    let written: BTreeMap<String, &str> = text
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| {
            let line = line.trim_end().trim_end_matches('|');
            let (row, reason) = line.rsplit_once(" | ").unwrap();
            (row.to_owned(), reason.trim())
        })
        .collect();
    let found = rows(found, names);
    let new: Vec<&String> = found
        .iter()
        .filter(|row| written.get(*row).is_none_or(|reason| reason.is_empty()))
        .collect();
    let gone: Vec<&String> = written.keys().filter(|row| !found.contains(row)).collect();
    let list = |rows: &[&String]| {
        rows.iter()
            .map(|row| format!("{row} |\n"))
            .collect::<String>()
    };
    assert!(
        new.is_empty() && gone.is_empty(),
        "{} differences from runc have no reason in docs/runc-differences.md:\n{}\n{} rows there no longer differ so:\n{}",
        new.len(),
        list(&new),
        gone.len(),
        list(&gone)
    );
}
