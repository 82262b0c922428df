//! The status of a call: its causes on one line, and whether it refuses this host's certificate.

use postern_runtime::error_chain::{causes, with_causes};
use rustls::AlertDescription;
use tonic::{Code, Status};

/// Returns a status with its causes on one line. Its own `Display` would print its metadata as well.
pub(crate) fn status_chain(status: &Status) -> String {
    let message = Some(status.message()).filter(|message| !message.is_empty());
    with_causes(message.unwrap_or(status.code().description()).to_owned(), status)
}

/// Reports whether the broker has refused this host's certificate because of its dates: the broker admits one that has ended to its
/// renewal, and past the grace to nothing.
pub(crate) fn is_certificate_refused(status: &Status) -> bool {
    status.code() == Code::Unauthenticated || is_past_grace(status)
}

/// Reports whether the connection failed, or was closed, before the broker could answer: a status that a broker sends has no cause here.
pub(crate) fn is_connection_lost(status: &Status) -> bool {
    std::error::Error::source(status).is_some()
}

/// Reports whether the broker has refused this host's certificate in the TLS handshake because of its dates.
pub(crate) fn is_past_grace(status: &Status) -> bool {
    // The HTTP/2 library hands the TLS error on as text only.
    let alert = rustls::Error::AlertReceived(AlertDescription::CertificateExpired).to_string();
    causes(status).any(|error| error.to_string().ends_with(&alert))
}
