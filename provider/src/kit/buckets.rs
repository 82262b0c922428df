//! Client-side limits below the rates that a cloud allows.

use std::hash::Hash;
use std::num::NonZeroU32;

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};

use super::KeyedStates;

/// A rate of calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// The number of calls at once.
    pub at_once: u32,
    /// The number of calls each second after that.
    pub per_second: u32,
}

/// A bucket of tokens for each key, of the key's own rate: a sweep of thousands of machines leaves calls to the cloud's other
/// users. A key names what the cloud meters: an action, or a kind of action.
pub struct Buckets<K> {
    rate_of: Box<dyn Fn(&K) -> Rate + Send + Sync>,
    buckets: KeyedStates<K, DefaultDirectRateLimiter>,
}

impl<K: Clone + Eq + Hash> Buckets<K> {
    /// Creates full buckets.
    pub fn new(rate_of: impl Fn(&K) -> Rate + Send + Sync + 'static) -> Self {
        Self { rate_of: Box::new(rate_of), buckets: KeyedStates::default() }
    }

    /// Waits for a token of a key.
    pub async fn take(&self, key: &K) {
        self.bucket(key).until_ready().await;
    }

    /// Takes a token of a key if there is one, and reports whether there was.
    pub fn try_take(&self, key: &K) -> bool {
        self.bucket(key).check().is_ok()
    }

    fn bucket(&self, key: &K) -> std::sync::Arc<DefaultDirectRateLimiter> {
        self.buckets.of_or(key, || {
            let Rate { at_once, per_second } = (self.rate_of)(key);
            let number = |number: u32| NonZeroU32::new(number).unwrap_or(NonZeroU32::MIN);
            RateLimiter::direct(Quota::per_second(number(per_second)).allow_burst(number(at_once)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_over_the_rate_of_one_key_waits_and_the_others_do_not() {
        let buckets = Buckets::new(|key: &u32| Rate { at_once: *key, per_second: 1 });
        for key in [1, 3] {
            assert!((0..key).all(|_| buckets.try_take(&key)), "{key}");
            assert!(!buckets.try_take(&key), "the bucket of {key} is empty");
        }
    }

    #[tokio::test]
    async fn a_rate_of_nothing_lets_a_call_pass_each_second() {
        let buckets = Buckets::new(|(): &()| Rate { at_once: 0, per_second: 0 });
        buckets.take(&()).await;
        assert!(!buckets.try_take(&()));
    }
}
