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
