//! Identity: the certificate authority, enrolment, and the TLS configurations of broker, agents and commands.
//!
//! Every certificate of Postern carries exactly one SPIFFE id, which the authority writes and never takes from a request. A
//! program does not start with a private key that other users can read.

pub mod authority;
pub mod checkpoint;
pub mod credentials;
mod error;
mod facts;
mod files;
pub mod identity;
pub mod join;
pub mod life;
pub mod purpose;
pub mod renewal;
pub mod succession;
pub mod tls;
mod vouching;

pub use authority::{Authority, Issued};
pub use checkpoint::{CheckpointError, CheckpointTrust, LogVerifier, SignedCheckpoint};
pub use credentials::{Credentials, KeyPair};
pub use error::PkiError;
pub use facts::CertificateFacts;
pub use identity::{SpiffeId, SpiffeIdError, TrustDomain};
pub use join::{Fingerprint, JoinToken};
