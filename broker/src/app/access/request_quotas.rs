//! The quotas that a broker keeps, with the requests of each principal in the last minute.

use std::sync::{Mutex, PoisonError};

use crate::app::{Caller, QuotaExceeded};
use crate::clock::boottime;
use crate::limits::{Buckets, Owner, Quotas};

/// The most principals whose requests are counted apart. They are far more than request within a minute, and take some megabytes.
const MAX_REQUESTERS: usize = 16_384;

/// The quotas, and the requests of each principal in the last minute.
#[derive(Debug)]
pub struct RequestQuotas {
    pub(super) quotas: Quotas,
    requests: Mutex<Buckets>,
}

impl RequestQuotas {
    /// Begins with these quotas.
    pub fn new(quotas: &Quotas) -> Self {
        let requests = Mutex::new(Buckets::per_minute(quotas.requests_per_minute, MAX_REQUESTERS));
        Self { quotas: quotas.clone(), requests }
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
