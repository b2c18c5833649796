//! The operations of the specification upon a whole list.

use super::cache::Attachment;
use super::config::{NetworkList, Plugin};
use super::exec::Execution;
use super::result::{CniResult, convert};
use super::version::Version;
use crate::{NetworkError, Result};
use serde_json::{Map, Value, json};
use std::path::PathBuf;
use std::time::Duration;

/// Executes plugins.
#[derive(Debug, Clone)]
pub struct Cni {
    /// Where the plugins' programs are.
    pub plugin_directories: Vec<PathBuf>,
    /// How long one execution of one plugin may take.
    pub limit: Duration,
}

impl Cni {
    /// Adds a pod to a network; returns the last plugin's result. When that fails nothing is undone: DEL is
    /// the caller's, who may have to repeat it.
    ///
    /// # Errors
    /// The first plugin's that fails.
    pub async fn add(&self, list: &NetworkList, attachment: &Attachment) -> Result<Value> {
        let mut previous = None;
        for plugin in &list.plugins {
            let config = derive(list, plugin, Some(attachment), previous.take());
            let output = self
                .execute(plugin, "ADD", variables(attachment), &config)
                .await?;
            let result = convert(&output, list.version)
                .and_then(|value| CniResult::parse(&value).map(|_| value))
                .map_err(|problem| NetworkError::PluginFailed {
                    plugin: plugin.kind.clone(),
                    command: "ADD",
                    problem,
                })?;
            previous = Some(result);
        }
        // A list has at least one plugin.
        Ok(previous.unwrap_or_default())
    }

    /// Asks whether everything is still as it was added.
    ///
    /// # Errors
    /// The first plugin's that says no.
    pub async fn check(&self, list: &NetworkList, attachment: &Attachment) -> Result<()> {
        if list.version < Version::V040 || list.disable_check {
            return Ok(());
        }
        for plugin in &list.plugins {
            let config = derive(list, plugin, Some(attachment), attachment.result.clone());
            self.execute(plugin, "CHECK", variables(attachment), &config)
                .await?;
        }
        Ok(())
    }

    /// Takes a pod from a network, the last plugin first. It may be repeated, also after an ADD that failed
    /// half way.
    ///
    /// # Errors
    /// The first plugin's that fails.
    pub async fn delete(&self, list: &NetworkList, attachment: &Attachment) -> Result<()> {
        for plugin in list.plugins.iter().rev() {
            let previous = attachment
                .result
                .clone()
                .filter(|_| list.version >= Version::V040);
            let config = derive(list, plugin, Some(attachment), previous);
            self.execute(plugin, "DEL", variables(attachment), &config)
                .await?;
        }
        Ok(())
    }

    /// Lets plugins remove what belongs to none of these pods, given with their interfaces. Every plugin is
    /// asked.
    ///
    /// # Errors
    /// The first plugin's that fails.
    pub async fn collect(&self, list: &NetworkList, valid: &[(String, String)]) -> Result<()> {
        if list.version < Version::V110 || list.disable_gc {
            return Ok(());
        }
        let valid: Vec<_> = valid
            .iter()
            .map(|(pod, interface)| json!({ "containerID": pod, "ifname": interface }))
            .collect();
        let mut result = Ok(());
        for plugin in &list.plugins {
            let mut config = derive(list, plugin, None, None);
            config.insert(
                "cni.dev/valid-attachments".into(),
                Value::Array(valid.clone()),
            );
            let one = self.execute(plugin, "GC", Vec::new(), &config).await;
            result = result.and(one.map(drop));
        }
        result
    }

    /// Asks whether a pod could be added now.
    ///
    /// # Errors
    /// The first plugin's that says no, or whose program is missing.
    pub async fn status(&self, list: &NetworkList) -> Result<()> {
        for plugin in &list.plugins {
            if list.version < Version::V110 {
                self.execution(plugin, "STATUS", Vec::new(), Vec::new())
                    .find()?;
                continue;
            }
            let config = derive(list, plugin, None, None);
            self.execute(plugin, "STATUS", Vec::new(), &config).await?;
        }
        Ok(())
    }

    async fn execute(
        &self,
        plugin: &Plugin,
        command: &'static str,
        variables: Vec<(&'static str, String)>,
        config: &Map<String, Value>,
    ) -> Result<Vec<u8>> {
        let input = serde_json::to_vec(config).map_err(|error| NetworkError::PluginFailed {
            plugin: plugin.kind.clone(),
            command,
            problem: format!("its configuration cannot be written: {error}"),
        })?;
        self.execution(plugin, command, variables, input)
            .run()
            .await
    }

    fn execution<'a>(
        &'a self,
        plugin: &'a Plugin,
        command: &'static str,
        variables: Vec<(&'static str, String)>,
        input: Vec<u8>,
    ) -> Execution<'a> {
        Execution {
            plugin: &plugin.kind,
            command,
            directories: &self.plugin_directories,
            variables,
            input,
            limit: self.limit,
        }
    }
}

fn variables(attachment: &Attachment) -> Vec<(&'static str, String)> {
    vec![
        ("CNI_CONTAINERID", attachment.pod.clone()),
        ("CNI_NETNS", attachment.netns.display().to_string()),
        ("CNI_IFNAME", attachment.interface.clone()),
        ("CNI_ARGS", attachment.args.clone()),
    ]
}

/// The configuration for one execution ("Deriving execution configuration from plugin configuration").
fn derive(
    list: &NetworkList,
    plugin: &Plugin,
    attachment: Option<&Attachment>,
    previous: Option<Value>,
) -> Map<String, Value> {
    let mut config = plugin.config.clone();
    for key in [
        "capabilities",
        "cniVersions",
        "plugins",
        "prevResult",
        "runtimeConfig",
    ] {
        config.remove(key);
    }
    config.insert("name".into(), list.name.clone().into());
    config.insert("cniVersion".into(), list.version.name().into());
    if let Some(attachment) = attachment {
        let runtime = attachment.runtime.for_plugin(plugin);
        if !runtime.is_empty() {
            config.insert("runtimeConfig".into(), Value::Object(runtime));
        }
    }
    if let Some(previous) = previous {
        config.insert("prevResult".into(), previous);
    }
    config
}
