//! The records of the broker, one file for each kind: its type, its key, its indexes, its changes and its queries.

pub(crate) mod agent;
pub(crate) mod grant;
pub(crate) mod intermediate;
pub(crate) mod issued;
pub(crate) mod policy;
pub(crate) mod request;
pub(crate) mod revocation;
pub(crate) mod token;
