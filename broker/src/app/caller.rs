//! The caller of a use case.

use std::net::IpAddr;

use postern_core::{Grant, Principal, Role};
use postern_provider::CallerToken;

use crate::limits::Owner;
use crate::principals::Issuance;

/// A principal that makes a call, as an authenticator has established it.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The principal, as records hold it.
    pub principal: Principal,
    /// The origin of the proof that the call shows.
    pub issuance: Issuance,
    /// The address that the broker sees.
    pub address: Option<IpAddr>,
    /// The address of another family at which this broker has seen the caller a moment ago, if the call proves it.
    pub other_address: Option<IpAddr>,
    /// The token that proves the caller to a cloud, if the call carries one.
    pub token: Option<CallerToken>,
}

impl Caller {
    /// Reports whether the grant is the caller's own, by the key of its principal.
    pub fn owns(&self, grant: &Grant) -> bool {
        grant.principal.key() == self.principal.key()
    }

    /// Reports whether the caller reads the clouds' own errors: they name accounts, rules and permissions, and a requester reads a
    /// plain reason in their place (I7).
    pub fn reads_cloud_errors(&self) -> bool {
        self.principal.role() != Role::Requester
    }

    /// Reports whether the caller may see the grant: a requester sees its own grants, the other roles see all (I7).
    pub fn may_see(&self, grant: &Grant) -> bool {
        self.principal.role() != Role::Requester || self.owns(grant)
    }
}

impl From<&Caller> for Owner {
    fn from(caller: &Caller) -> Self {
        Self::Principal(caller.principal.key().clone())
    }
}
