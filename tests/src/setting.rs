//! Numbers of the environment, which make a test or a benchmark longer or shorter.

use anyhow::{Context, Result};
use std::str::FromStr;

/// The number that the environment has under this name, or the usual one.
///
/// # Errors
/// What it has is no such number.
pub fn setting<T>(name: &str, usual: T) -> Result<T>
where
    T: FromStr<Err: std::error::Error + Send + Sync + 'static>,
{
    let value = std::env::var(name).ok();
    value
        .map_or(Ok(usual), |value| value.parse())
        .with_context(|| format!("{name} is no number that can be used"))
}
