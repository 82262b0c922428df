//! Client-side limits below the rates that EC2 allows, so that a sweep of thousands of instances leaves calls
//! to the account's other users.
//!
//! EC2 meters each account and Region with a bucket of tokens for every action (EC2 API reference, "Request
//! throttling"). For reads Postern's buckets hold half of what EC2's do: consoles, scripts and other brokers
//! draw from the same. The end of a window must not wait for them: for changes Postern's buckets hold nine
//! tenths, and fill as fast.

use std::num::NonZeroU32;

use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};

/// The kinds of action. Each action has its own bucket, of its kind's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ActionKind {
    /// `Describe*` with a filter or ids: 100 tokens, 20 a second.
    Describe,
    /// `Describe*` without: 50 tokens, 10 a second.
    DescribeAll,
    /// `ModifyNetworkInterfaceAttribute`: 100 tokens, 5 a second.
    ModifyInterface,
    /// `CreateTags` and `DeleteTags`: 100 tokens, 10 a second.
    Tag,
    /// Every other change: 50 tokens, 5 a second.
    Change,
}

/// Buckets of one size, one for each action.
type Buckets = DefaultKeyedRateLimiter<&'static str>;

/// The buckets of one account in one Region.
pub(crate) struct Limits {
    describe: Buckets,
    describe_all: Buckets,
    modify_interface: Buckets,
    tag: Buckets,
    change: Buckets,
}

impl Limits {
    /// Creates full buckets.
    pub(crate) fn new() -> Self {
        let buckets = |capacity: u32, per_second: u32| {
            let number = |number: u32| NonZeroU32::new(number).unwrap_or(NonZeroU32::MIN);
            RateLimiter::keyed(Quota::per_second(number(per_second)).allow_burst(number(capacity)))
        };
        Self {
            describe: buckets(50, 10),
            describe_all: buckets(25, 5),
            modify_interface: buckets(90, 5),
            tag: buckets(90, 10),
            change: buckets(45, 5),
        }
    }

    /// Waits for a token of an action.
    pub(crate) async fn take(&self, kind: ActionKind, action: &'static str) {
        self.buckets(kind).until_key_ready(&action).await;
    }

    fn buckets(&self, kind: ActionKind) -> &Buckets {
        match kind {
            ActionKind::Describe => &self.describe,
            ActionKind::DescribeAll => &self.describe_all,
            ActionKind::ModifyInterface => &self.modify_interface,
            ActionKind::Tag => &self.tag,
            ActionKind::Change => &self.change,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_over_the_rate_of_one_action_waits_and_the_others_do_not() {
        let limits = Limits::new();
        for (kind, tokens, action, other) in [
            (ActionKind::Change, 45, "RevokeSecurityGroupIngress", "AuthorizeSecurityGroupIngress"),
            (ActionKind::Describe, 50, "DescribeSecurityGroups", "DescribeNetworkInterfaces"),
            (ActionKind::DescribeAll, 25, "DescribeSecurityGroups", "DescribeNetworkInterfaces"),
            (ActionKind::Tag, 90, "CreateTags", "DeleteTags"),
        ] {
            let has_one = |action| limits.buckets(kind).check_key(&action).is_ok();
            assert!((0..tokens).all(|_| has_one(action)), "{action}");
            assert!(!has_one(action), "the bucket of {action} is empty");
            assert!(has_one(other), "{other} has one of its own");
        }
    }
}
