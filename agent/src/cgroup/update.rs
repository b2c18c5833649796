//! Changing limits: all of them or none.

use super::{Cgroup, Setting, refused};
use crate::error::Context;
use crate::{Error, Result};
use std::fs;
use std::io;

impl Cgroup {
    /// Sets limits of a running container. When one is refused, those before it get their old
    /// values back.
    pub fn update(&self, settings: &[Setting]) -> Result<()> {
        let mut old: Vec<Setting> = Vec::new();
        for setting in settings {
            let changed = match self.present(setting) {
                Ok(present) => self.set(setting).map(|()| present),
                Err(error) => Err(error),
            };
            match changed {
                Ok(Some(present)) => old.push(present),
                Ok(None) => {}
                Err(error) => {
                    for setting in old.iter().rev() {
                        if let Err(error) = self.set(setting) {
                            tracing::error!("A limit stays changed: {}", error.chain());
                        }
                    }
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Refuses a memory limit below what is in use, which would end the container.
    pub fn check_memory(&self, settings: &[Setting]) -> Result<()> {
        let file = self.path.join("memory.current");
        let text =
            fs::read_to_string(&file).context(|| format!("Cannot read {}", file.display()))?;
        let used: u64 = text.trim().parse().unwrap_or(0);
        let limit = settings
            .iter()
            .rev()
            .find(|setting| setting.file == "memory.max")
            .and_then(|setting| setting.value.parse::<u64>().ok());
        match limit {
            Some(limit) if limit < used => Err(Error::Invalid(format!(
                "memory.max cannot be {limit}: {used} bytes are in use"
            ))),
            _ => Ok(()),
        }
    }

    /// What a setting would change, as it is now. `None`: its file is not there and need not be.
    fn present(&self, setting: &Setting) -> Result<Option<Setting>> {
        match fs::read_to_string(self.path.join(&setting.file)) {
            Ok(text) => Ok(Some(Setting {
                value: restore(&setting.value, &text),
                ..setting.clone()
            })),
            Err(error) if setting.optional && error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(refused(setting, &error)),
        }
    }
}

/// What to write to get what a file says now, when `value` has been written.
pub(super) fn restore(value: &str, now: &str) -> String {
    let device = value.split(' ').next().filter(|word| word.contains(':'));
    let Some(device) = device else {
        // An empty write does nothing; an empty line clears a list.
        return match now.trim_end() {
            "" => "\n".to_owned(),
            now => now.to_owned(),
        };
    };
    let is_it = |line: &&str| line.split(' ').next() == Some(device);
    match now.lines().find(is_it) {
        Some(line) => line.to_owned(),
        None if value.contains('=') => {
            format!("{device} rbps=max wbps=max riops=max wiops=max")
        }
        None => format!("{device} default"),
    }
}
