//! Identity: the certificate authority, enrolment, and the TLS configurations of broker, agents and commands.
//!
//! Every certificate of Postern carries exactly one SPIFFE id, written here and never taken from a request. Private keys
//! lie in files that only their owner can read, or nothing starts.

pub mod authority;
pub mod credentials;
mod error;
mod files;
pub mod identity;
pub mod join;
pub mod life;
pub mod renewal;
pub mod tls;

pub use authority::{Authority, Issued};
pub use credentials::{Credentials, KeyPair};
pub use error::PkiError;
pub use identity::{Identity, IdentityError, TrustDomain};
pub use join::{Fingerprint, JoinToken};
