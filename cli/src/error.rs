//! The failures of a command, each with a message for people and an exit code for scripts.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use postern_core::Invalid;
use postern_core::audit::{Broken, Hash};
use postern_pki::PkiError;
use postern_pki::identity::SpiffeIdError;
use postern_proto::client::BadAddress;
use postern_runtime::error_chain::error_chain;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::exit_code::Exit;
use crate::output::{Console, OutputError, printable};
use crate::policy_file::PolicyFileError;
use crate::settings::SettingsError;

/// The reason for which a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The broker answered with an error.
    #[error("{}", status_words(.0))]
    Broker(Box<Status>),
    /// The command could not connect to the broker.
    #[error(
        "cannot reach the broker {address}: {cause}; check the address, the network, and that the broker runs"
    )]
    Unreachable {
        /// The address.
        address: String,
        /// The root cause.
        cause: String,
    },
    /// The broker's answer did not arrive, or not completely.
    #[error(
        "lost the connection to the broker {address}: {cause}; check that the broker runs and accepts this certificate"
    )]
    Lost {
        /// The address.
        address: String,
        /// The root cause.
        cause: String,
    },
    /// A server answered that did not prove to be the broker.
    #[error(
        "the server at {address} is not the broker that this identity trusts: {cause}; check the address and roots.pem"
    )]
    Untrusted {
        /// The address.
        address: String,
        /// The flaw of its proof.
        cause: String,
    },
    /// The broker shows a certificate that has ended.
    #[error(
        "the broker's certificate has ended ({address}: {cause}); check this machine's clock, or have an operator run `postern-broker authority status` on the broker's machine"
    )]
    BrokerEnded {
        /// The broker's address.
        address: String,
        /// The time of its end.
        cause: String,
    },
    /// The broker refuses the client's certificate.
    #[error("the broker {address} refuses this certificate: {cause}; ask an administrator for a new one")]
    CertificateRefused {
        /// The address.
        address: String,
        /// The TLS alert, or the end of the certificate if that has passed.
        cause: String,
    },
    /// The broker sent a malformed answer.
    #[error("the broker's answer is malformed: {what}; use the postern that matches the broker's version")]
    BadAnswer {
        /// The flaw.
        what: String,
    },
    /// Invalid input.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// A policy file that cannot be used.
    #[error(transparent)]
    PolicyFile(#[from] PolicyFileError),
    /// The broker or the identity is not set, or the configuration cannot be used.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The broker's address has the wrong form.
    #[error(transparent)]
    Address(#[from] BadAddress),
    /// The identity's files cannot be used.
    #[error("the identity in {dir} cannot be used")]
    Identity {
        /// The directory.
        dir: PathBuf,
        /// The cause.
        #[source]
        source: PkiError,
    },
    /// The certificate belongs to no principal.
    #[error("the identity in {dir} is not a principal's; use one that `postern-broker issue` made")]
    NoPrincipal {
        /// The directory.
        dir: PathBuf,
        /// The cause, if the certificate cannot be read at all.
        #[source]
        source: Option<SpiffeIdError>,
    },
    /// A request was not answered: the broker may have accepted it or not.
    #[error(
        "the broker did not answer, so the request may have been accepted; retry with --idempotency-key {key} (it cannot create a second grant)"
    )]
    Unanswered {
        /// The idempotency key of the request.
        key: String,
        /// The reason for which no answer came.
        #[source]
        source: Box<Failure>,
    },
    /// A grant that will not become active.
    #[error("grant {grant} is {state}: {reason}")]
    NotActive {
        /// The grant.
        grant: String,
        /// The state of the grant.
        state: &'static str,
        /// The reason.
        reason: String,
    },
    /// An approver denied the request.
    #[error("grant {grant} was denied: {reason}")]
    Denied {
        /// The grant.
        grant: String,
        /// The approver's reason.
        reason: String,
    },
    /// The time to wait ended first.
    #[error(
        "grant {grant} is still {state} after {waited}; the broker continues with it, see `postern show {grant}`"
    )]
    TimedOut {
        /// The grant.
        grant: String,
        /// The state of the grant.
        state: &'static str,
        /// The time that the command waited.
        waited: String,
    },
    /// A lockdown or a release that failed for some of its targets.
    #[error("{count} of {of} targets could not be {participle}; see the result for the reason")]
    NotDone {
        /// The number of targets that failed.
        count: usize,
        /// The number of all targets.
        of: usize,
        /// The past participle of the command, such as `locked down`.
        participle: &'static str,
    },
    /// An assessment with `--fail-on` found unhealthy VMs.
    #[error(
        "{count} VMs expose management ports; see the result, and close the ports with `postern lockdown`"
    )]
    Unhealthy {
        /// The number of VMs.
        count: usize,
    },
    /// An assessment could not read every place.
    #[error("the broker could not read {places} places of its clouds; see the result")]
    Unread {
        /// The number of accounts, Regions, subscriptions and kinds of resource.
        places: usize,
    },
    /// A status with `--check` found problems.
    #[error("{}; see the result", attention_words(.count))]
    Attention {
        /// The number of problems.
        count: usize,
    },
    /// The audit log is not as the broker wrote it.
    #[error("the audit log is broken")]
    BrokenLog(#[from] Broken),
    /// The audit log verifies, but a record that was in it is gone.
    #[error(
        "the audit log does not contain {expected}: its end was cut off, or it is another log; compare it with a copy kept elsewhere"
    )]
    HeadMissing {
        /// The head that was expected.
        expected: Hash,
    },
    /// A file that holds no checkpoint that the root vouches for.
    #[error(
        "the checkpoint in {file} cannot be used: {problem}; take the whole line from the journal or the agent, and the root of that authority"
    )]
    BadCheckpoint {
        /// The file.
        file: PathBuf,
        /// The problem.
        problem: String,
    },
    /// The checkpoints that this command remembers cannot be read.
    #[error(
        "cannot read the checkpoints of the audit log that this command remembers in {file}; restore the file, or move it away: the next \
         verification then compares the log with none of them"
    )]
    Memory {
        /// The file.
        file: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A local file cannot be read.
    #[error("cannot read {file}")]
    File {
        /// The file.
        file: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The manual cannot be written.
    #[error("cannot write the manual into {dir}")]
    Manual {
        /// The directory.
        dir: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The result cannot be written.
    #[error(transparent)]
    Output(#[from] OutputError),
}

impl Failure {
    /// Returns the exit code.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Broker(status) => exit_of(status.code()),
            Self::Unreachable { .. }
            | Self::Lost { .. }
            | Self::Untrusted { .. }
            | Self::BrokerEnded { .. } => Exit::Unreachable,
            Self::CertificateRefused { .. } | Self::Denied { .. } | Self::Unhealthy { .. } => Exit::Denied,
            Self::Invalid(_) | Self::BadCheckpoint { .. } => Exit::InvalidInput,
            Self::PolicyFile(PolicyFileError::Read { .. }) => Exit::Other,
            Self::PolicyFile(_) => Exit::InvalidInput,
            Self::Settings(_) | Self::Address(_) | Self::Identity { .. } | Self::NoPrincipal { .. } => {
                Exit::Usage
            }
            Self::Unanswered { source, .. } => source.exit(),
            Self::NotActive { .. } | Self::NotDone { .. } => Exit::Failed,
            Self::TimedOut { .. } => Exit::TimedOut,
            Self::Attention { .. } => Exit::Attention,
            Self::Output(error) if error.reader_is_gone() => Exit::Done,
            Self::BadAnswer { .. }
            | Self::BrokenLog(_)
            | Self::HeadMissing { .. }
            | Self::Unread { .. }
            | Self::File { .. }
            | Self::Memory { .. }
            | Self::Manual { .. }
            | Self::Output(_) => Exit::Other,
        }
    }

    /// Reports whether the broker is away for now, so that a retry may help.
    pub(crate) fn is_transient(&self) -> bool {
        matches!(self, Self::Unreachable { .. }) || self.may_have_been_received()
    }

    /// Reports whether the broker may have received and executed the call although it did not answer.
    pub(crate) fn may_have_been_received(&self) -> bool {
        matches!(self, Self::Lost { .. })
            || matches!(self, Self::Broker(status) if status.code() == Code::Unavailable)
    }
}

/// Writes the failure to stderr, if there is one, and returns the exit code. A reader that closed stdout is no
/// failure.
pub(crate) fn report(outcome: Result<(), Failure>, console: &mut Console) -> ExitCode {
    let Err(failure) = outcome else { return Exit::Done.into() };
    let exit = failure.exit();
    if exit != Exit::Done {
        console.note(&format!("error: {}", error_chain(&failure)));
    }
    exit.into()
}

fn exit_of(code: Code) -> Exit {
    match code {
        Code::Ok => Exit::Done,
        Code::PermissionDenied | Code::Unauthenticated => Exit::Denied,
        Code::NotFound => Exit::NotFound,
        Code::InvalidArgument | Code::OutOfRange => Exit::InvalidInput,
        Code::DeadlineExceeded => Exit::TimedOut,
        Code::Unavailable => Exit::Unreachable,
        Code::Cancelled
        | Code::Unknown
        | Code::AlreadyExists
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::Unimplemented
        | Code::Internal
        | Code::DataLoss => Exit::Other,
    }
}

fn attention_words(count: &usize) -> String {
    match count {
        1 => "1 problem needs attention".to_owned(),
        count => format!("{count} problems need attention"),
    }
}

/// Returns `field: problem; remedy` for each field that the broker refused, or its message.
fn status_words(status: &Status) -> String {
    let fields = status.get_details_bad_request().map(|details| details.field_violations).unwrap_or_default();
    let fields: Vec<_> =
        fields.iter().map(|field| format!("{}: {}", field.field, field.description)).collect();
    match (fields.is_empty(), status.message()) {
        (false, _) => printable(&fields.join("\n")),
        (true, "") => format!("the broker answered {:?} without a message", status.code()),
        (true, message) => printable(message),
    }
}

#[cfg(test)]
mod tests;
