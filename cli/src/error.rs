//! How a command ends: every failure, in words for people and as an exit code for scripts.

use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use postern_core::Invalid;
use postern_core::audit::{Broken, Hash};
use postern_pki::PkiError;
use postern_pki::identity::IdentityError;
use postern_proto::client::BadAddress;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::exit_code::Exit;
use crate::output::{Console, WriteError, printable};
use crate::policy_file::PolicyFileError;
use crate::settings::SettingsError;

/// Why a command did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The broker answered with an error.
    #[error("{}", status_words(.0))]
    Broker(Box<Status>),
    /// No connection could be made.
    #[error(
        "cannot reach the broker {address}: {cause}; check the address, the network, and that the broker runs"
    )]
    Unreachable {
        /// Its address.
        address: String,
        /// What went wrong at the bottom.
        cause: String,
    },
    /// The broker's answer did not come, or not whole.
    #[error(
        "lost the connection to the broker {address}: {cause}; check that the broker runs and accepts this certificate"
    )]
    Lost {
        /// Its address.
        address: String,
        /// What went wrong at the bottom.
        cause: String,
    },
    /// Something answered that does not prove to be the broker.
    #[error(
        "the server at {address} is not the broker that this identity trusts: {cause}; check the address and roots.pem"
    )]
    Untrusted {
        /// The address.
        address: String,
        /// What the proof lacks.
        cause: String,
    },
    /// The broker shows a certificate that has ended.
    #[error(
        "the broker's certificate has ended ({address}: {cause}); check this machine's clock, or have an operator run `postern-broker authority status` on the broker's machine"
    )]
    BrokerEnded {
        /// The broker's address.
        address: String,
        /// When it ended.
        cause: String,
    },
    /// The broker does not take the client's certificate.
    #[error("the broker {address} refuses this certificate: {cause}; ask an administrator for a new one")]
    CertificateRefused {
        /// Its address.
        address: String,
        /// The TLS alert, and the end of the certificate where that has passed.
        cause: String,
    },
    /// The broker answered with something that cannot be.
    #[error("the broker's answer is malformed: {what}; use the postern that matches the broker's version")]
    BadAnswer {
        /// What is wrong with it.
        what: String,
    },
    /// Input that cannot be what it should be.
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
        /// Its directory.
        dir: PathBuf,
        /// Why.
        #[source]
        source: PkiError,
    },
    /// The certificate names nobody who could ask for anything.
    #[error("the identity in {dir} is not a principal's; use one that `postern-broker issue` made")]
    NoPrincipal {
        /// Its directory.
        dir: PathBuf,
        /// Why, where the certificate cannot be read at all.
        #[source]
        source: Option<IdentityError>,
    },
    /// A request's answer never came: it may or may not have been heard.
    #[error(
        "the broker did not answer, so the request may have been accepted; retry with --idempotency-key {key} (it cannot create a second grant)"
    )]
    Unanswered {
        /// The key that it carried.
        key: String,
        /// Why no answer came.
        #[source]
        source: Box<Failure>,
    },
    /// A grant that will not become active.
    #[error("grant {grant} is {state}: {reason}")]
    NotActive {
        /// The grant.
        grant: String,
        /// Where it stands.
        state: &'static str,
        /// Why.
        reason: String,
    },
    /// An approver said no.
    #[error("grant {grant} was denied: {reason}")]
    Denied {
        /// The grant.
        grant: String,
        /// What they said.
        reason: String,
    },
    /// The wait was over first.
    #[error(
        "grant {grant} is still {state} after {waited}; the broker continues with it, see `postern show {grant}`"
    )]
    TimedOut {
        /// The grant.
        grant: String,
        /// Where it stands.
        state: &'static str,
        /// How long was waited.
        waited: String,
    },
    /// A lockdown or a release that did not do all that it was asked.
    #[error("{count} of {of} targets could not be {participle}; see the result for the reason")]
    NotDone {
        /// How many targets.
        count: usize,
        /// Of how many.
        of: usize,
        /// What they should be.
        participle: &'static str,
    },
    /// An assessment found what it was told to fail on.
    #[error(
        "{count} VMs expose management ports; see the result, and close the ports with `postern lockdown`"
    )]
    Unhealthy {
        /// How many VMs.
        count: usize,
    },
    /// An assessment that was told to fail could not look everywhere.
    #[error("{places} accounts, Regions or subscriptions could not be read; see the result")]
    Unread {
        /// How many accounts or Regions.
        places: usize,
    },
    /// A status that was told to fail on it found something.
    #[error("{}; see the result", attention_words(.count))]
    Attention {
        /// How many.
        count: usize,
    },
    /// The audit log is not as it was written.
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
    /// A local file cannot be read.
    #[error("cannot read {file}")]
    File {
        /// The file.
        file: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The result cannot be written.
    #[error(transparent)]
    Output(#[from] WriteError),
}

impl Failure {
    /// The code that scripts see.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Broker(status) => exit_of(status.code()),
            Self::Unreachable { .. }
            | Self::Lost { .. }
            | Self::Untrusted { .. }
            | Self::BrokerEnded { .. } => Exit::Unreachable,
            Self::CertificateRefused { .. } | Self::Denied { .. } | Self::Unhealthy { .. } => Exit::Denied,
            Self::Invalid(_) => Exit::InvalidInput,
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
            | Self::Output(_) => Exit::Other,
        }
    }

    /// Whether the broker is away for now, so that asking again may help.
    pub(crate) fn is_transient(&self) -> bool {
        matches!(self, Self::Unreachable { .. }) || self.may_have_been_received()
    }

    /// Whether the call may have done its work although no answer says so.
    pub(crate) fn may_have_been_received(&self) -> bool {
        matches!(self, Self::Lost { .. })
            || matches!(self, Self::Broker(status) if status.code() == Code::Unavailable)
    }
}

/// Writes the failure to stderr, if there is one, and gives the exit code. A reader that went away is no failure.
pub(crate) fn report(outcome: Result<(), Failure>, console: &mut Console) -> ExitCode {
    let Err(failure) = outcome else { return Exit::Done.into() };
    let exit = failure.exit();
    if exit != Exit::Done {
        console.note(&format!("error: {}", with_causes(&failure)));
    }
    exit.into()
}

/// The error and everything that caused it, the outermost first.
pub(crate) fn causes<'a>(
    error: &'a (dyn Error + 'static),
) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

/// The error and its causes on one line; no Display of ours repeats its source.
fn with_causes(failure: &Failure) -> String {
    causes(failure).map(ToString::to_string).collect::<Vec<_>>().join(": ")
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

/// `field: problem; remedy` for each field that the broker complains of, else its message.
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
