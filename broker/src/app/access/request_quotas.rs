//! The quotas that a broker keeps, with the requests of each principal and the renewals of each agent in the last minute.

use std::sync::{Mutex, PoisonError};

use postern_core::TargetId;

use crate::app::{Caller, QuotaExceeded};
use crate::clock::boottime;
use crate::limits::{Buckets, Owner, Quotas, RENEWALS_PER_MINUTE};

/// The most principals whose requests are counted apart. They are far more than request within a minute, and take some megabytes.
const MAX_REQUESTERS: usize = 16_384;
/// The most agents whose renewals are counted apart: more than have a connection.
const MAX_RENEWERS: usize = 65_536;

/// The quotas, and the requests of each principal and the renewals of each agent in the last minute.
#[derive(Debug)]
pub struct RequestQuotas {
    pub(super) quotas: Quotas,
    requests: Mutex<Buckets>,
    renewals: Mutex<Buckets>,
}

impl RequestQuotas {
    /// Begins with these quotas.
    pub fn new(quotas: &Quotas) -> Self {
        let requests = Mutex::new(Buckets::per_minute(quotas.requests_per_minute, MAX_REQUESTERS));
        let renewals = Mutex::new(Buckets::per_minute(RENEWALS_PER_MINUTE, MAX_RENEWERS));
        Self { quotas: quotas.clone(), requests, renewals }
    }

    /// Counts a renewal of the certificate of this target's agent.
    ///
    /// # Errors
    /// The agent has made too many.
    pub(crate) fn count_renewal(&self, target: &TargetId) -> Result<(), QuotaExceeded> {
        let owner = Owner::from(target);
        if self.renewals.lock().unwrap_or_else(PoisonError::into_inner).take(&owner, boottime()) {
            return Ok(());
        }
        Err(QuotaExceeded {
            reason: "QUOTA_RENEWALS",
            message: format!(
                "the agent of {target} renews its certificate more than {RENEWALS_PER_MINUTE} times a minute; wait a minute"
            ),
        })
    }

    /// Counts a request of this caller.
    ///
    /// # Errors
    /// The caller has made too many.
    pub(super) fn count(&self, caller: &Caller) -> Result<(), QuotaExceeded> {
        let owner = Owner::from(caller);
        if self.requests.lock().unwrap_or_else(PoisonError::into_inner).take(&owner, boottime()) {
            return Ok(());
        }
        let limit = self.quotas.requests_per_minute;
        Err(QuotaExceeded {
            reason: "QUOTA_REQUESTS",
            message: format!(
                "you make more than {limit} requests a minute ([quotas] requests_per_minute); wait a minute"
            ),
        })
    }
}
