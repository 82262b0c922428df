//! The records of the broker, one file for each kind: its type, its key, its indexes, its changes and its queries.

pub(crate) mod agent;
pub(crate) mod grant;
pub(crate) mod intermediate;
pub(crate) mod issued;
pub(crate) mod manifest;
pub(crate) mod policy;
pub(crate) mod request;
pub(crate) mod revocation;
pub(crate) mod token;

use postern_core::{Grant, Policy};

use crate::kind::Kind;
use crate::record::Record as _;

/// The sealed kinds, for the one time at which a store without seals is sealed.
pub(crate) const SEALED: [Kind; 9] = [
    Policy::KIND,
    manifest::PolicyManifest::KIND,
    agent::AgentRecord::KIND,
    token::TokenRecord::KIND,
    Grant::KIND,
    request::RequestRecord::KIND,
    revocation::Revocation::KIND,
    issued::IssuedPrincipal::KIND,
    intermediate::RevokedIntermediate::KIND,
];
