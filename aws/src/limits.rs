//! Staying under the rates that EC2 allows, so that a sweep of thousands of instances takes nobody's calls away.
//!
//! EC2 meters each account and Region with a bucket of tokens for every action (EC2 API reference, "Request
//! throttling"). For reads ours hold half of what those do: consoles, scripts and other brokers draw from the same. A
//! window's end does not wait for others: for changes ours are as large as EC2's.

use std::num::NonZeroU32;

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};

/// Kinds of action, each with its own buckets at EC2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `Describe*` with a filter or ids: 100 tokens, 20 a second.
    Describe,
    /// `Describe*` without: 50 tokens, 10 a second.
    DescribeAll,
    /// `AuthorizeSecurityGroupIngress`: 50 tokens, 5 a second.
    Authorize,
    /// `RevokeSecurityGroupIngress`: 50 tokens, 5 a second.
    Revoke,
    /// `ModifyNetworkInterfaceAttribute`: 100 tokens, 5 a second.
    ModifyInterface,
    /// `CreateTags` and `DeleteTags`: 100 tokens, 10 a second.
    Tag,
    /// What else changes something: 50 tokens, 5 a second.
    Change,
}

/// The buckets of one account in one Region.
pub(crate) struct Limits {
    describe: DefaultDirectRateLimiter,
    describe_all: DefaultDirectRateLimiter,
    authorize: DefaultDirectRateLimiter,
    revoke: DefaultDirectRateLimiter,
    modify_interface: DefaultDirectRateLimiter,
    tag: DefaultDirectRateLimiter,
    change: DefaultDirectRateLimiter,
}

impl Limits {
    /// Full buckets.
    pub(crate) fn new() -> Self {
        let bucket = |capacity: u32, per_second: u32| {
            let number = |number: u32| NonZeroU32::new(number).unwrap_or(NonZeroU32::MIN);
            RateLimiter::direct(Quota::per_second(number(per_second)).allow_burst(number(capacity)))
        };
        Self {
            describe: bucket(50, 10),
            describe_all: bucket(25, 5),
            authorize: bucket(50, 5),
            revoke: bucket(50, 5),
            modify_interface: bucket(100, 5),
            tag: bucket(100, 10),
            change: bucket(50, 5),
        }
    }

    /// Waits for a token.
    pub(crate) async fn take(&self, kind: Kind) {
        let bucket = match kind {
            Kind::Describe => &self.describe,
            Kind::DescribeAll => &self.describe_all,
            Kind::Authorize => &self.authorize,
            Kind::Revoke => &self.revoke,
            Kind::ModifyInterface => &self.modify_interface,
            Kind::Tag => &self.tag,
            Kind::Change => &self.change,
        };
        bucket.until_ready().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_over_the_rate_of_one_action_waits_and_the_others_do_not() {
        let limits = Limits::new();
        assert!((0..50).all(|_| limits.revoke.check().is_ok()));
        assert!(limits.revoke.check().is_err(), "the bucket is empty");
        assert!(limits.authorize.check().is_ok() && limits.describe.check().is_ok());
    }
}
