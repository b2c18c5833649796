//! How a command ended, as the error stream says it: a `metav1.Status` as JSON from version 4 of the
//! protocol on, before that the bare message of a failure.

use serde::Serialize;

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// With exit code 0, or detached.
    Success,
    /// With another exit code.
    ExitCode(i32),
    /// Not by itself: it could not be started, or the pod has ended.
    Failed(String),
}

#[derive(Serialize)]
struct Status<'a> {
    metadata: Metadata,
    status: &'a str,
    #[serde(skip_serializing_if = "String::is_empty")]
    message: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    reason: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<Details>,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<u16>,
}

#[derive(Serialize)]
struct Metadata {}

#[derive(Serialize)]
struct Details {
    causes: [Cause; 1],
}

#[derive(Serialize)]
struct Cause {
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    message: String,
}

impl Outcome {
    /// The words of a failure, as `kubectl` shows them.
    fn message(&self) -> String {
        match self {
            Self::Success => String::new(),
            Self::ExitCode(code) => {
                format!("command terminated with non-zero exit code: exit status {code}")
            }
            Self::Failed(problem) => format!("Internal error occurred: {problem}"),
        }
    }

    /// What the error stream carries.
    pub(crate) fn encode(&self, json: bool) -> Vec<u8> {
        if !json {
            return self.message().into_bytes();
        }
        let (reason, code, cause) = match self {
            Self::Success => ("", None, None),
            Self::ExitCode(code) => (
                "NonZeroExitCode",
                None,
                Some((Some("ExitCode"), code.to_string())),
            ),
            Self::Failed(problem) => ("InternalError", Some(500), Some((None, problem.clone()))),
        };
        let status = Status {
            metadata: Metadata {},
            status: if *self == Self::Success {
                "Success"
            } else {
                "Failure"
            },
            message: self.message(),
            reason,
            details: cause.map(|(reason, message)| Details {
                causes: [Cause { reason, message }],
            }),
            code,
        };
        // Strings and numbers only: this can not fail.
        serde_json::to_vec(&status).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::Outcome;

    fn json(outcome: &Outcome) -> String {
        String::from_utf8(outcome.encode(true)).unwrap()
    }

    #[test]
    fn statuses_are_those_that_clients_parse() {
        assert_eq!(
            json(&Outcome::Success),
            r#"{"metadata":{},"status":"Success"}"#
        );
        assert_eq!(
            json(&Outcome::ExitCode(7)),
            r#"{"metadata":{},"status":"Failure","message":"command terminated with non-zero exit code: exit status 7","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"7"}]}}"#
        );
        assert_eq!(
            json(&Outcome::Failed("no \"x\"".to_owned())),
            r#"{"metadata":{},"status":"Failure","message":"Internal error occurred: no \"x\"","reason":"InternalError","details":{"causes":[{"message":"no \"x\""}]},"code":500}"#
        );
        assert_eq!(Outcome::Success.encode(false), b"");
    }
}
