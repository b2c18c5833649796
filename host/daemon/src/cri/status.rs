//! Which gRPC code an error gets.

use bulkhead_image::ImageError;
use bulkhead_sandbox::{Kind, SandboxError};
use std::error::Error;
use tonic::{Code, Status};

/// By what the error means to the caller.
pub(crate) fn sandbox_status(error: SandboxError) -> Status {
    let code = match error.kind() {
        Kind::InvalidArgument => Code::InvalidArgument,
        Kind::NotFound => Code::NotFound,
        Kind::AlreadyExists => Code::AlreadyExists,
        Kind::FailedPrecondition => Code::FailedPrecondition,
        Kind::ResourceExhausted => Code::ResourceExhausted,
        Kind::DeadlineExceeded => Code::DeadlineExceeded,
        Kind::Unavailable => Code::Unavailable,
        Kind::Unimplemented => Code::Unimplemented,
        Kind::Internal => Code::Internal,
    };
    Status::new(code, chain(&error))
}

/// By what the error means to the caller.
pub(crate) fn image_status(error: ImageError) -> Status {
    let code = match error.main() {
        ImageError::NotFound { .. } => Code::NotFound,
        ImageError::Unauthorized { .. } => Code::Unauthenticated,
        ImageError::InvalidReference { .. } | ImageError::InvalidAuth => Code::InvalidArgument,
        ImageError::DigestMismatch { .. }
        | ImageError::SizeMismatch { .. }
        | ImageError::Damaged { .. } => Code::DataLoss,
        ImageError::RegistryUnreachable { .. } | ImageError::RegistryRefused { .. } => {
            Code::Unavailable
        }
        ImageError::NoProgress { .. } => Code::DeadlineExceeded,
        ImageError::NoSpace { .. } => Code::ResourceExhausted,
        ImageError::InvalidImage { .. }
        | ImageError::InvalidLayer { .. }
        | ImageError::RegistrySettings { .. }
        | ImageError::Credentials { .. } => Code::FailedPrecondition,
        _ => Code::Internal,
    };
    Status::new(code, chain(&error))
}

/// The error and its causes in one line; a message never repeats its source's.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
