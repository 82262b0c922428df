//! EC2's meter: a bucket of tokens for each account, Region and action (EC2 API reference, "Request throttling").

use std::collections::HashMap;
use std::time::Instant;

use super::protocol::Call;

/// The buckets that were drawn from so far.
#[derive(Debug, Default)]
pub(super) struct Meter {
    buckets: HashMap<(String, String, String, bool), Bucket>,
    refused: usize,
}

#[derive(Debug)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Meter {
    /// Takes a token, if there is one.
    pub(super) fn admits(&mut self, call: &Call, now: Instant) -> bool {
        if !call.is_of_ec2() {
            return true;
        }
        let is_filtered = call.parameters.iter().any(|(key, _)| key.starts_with("Filter."));
        let (capacity, per_second) = size(&call.action, is_filtered);
        let key = (call.caller.clone(), call.region.clone(), call.action.clone(), is_filtered);
        let bucket = self.buckets.entry(key).or_insert(Bucket { tokens: capacity, at: now });
        let refilled = bucket.tokens + now.duration_since(bucket.at).as_secs_f64() * per_second;
        (bucket.tokens, bucket.at) = (refilled.min(capacity), now);
        let admits = bucket.tokens >= 1.0;
        if admits {
            bucket.tokens -= 1.0;
        } else {
            self.refused += 1;
        }
        admits
    }

    /// The number of calls that found no token.
    pub(super) fn refused(&self) -> usize {
        self.refused
    }
}

/// The capacity of an action's bucket, and what flows into it each second.
fn size(action: &str, is_filtered: bool) -> (f64, f64) {
    match action {
        "CreateTags" | "DeleteTags" => (100.0, 10.0),
        "ModifyNetworkInterfaceAttribute" => (100.0, 5.0),
        _ if action.starts_with("Describe") && is_filtered => (100.0, 20.0),
        _ if action.starts_with("Describe") => (50.0, 10.0),
        _ => (50.0, 5.0),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::clock::monotonic;

    #[test]
    fn a_bucket_empties_and_fills_again_and_is_one_actions_alone() {
        let call = |action: &str| Call {
            action: action.to_owned(),
            region: "eu-central-1".to_owned(),
            caller: "test".to_owned(),
            parameters: Vec::new(),
        };
        let (mut meter, start) = (Meter::default(), monotonic());
        let revoke = call("RevokeSecurityGroupIngress");
        assert!((0..50).all(|_| meter.admits(&revoke, start)));
        assert!(!meter.admits(&revoke, start) && meter.admits(&call("AuthorizeSecurityGroupIngress"), start));
        assert!(meter.admits(&revoke, start + Duration::from_millis(200)));
        assert_eq!(meter.refused(), 1);
    }
}
