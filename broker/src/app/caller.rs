//! The caller of a use case.

use std::net::IpAddr;

use postern_core::{Grant, Name, Principal, Role};
use postern_provider::CallerToken;

/// The key of an identity, unique among those of every authenticator.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PrincipalKey {
    /// The issuer of the identity.
    pub issuer: String,
    /// The identity's name at its issuer.
    pub subject: String,
}

/// A principal that makes a call, as an authenticator has established it.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The principal, as records hold it: its role and its name.
    pub principal: Principal,
    /// The issuer of its identity, and its subject there.
    pub key: PrincipalKey,
    /// The name for people.
    pub display_name: String,
    /// The address that the broker sees.
    pub address: Option<IpAddr>,
    /// The token that proves the caller to a cloud, if the call carries one.
    pub token: Option<CallerToken>,
}

impl Caller {
    /// Returns the name under which records hold the caller's grants and idempotency keys. It is unambiguous while one issuer
    /// makes every principal.
    pub fn record_name(&self) -> &Name {
        &self.principal.name
    }

    /// Reports whether the grant is the caller's own.
    pub fn owns(&self, grant: &Grant) -> bool {
        grant.principal.name == *self.record_name()
    }

    /// Reports whether the caller may see the grant: a requester sees its own grants, the other roles see all (I7).
    pub fn may_see(&self, grant: &Grant) -> bool {
        self.principal.role != Role::Requester || self.owns(grant)
    }
}
