//! `bulkhead check`: whether this node can run pods, and what to do if not.

mod files;
mod kernel;
mod virtualization;

use crate::config::Config;
use serde::Serialize;

/// How a check went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Outcome {
    /// As it should be.
    Ok,
    /// Pods run, but something is not as good as it could be.
    Warning,
    /// Pods cannot run.
    Failed,
}

/// One line of the report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    /// What was looked at; does not change between versions.
    pub(crate) check: &'static str,
    /// How it went.
    pub(crate) outcome: Outcome,
    /// What was found.
    pub(crate) found: String,
    /// What to do; empty if nothing.
    pub(crate) advice: String,
}

impl Finding {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self {
            check,
            outcome: Outcome::Ok,
            found: found.into(),
            advice: String::new(),
        }
    }

    fn warning(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            check,
            outcome: Outcome::Warning,
            found: found.into(),
            advice: advice.into(),
        }
    }

    fn failed(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            check,
            outcome: Outcome::Failed,
            found: found.into(),
            advice: advice.into(),
        }
    }
}

/// Looks at everything.
pub(crate) fn run(config: &Config) -> Vec<Finding> {
    let mut findings = vec![
        virtualization::kvm(),
        virtualization::hardware(),
        virtualization::nx_huge_pages(),
    ];
    findings.extend([kernel::version(), kernel::cgroup(), kernel::namespaces()]);
    findings.extend([
        files::cni(&config.network),
        files::disk(&config.root),
        files::tools(),
    ]);
    findings.extend(files::parts(config));
    findings
}

/// Prints the report and tells the exit status: 0 if pods can run, 1 if not.
pub(crate) fn print(findings: &[Finding], json: bool) -> u8 {
    let failed = findings
        .iter()
        .any(|finding| finding.outcome == Outcome::Failed);
    if json {
        println!(
            "{}",
            serde_json::json!({ "ready": !failed, "checks": findings })
        );
        return u8::from(failed);
    }
    for finding in findings {
        let word = match finding.outcome {
            Outcome::Ok => "ok     ",
            Outcome::Warning => "warning",
            Outcome::Failed => "FAILED ",
        };
        println!("{word}  {:<14}  {}", finding.check, finding.found);
        if !finding.advice.is_empty() {
            println!("{:25}-> {}", "", finding.advice);
        }
    }
    u8::from(failed)
}

#[cfg(test)]
mod tests;
