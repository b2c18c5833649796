//! The documentation names files that exist.

use bulkhead_tests::artifacts::repository;

#[test]
fn every_file_that_the_documentation_names_exists() {
    let root = repository();
    let mut checked = 0;
    for document in ["README.md", "docs/ARCHITECTURE.md"] {
        let text = std::fs::read_to_string(root.join(document)).unwrap();
        for name in text
            .split('`')
            .skip(1)
            .step_by(2)
            .filter(|name| is_path(name))
        {
            assert!(
                root.join(name).exists(),
                "{document} names {name}, which does not exist"
            );
            checked += 1;
        }
    }
    assert!(checked > 20, "only {checked} names were found");
}

/// In backquotes, with a slash, beneath one of the repository's folders.
fn is_path(name: &str) -> bool {
    let folders = [
        "host/",
        "agent/",
        "proto/",
        "guest-kernel/",
        "images/",
        "tests/",
        "docs/",
        "scripts/",
    ];
    folders.iter().any(|folder| name.starts_with(folder)) && !name.contains([' ', '*', '<'])
}

/// What the interface has: the calls, and `Message.field` of every message, in order.
fn interface() -> (Vec<String>, Vec<String>) {
    let text = std::fs::read_to_string(repository().join("proto/cri/runtime.proto")).unwrap();
    let (mut calls, mut fields) = (Vec::new(), Vec::new());
    // The messages and enumerations that are open, outermost first; enumerations have no name.
    let mut open: Vec<Option<String>> = Vec::new();
    for line in text
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default().trim())
    {
        let word = |index: usize| {
            line.split_whitespace()
                .nth(index)
                .unwrap_or_default()
                .to_owned()
        };
        if let Some(call) = line.strip_prefix("rpc ") {
            calls.push(call.split(['(', ' ']).next().unwrap().to_owned());
        } else if line.starts_with("message ") {
            open.push(Some(word(1)));
        } else if line.ends_with('{') {
            open.push(None);
        } else if let (Some(Some(message)), Some((field, _))) = (open.last(), line.split_once('='))
        {
            fields.push(format!(
                "{message}.{}",
                field.split_whitespace().last().unwrap()
            ));
        }
        if line.ends_with('}') {
            open.pop();
        }
    }
    (calls, fields)
}

/// The cells of the rows of a document's tables, with the heading above.
fn rows(document: &str) -> Vec<(String, Vec<String>)> {
    let text = std::fs::read_to_string(repository().join(document)).unwrap();
    let (mut heading, mut rows) = (String::new(), Vec::new());
    for line in text.lines() {
        if let Some(title) = line.strip_prefix("## ") {
            heading = title.to_owned();
        } else if let Some(cells) = line
            .strip_prefix("| ")
            .and_then(|line| line.strip_suffix('|'))
        {
            let cells = cells.split('|').map(|cell| cell.trim().to_owned());
            rows.push((heading.clone(), cells.collect()));
        }
    }
    rows
}

#[test]
fn every_call_and_every_field_of_the_cri_is_documented() {
    let (calls, fields) = interface();
    assert_eq!(calls.len(), 41);
    let documented: Vec<_> = rows("docs/cri.md")
        .into_iter()
        .filter(|(heading, cells)| heading.is_empty() && cells[0] != "call")
        .map(|(_, cells)| cells[0].clone())
        .collect();
    assert_eq!(documented, calls);
    assert!(
        fields.len() > 400,
        "only {} fields were found",
        fields.len()
    );
    let mut documented = Vec::new();
    for (message, cells) in rows("docs/cri-fields.md") {
        let [field, state, remark] = cells.as_slice() else {
            panic!("{message}: {cells:?}");
        };
        if field == "field" {
            continue;
        }
        let name = format!("{message}.{field}");
        let known = ["yes", "refused", "ignored", "absent", "n/a"];
        assert!(known.contains(&state.as_str()), "{name}: {state:?}");
        let explained = state == "yes" || !remark.is_empty();
        assert!(explained, "{name} is {state}, but why?");
        documented.push(name);
    }
    assert_eq!(documented, fields);
}
