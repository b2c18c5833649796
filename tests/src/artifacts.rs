//! What `make build` has made.

use std::path::{Path, PathBuf};

/// The repository.
#[must_use]
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .map(Path::to_owned)
        .unwrap_or_default()
}

/// A file below `out/`, made by `make build`.
///
/// # Panics
/// It is not there.
#[must_use]
pub fn artifact(name: &str) -> PathBuf {
    let path = repository().join("out").join(name);
    assert!(
        path.exists(),
        "{} is missing; run `make build`",
        path.display()
    );
    path
}
