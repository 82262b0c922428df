//! Readiness: whether this broker can do its work, and why not.
//!
//! Each part that keeps the broker from its work sets a reason under its own name ([`crate::signals::parts`]), and clears it
//! again. The broker is ready while no part has a reason. The gRPC health service, `/readyz`, the metrics and the other brokers
//! all show the same reasons.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::join;
use postern_runtime::error_chain::error_chain;
use postern_store::{RoomStatus, Store};
use tokio::sync::watch;

use crate::clock::boottime;
use crate::signals::parts::{RECONCILER, Reasons, STORE};
use crate::signals::rounds::{RoundReporter, Rounds, Task};
use crate::telemetry;

/// The time limit of one round of the reconciler's loop; it goes round at least every 5 s.
const MAX_ROUND: Duration = Duration::from_secs(30);
/// The pause between two checks.
pub const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// The time limit of the store's answer.
const STORE_TIMEOUT: Duration = Duration::from_secs(3);

/// Returns each reason with its part, in a line.
pub fn in_words(reasons: &Reasons) -> Vec<String> {
    reasons.iter().map(|(part, why)| format!("{part}: {why}")).collect()
}

/// The reasons for which this broker is not ready. Cheap to clone; all clones agree.
#[derive(Debug, Clone)]
pub struct Readiness {
    reasons: Arc<watch::Sender<Reasons>>,
    /// What this broker lacks without being unready.
    shortages: Arc<Mutex<Reasons>>,
}

impl Default for Readiness {
    /// Not ready: no part was checked yet.
    fn default() -> Self {
        let reasons = Reasons::from([
            (STORE, "it was not asked yet".to_owned()),
            (RECONCILER, "it has not gone round yet".to_owned()),
        ]);
        Self { reasons: Arc::new(watch::Sender::new(reasons)), shortages: Arc::default() }
    }
}

impl Readiness {
    /// Sets the reason for which a part keeps the broker from its work.
    pub fn set(&self, part: &'static str, why: impl Into<String>) {
        let why = why.into();
        self.change(part, Some(why));
    }

    /// Clears a part's reason.
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
        telemetry::ready(&self.reasons());
        match why {
            // Another reason of the same part is shown, and is no new trouble.
            Some(_) if before.is_some() => {}
            Some(why) => tracing::warn!(part, why, "not ready"),
            None if self.is_ready() => tracing::info!(part, "ready"),
            None => {}
        }
    }

    /// Returns the reason of each part; empty if the broker is ready.
    pub fn reasons(&self) -> Reasons {
        self.reasons.borrow().clone()
    }

    /// Returns what each part lacks without keeping the broker from its work: a broker whose store is low on space grants
    /// nothing, and must still be reached by revocations.
    pub fn shortages(&self) -> Reasons {
        self.shortages.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sets or clears what a part lacks.
    pub fn set_shortage(&self, part: &'static str, what: Option<String>) {
        let mut shortages = self.shortages.lock().unwrap_or_else(PoisonError::into_inner);
        match what {
            Some(what) if shortages.insert(part, what.clone()).is_none() => {
                tracing::warn!(
                    event = "part.short",
                    part,
                    what,
                    "the broker is short of something, grants nothing, and still closes"
                );
            }
            None if shortages.remove(part).is_some() => {
                tracing::info!(
                    event = "part.no_longer_short",
                    part,
                    "the broker is no longer short of anything"
                );
            }
            Some(_) | None => {}
        }
    }

    /// Reports whether the broker can do its work.
    pub fn is_ready(&self) -> bool {
        self.reasons.borrow().is_empty()
    }

    /// Receives every change.
    pub fn watch(&self) -> watch::Receiver<Reasons> {
        self.reasons.subscribe()
    }
}

/// Reports whether the reconciler's loop goes round.
pub fn goes_round(rounds: &Rounds) -> bool {
    rounds.age(Task::Reconciler, boottime()).is_some_and(|age| age < MAX_ROUND)
}

/// Checks the store and the reconciler, until the process ends.
///
/// # Errors
/// Never: what fails is a reason.
pub async fn keep_checking(
    readiness: Readiness,
    store: Store,
    rounds: Arc<Rounds>,
    reporter: RoundReporter,
) -> anyhow::Result<()> {
    join(check_store(&readiness, &store, &reporter), check_reconciler(&readiness, &rounds)).await;
    Ok(())
}

async fn check_store(readiness: &Readiness, store: &Store, reporter: &RoundReporter) {
    loop {
        let answer = match tokio::time::timeout(STORE_TIMEOUT, store.audit_head()).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(error_chain(&error).replace('\n', " ")),
            Err(_) => Err(format!("it did not answer within {} s", STORE_TIMEOUT.as_secs())),
        };
        match &answer {
            Ok(()) => readiness.clear(STORE),
            Err(why) => readiness.set(STORE, why.clone()),
        }
        check_room(readiness, store).await;
        reporter.report(boottime(), answer);
        tokio::time::sleep(CHECK_INTERVAL).await;
    }
}

async fn check_room(readiness: &Readiness, store: &Store) {
    // A store that does not answer is a reason of its own already.
    let Ok(room) = tokio::time::timeout(STORE_TIMEOUT, store.room()).await else { return };
    telemetry::store_room(room.as_ref());
    readiness.set_shortage(STORE, room.filter(RoomStatus::is_low).map(|room| room.to_string()));
}

async fn check_reconciler(readiness: &Readiness, rounds: &Rounds) {
    loop {
        let goes_round = goes_round(rounds);
        if goes_round {
            readiness.clear(RECONCILER);
        } else if rounds.age(Task::Reconciler, boottime()).is_some() {
            // The age itself would be a new reason at each check.
            let limit = MAX_ROUND.as_secs();
            readiness.set(RECONCILER, format!("it has not gone round for {limit} s"));
        }
        // The first round is moments away when a broker starts.
        tokio::time::sleep(if goes_round { CHECK_INTERVAL } else { CHECK_INTERVAL / 20 }).await;
    }
}

#[cfg(test)]
mod tests {
    use postern_store::testing::memory::Memory;
    use postern_store::{Medium, Reserve, Room};

    use super::*;
    use crate::signals::parts::{ENDING, MEMBERSHIP};
    use crate::testing::reporter;

    async fn becomes(readiness: &Readiness, wanted: bool) -> Reasons {
        let mut watch = readiness.watch();
        let changed = watch.wait_for(|reasons| reasons.is_empty() == wanted);
        tokio::time::timeout(Duration::from_secs(10), changed)
            .await
            .expect("it comes to that")
            .unwrap()
            .clone()
    }

    #[tokio::test(start_paused = true)]
    async fn a_broker_is_ready_once_every_part_was_seen_to_work() {
        let (readiness, rounds) = (Readiness::default(), Arc::new(Rounds::default()));
        let reconciler = rounds.reporter(Task::Reconciler, None, boottime());
        let checking = keep_checking(
            readiness.clone(),
            Memory::default().store(),
            Arc::clone(&rounds),
            reporter(Task::Readiness),
        );
        assert_eq!(readiness.reasons().keys().copied().collect::<Vec<_>>(), [RECONCILER, STORE]);
        let story = async {
            // Whatever the result: a round that failed has gone round.
            reconciler.failed(boottime(), "a test");
            becomes(&readiness, true).await;
            reconciler.succeeded(boottime() - MAX_ROUND);
            assert_eq!(becomes(&readiness, false).await[RECONCILER], "it has not gone round for 30 s");
        };
        tokio::select! {
            _ = checking => panic!("it ended"),
            () = story => {}
        }
    }

    #[tokio::test]
    async fn i10_a_store_that_is_low_on_space_is_shown_and_the_broker_stays_ready_for_revocations() {
        let (readiness, memory) = (Readiness::default(), Memory::default());
        readiness.clear(RECONCILER);
        readiness.clear(STORE);
        for (free, is_low) in [(1 << 20, true), (1 << 30, false)] {
            memory.set_room(Some(Room { medium: Medium::Disk, free, size: 1 << 40 }));
            check_room(&readiness, &memory.store().keeping(Reserve::default())).await;
            let shortages = readiness.shortages();
            assert_eq!(shortages.get(STORE).is_some_and(|what| what.contains("less than 64 MiB")), is_low);
            assert!(readiness.is_ready());
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
    fn a_reason_that_did_not_change_is_not_sent_again() {
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
