//! The client-side rates of EC2's actions, below those that EC2 allows.
//!
//! EC2 meters each account and Region with a bucket of tokens for every action (EC2 API reference, "Request
//! throttling"). For reads Postern's buckets hold half of what EC2's do: consoles, scripts and other brokers
//! draw from the same. The end of a window must not wait for them: for changes Postern's buckets hold nine
//! tenths, and fill as fast.

use postern_provider::kit::{Buckets, Rate};

/// The kinds of action. Each action has its own bucket, of its kind's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
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

/// The buckets of one account in one Region, by the kind and the name of the action.
pub(crate) type ActionBuckets = Buckets<(ActionKind, &'static str)>;

/// Creates full buckets.
pub(crate) fn buckets() -> ActionBuckets {
    Buckets::new(|(kind, _): &(ActionKind, &str)| kind.rate())
}

impl ActionKind {
    fn rate(self) -> Rate {
        let (at_once, per_second) = match self {
            Self::Describe => (50, 10),
            Self::DescribeAll => (25, 5),
            Self::ModifyInterface => (90, 5),
            Self::Tag => (90, 10),
            Self::Change => (45, 5),
        };
        Rate { at_once, per_second }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_over_the_rate_of_one_action_waits_and_the_others_do_not() {
        let buckets = buckets();
        for (kind, tokens, action, other) in [
            (ActionKind::Change, 45, "RevokeSecurityGroupIngress", "AuthorizeSecurityGroupIngress"),
            (ActionKind::Describe, 50, "DescribeSecurityGroups", "DescribeNetworkInterfaces"),
            (ActionKind::DescribeAll, 25, "DescribeSecurityGroups", "DescribeNetworkInterfaces"),
            (ActionKind::Tag, 90, "CreateTags", "DeleteTags"),
        ] {
            let has_one = |action| buckets.try_take(&(kind, action));
            assert!((0..tokens).all(|_| has_one(action)), "{action}");
            assert!(!has_one(action), "the bucket of {action} is empty");
            assert!(has_one(other), "{other} has one of its own");
        }
    }
}
