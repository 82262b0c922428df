//! Whether this broker can do its work, and why not: each part says so by a name of its own, and everyone who asks (the
//! gRPC health service, `/readyz`, the metrics) gets the same answer. A broker is ready while no part has a reason.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join;
use jiff::SignedDuration;
use tokio::sync::watch;

use crate::clock::Clock;
use crate::measure;
use crate::reconcile::Pulse;
use crate::store::{Store, StoreError};

/// The store does not answer.
pub const STORE: &str = "store";
/// The reconciler does not go round.
pub const RECONCILER: &str = "reconciler";
/// This broker is not a member of those on its store.
pub const MEMBERSHIP: &str = "membership";
/// A certificate of the authority is not valid: no agent and no person can connect.
pub const AUTHORITY: &str = "authority";
/// This broker was told to end.
pub const ENDING: &str = "ending";

/// How long the reconciler's loop may take for one round; it goes round at least every 5 s.
const ROUND: SignedDuration = SignedDuration::from_secs(30);
/// How often the parts are looked at.
const EVERY: Duration = Duration::from_secs(1);
/// How long the store may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// By the name of each part that keeps the broker from its work: why.
pub type Reasons = BTreeMap<&'static str, String>;

/// Each reason with its part, in a line.
pub fn in_words(reasons: &Reasons) -> Vec<String> {
    reasons.iter().map(|(part, why)| format!("{part}: {why}")).collect()
}

/// Why this broker is not ready, if it is not. Cheap to clone; all clones agree.
#[derive(Debug, Clone)]
pub struct Readiness {
    reasons: Arc<watch::Sender<Reasons>>,
}

impl Default for Readiness {
    /// Not ready: nothing was looked at yet.
    fn default() -> Self {
        let reasons = Reasons::from([
            (STORE, "it was not asked yet".to_owned()),
            (RECONCILER, "it has not gone round yet".to_owned()),
        ]);
        Self { reasons: Arc::new(watch::Sender::new(reasons)) }
    }
}

impl Readiness {
    /// A part keeps the broker from its work.
    pub fn set(&self, part: &'static str, why: impl Into<String>) {
        let why = why.into();
        self.change(part, Some(why));
    }

    /// A part keeps it no longer.
    pub fn clear(&self, part: &'static str) {
        self.change(part, None);
    }

    fn change(&self, part: &'static str, why: Option<String>) {
        let mut before = None;
        let changed = self.reasons.send_if_modified(|reasons| {
            before = match why.clone() {
                Some(why) => reasons.insert(part, why),
                None => reasons.remove(part),
            };
            before != why
        });
        if !changed {
            return;
        }
        measure::ready(&self.reasons());
        match why {
            // Another reason of the same part is news for whoever asks, and no new trouble.
            Some(_) if before.is_some() => {}
            Some(why) => tracing::warn!(part, why, "not ready"),
            None if self.is_ready() => tracing::info!(part, "ready"),
            None => {}
        }
    }

    /// Why it is not ready, by part; empty where it is.
    pub fn reasons(&self) -> Reasons {
        self.reasons.borrow().clone()
    }

    /// Whether it can do its work.
    pub fn is_ready(&self) -> bool {
        self.reasons.borrow().is_empty()
    }

    /// Hears every change.
    pub fn watch(&self) -> watch::Receiver<Reasons> {
        self.reasons.subscribe()
    }
}

/// Whether the reconciler's loop goes round.
pub fn goes_round(pulse: &Pulse, clock: Clock) -> bool {
    pulse.last().is_some_and(|last| clock.now().duration_since(last) < ROUND)
}

/// Looks at the store and at the reconciler, until the process ends.
///
/// # Errors
/// Never: what fails is a reason.
pub async fn keep_looking(
    readiness: Readiness,
    store: Arc<dyn Store>,
    pulse: Arc<Pulse>,
    clock: Clock,
) -> anyhow::Result<()> {
    join(look_at_store(&readiness, store.as_ref()), look_at_reconciler(&readiness, &pulse, clock)).await;
    Ok(())
}

async fn look_at_store(readiness: &Readiness, store: &dyn Store) {
    loop {
        match tokio::time::timeout(PATIENCE, store.audit_head()).await {
            Ok(Ok(_)) => readiness.clear(STORE),
            Ok(Err(error)) => readiness.set(STORE, chain(error)),
            Err(_) => readiness.set(STORE, format!("it did not answer within {} s", PATIENCE.as_secs())),
        }
        tokio::time::sleep(EVERY).await;
    }
}

async fn look_at_reconciler(readiness: &Readiness, pulse: &Pulse, clock: Clock) {
    loop {
        let goes_round = goes_round(pulse, clock);
        match pulse.last() {
            _ if goes_round => readiness.clear(RECONCILER),
            Some(last) => readiness.set(RECONCILER, format!("it has not gone round since {last}")),
            None => {}
        }
        // The first round is moments away when a broker starts.
        tokio::time::sleep(if goes_round { EVERY } else { EVERY / 20 }).await;
    }
}

/// An error with its causes, in one line.
fn chain(error: StoreError) -> String {
    format!("{:#}", anyhow::Error::from(error)).replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::store::memory::Memory;

    async fn becomes(readiness: &Readiness, wanted: bool) -> Reasons {
        let mut watch = readiness.watch();
        let heard = watch.wait_for(|reasons| reasons.is_empty() == wanted);
        tokio::time::timeout(Duration::from_secs(10), heard).await.expect("it comes to that").unwrap().clone()
    }

    #[tokio::test(start_paused = true)]
    async fn a_broker_is_ready_once_every_part_was_seen_to_work() {
        let (readiness, pulse) = (Readiness::default(), Arc::new(Pulse::default()));
        let clock = Clock::start(Timestamp::UNIX_EPOCH);
        let looking = keep_looking(readiness.clone(), Arc::new(Memory::default()), Arc::clone(&pulse), clock);
        assert_eq!(readiness.reasons().keys().copied().collect::<Vec<_>>(), [RECONCILER, STORE]);
        let story = async {
            pulse.beat(clock.now());
            becomes(&readiness, true).await;
            pulse.beat(clock.now() - ROUND);
            assert!(becomes(&readiness, false).await[RECONCILER].starts_with("it has not gone round since"));
        };
        tokio::select! {
            _ = looking => panic!("it ended"),
            () = story => {}
        }
    }

    #[test]
    fn every_part_has_its_own_reason() {
        let readiness = Readiness::default();
        readiness.clear(RECONCILER);
        readiness.clear(STORE);
        assert!(readiness.is_ready());
        readiness.set(STORE, "it failed");
        readiness.set(ENDING, "the broker is ending");
        readiness.clear(STORE);
        assert_eq!(readiness.reasons(), Reasons::from([(ENDING, "the broker is ending".to_owned())]));
    }

    #[test]
    fn what_did_not_change_is_not_told_again() {
        let readiness = Readiness::default();
        readiness.set(STORE, "it failed");
        let mut watch = readiness.watch();
        watch.mark_unchanged();
        readiness.set(STORE, "it failed");
        readiness.clear(MEMBERSHIP);
        assert!(!watch.has_changed().unwrap());
        readiness.clear(STORE);
        assert!(watch.has_changed().unwrap());
    }
}
