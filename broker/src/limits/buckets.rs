//! Token buckets by owner, with a bound on their number.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::time::Duration;

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};

use super::Owner;

/// The most owners whose refusals are counted apart.
pub(crate) const MAX_OWNERS: usize = 1_024;
/// The time in which an empty bucket fills up.
const FILL: Duration = Duration::from_secs(60);

/// A bucket of tokens for each owner. A bucket holds the tokens of one minute, and fills up within a minute.
#[derive(Debug)]
pub(crate) struct Buckets {
    per_minute: u32,
    most: usize,
    own: HashMap<Owner, Bucket>,
    shared: DefaultDirectRateLimiter,
    /// The time of the last look for buckets that are full again.
    tidied: Duration,
}

#[derive(Debug)]
struct Bucket {
    tokens: DefaultDirectRateLimiter,
    /// The time of the last call.
    last: Duration,
}

impl Buckets {
    /// Makes full buckets of so many tokens. At most so many owners have one of their own; all others share one.
    pub(crate) fn per_minute(per_minute: u32, most: usize) -> Self {
        Self { per_minute, most, own: HashMap::new(), shared: bucket(per_minute), tidied: Duration::ZERO }
    }

    /// Takes a token of the owner, and reports whether there was one. `now` is a count that never steps.
    pub(crate) fn take(&mut self, owner: &Owner, now: Duration) -> bool {
        if let Some(bucket) = self.own.get_mut(owner) {
            bucket.last = now;
            return bucket.tokens.check().is_ok();
        }
        if self.own.len() >= self.most {
            self.tidy(now);
        }
        if self.own.len() >= self.most {
            return self.shared.check().is_ok();
        }
        let tokens = bucket(self.per_minute);
        let passes = tokens.check().is_ok();
        self.own.insert(owner.clone(), Bucket { tokens, last: now });
        passes
    }

    /// Drops the buckets that are full again, at most once a second: a call of a further owner must stay cheap.
    fn tidy(&mut self, now: Duration) {
        if now.saturating_sub(self.tidied) >= Duration::from_secs(1) {
            self.tidied = now;
            self.own.retain(|_, bucket| now.saturating_sub(bucket.last) < FILL);
        }
    }
}

/// Makes a full bucket of the tokens of one minute.
pub(crate) fn bucket(per_minute: u32) -> DefaultDirectRateLimiter {
    RateLimiter::direct(Quota::per_minute(NonZeroU32::new(per_minute).unwrap_or(NonZeroU32::MIN)))
}

#[cfg(test)]
mod tests {
    use postern_core::TargetId;

    use super::*;

    fn owner(n: usize) -> Owner {
        Owner::Agent(format!("host:vm-{n}").parse::<TargetId>().unwrap())
    }

    #[test]
    fn i10_each_owner_has_its_own_tokens() {
        let mut buckets = Buckets::per_minute(3, MAX_OWNERS);
        let mut passed = |n| (0..10).filter(|_| buckets.take(&owner(n), Duration::ZERO)).count();
        assert_eq!([passed(1), passed(2), passed(1)], [3, 3, 0]);
    }

    #[test]
    fn i10_owners_past_the_bound_share_one_bucket_until_others_are_full_again() {
        let mut buckets = Buckets::per_minute(2, MAX_OWNERS);
        let start = Duration::from_secs(1_000);
        (0..MAX_OWNERS).for_each(|n| assert!(buckets.take(&owner(n), start)));
        let passed = (0..100).filter(|n| buckets.take(&owner(MAX_OWNERS + n), start)).count();
        assert_eq!((passed, buckets.own.len()), (2, MAX_OWNERS));
        assert!(buckets.take(&owner(MAX_OWNERS), start + FILL), "a bucket of its own");
        assert_eq!(buckets.own.len(), 1);
    }
}
