//! `hooks`: those that run in the container are taken, those of the runtime are refused: here the
//! runtime is the daemon on the host, which runs nobody's programs.

use super::{absolute, limited, refuse};
use crate::init::plan::{Container, Hook};
use crate::{Error, Result};
use oci_spec::runtime;

/// Checks and translates the hooks.
pub(super) fn convert(hooks: &runtime::Hooks, container: &mut Container) -> Result<()> {
    let some =
        |list: &Option<Vec<runtime::Hook>>| list.as_ref().is_some_and(|list| !list.is_empty());
    #[allow(deprecated)] // Refused, whatever its standing.
    refuse("hooks.prestart", some(hooks.prestart()))?;
    refuse("hooks.createRuntime", some(hooks.create_runtime()))?;
    refuse("hooks.poststart", some(hooks.poststart()))?;
    refuse("hooks.poststop", some(hooks.poststop()))?;
    container.create_hooks = list(hooks.create_container(), "hooks.createContainer")?;
    container.start_hooks = list(hooks.start_container(), "hooks.startContainer")?;
    Ok(())
}

fn list(hooks: &Option<Vec<runtime::Hook>>, what: &str) -> Result<Vec<Hook>> {
    limited(hooks, what)?
        .iter()
        .map(|hook| {
            let args = limited(hook.args(), "arguments of a hook")?.to_vec();
            let env = limited(hook.env(), "variables of a hook")?.to_vec();
            let timeout = match hook.timeout() {
                None => None,
                Some(seconds) => Some(u64::try_from(seconds).ok().filter(|s| *s > 0).ok_or_else(
                    || Error::Invalid(format!("{what} has a timeout that is not positive")),
                )?),
            };
            if args.iter().chain(&env).any(|text| text.contains('\0')) {
                return Err(Error::Invalid(format!("{what} has a null byte in it")));
            }
            Ok(Hook {
                path: absolute(&hook.path().to_string_lossy(), what)?,
                args,
                env,
                timeout,
            })
        })
        .collect()
}
