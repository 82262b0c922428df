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

use crate::body::from_body;
use crate::kind::Kind;
use crate::record::Record;

/// A sealed kind, for the one time at which a store without seals is sealed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SealedKind {
    pub(crate) kind: Kind,
    /// Reports whether a text is a record of the kind: others are not sealed.
    pub(crate) reads: fn(&str) -> bool,
}

const fn sealed<R: Record>() -> SealedKind {
    SealedKind { kind: R::KIND, reads: |text| from_body::<R>(R::KIND.noun, text).is_ok() }
}

/// The sealed kinds.
pub(crate) const SEALED: [SealedKind; 9] = [
    sealed::<Policy>(),
    sealed::<manifest::PolicyManifest>(),
    sealed::<agent::AgentRecord>(),
    sealed::<token::TokenRecord>(),
    sealed::<Grant>(),
    sealed::<request::RequestRecord>(),
    sealed::<revocation::Revocation>(),
    sealed::<issued::IssuedPrincipal>(),
    sealed::<intermediate::RevokedIntermediate>(),
];
