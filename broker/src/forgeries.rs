//! Tells operators of forged records: records in the store that no broker with this records key wrote.
//!
//! The store leaves such a record out, or refuses the read ([`postern_store::Forgeries`]). Each round here counts the reads that met
//! one, and logs and audits each forged record once; the status of this broker shows them until it ends.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use postern_core::audit::AuditEvent;
use postern_runtime::error_chain::error_chain;
use postern_store::{Store, StoreError, Transaction};

use crate::clock::{Clock, boottime};
use crate::cluster::Cluster;
use crate::layers::cloud::CloudLayer;
use crate::layers::host::sessions::AgentSessions;
use crate::policies_seen::PoliciesSeen;
use crate::signals::Wakeups;
use crate::signals::rounds::RoundReporter;
use crate::telemetry;

/// The words for policies that are older than those of the agents.
const WENT_BACK: &str = "the policies in the store are older than those that agents have followed: the store went back, and hosts drop no \
    protected port; check the policies, and apply one again with `postern policy apply`";

/// The interval of the rounds.
pub const REPORT_INTERVAL: Duration = Duration::from_secs(1);
/// The rounds after which the policies are checked.
const ROUNDS_BETWEEN_CHECKS: u32 = 5;
/// The most records that one round logs and audits; the others wait for the next.
const MAX_REPORTED: usize = 10;

/// Reports what the store meets.
pub struct ForgeryReporter {
    /// The store.
    pub store: Store,
    /// The newest policies that this broker has seen.
    pub seen: Arc<PoliciesSeen>,
    /// The agents that are connected here.
    pub sessions: Arc<AgentSessions>,
    /// The targets on which this broker works.
    pub cluster: Arc<Cluster>,
    /// The cloud layer.
    pub cloud: Arc<CloudLayer>,
    /// Wakes the reconciler.
    pub wakeups: Arc<Wakeups>,
    /// The broker's clock.
    pub clock: Clock,
}

impl ForgeryReporter {
    /// Reports until the process ends.
    ///
    /// # Errors
    /// Never: what could not be recorded is tried again.
    pub async fn keep_reporting(self, reporter: RoundReporter) -> anyhow::Result<()> {
        let (mut rounds, mut logged) = (0_u32, BTreeSet::new());
        loop {
            let reported =
                report(&self.store, self.clock, &mut logged).await.map_err(|error| error_chain(&error));
            let seen = self.seen.look(&self.store).await.map_err(|error| format!("{error:#}"));
            rounds = (rounds + 1) % ROUNDS_BETWEEN_CHECKS;
            if rounds == 1 && check_policies(&self.store).await {
                // The targets of a forged policy are not known.
                self.cluster.wake_own_targets(&self.wakeups, &self.sessions, &self.cloud);
            }
            reporter.report(boottime(), reported.and(seen));
            tokio::time::sleep(REPORT_INTERVAL).await;
        }
    }
}

/// Shows whether the policies are those that were kept last, and no older than those that this broker has seen and agents have
/// followed. Returns whether that has changed.
async fn check_policies(store: &Store) -> bool {
    let trouble = match store.policies().await {
        Err(error @ (StoreError::Forged { .. } | StoreError::PoliciesLost { .. })) => Some(error.to_string()),
        // A store that does not answer is shown as that.
        Err(_) => return false,
        Ok(_) => match store.went_back_behind_agents().await {
            Ok(false) => None,
            Ok(true) => Some(WENT_BACK.to_owned()),
            Err(_) => return false,
        },
    };
    let what = trouble.clone().unwrap_or_default();
    let has_changed = store.forgeries().set_policies(trouble);
    if has_changed {
        if what.is_empty() {
            tracing::info!(event = "policies.current", "the policies are those that were kept last");
        } else {
            tracing::error!(
                event = "policies.went_back",
                what,
                "the store has lost policies or brought old ones back"
            );
        }
    }
    has_changed
}

/// Counts, logs and audits what the store has met since the last round. `logged` has those that are in the log and wait for their audit
/// record: a store that is full hides no forgery from the operator, and fills no log with it.
///
/// # Errors
/// The audit log cannot be written; the next round tries again.
async fn report(store: &Store, clock: Clock, logged: &mut BTreeSet<String>) -> Result<(), StoreError> {
    let mut met = store.forgeries().take();
    telemetry::forged_records_met(met.reads);
    store.forgeries().give_back(met.names.split_off(met.names.len().min(MAX_REPORTED)));
    if met.names.is_empty() {
        return Ok(());
    }
    for what in &met.names {
        if logged.insert(what.clone()) {
            tracing::error!(
                event = "store.forged",
                record = what,
                "the store has a record that no broker with this ca/records.key wrote; it counts for nothing"
            );
        }
    }
    let event =
        |what: &String| AuditEvent::denied(clock.now(), "broker", "store.forged").with("record", what);
    let transaction = met.names.iter().map(event).fold(Transaction::default(), Transaction::audit);
    if let Err(error) = store.commit(transaction.giving_way()).await {
        store.forgeries().give_back(met.names);
        return Err(error);
    }
    for what in &met.names {
        logged.remove(what);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use postern_core::Grant;
    use postern_store::Expect;
    use postern_store::testing::memory::{Fault, Memory};
    use tracing::Level;

    use super::*;
    use crate::testing::builders::{a_grant, at};
    use crate::testing::captured_log::capture_log;

    #[tokio::test]
    async fn i9_a_forged_record_is_logged_counted_and_audited_once() {
        let recorder = telemetry::recorder().unwrap();
        let _metrics = metrics::set_default_local_recorder(&recorder);
        telemetry::begin();
        let (logged, _log) = capture_log(Level::ERROR);
        let (store, clock) = (Memory::default(), Clock::start(at(0)));
        let grant = a_grant().build();
        let event = AuditEvent::done(at(0), "a test", "tested");
        let put = Transaction::default().put_grant(grant.clone(), Expect::Absent).audit(event);
        let seq = store.commit(put).await.unwrap().seq;
        store.tamper(<Grant as postern_store::Record>::KIND, &grant.id.to_string(), |text| {
            text.replace("alice", "mallory")
        });
        assert!(matches!(store.grant(grant.id).await, Err(StoreError::Forged { .. })));
        assert!(store.open_grants().await.unwrap().is_empty());
        store.fail_next([Fault::Before]);
        let mut waiting = BTreeSet::new();
        report(&store, clock, &mut waiting).await.unwrap_err();
        assert_eq!(logged.text().matches("store.forged").count(), 1, "also while the store takes no record");
        for _ in 0..3 {
            assert!(store.open_grants().await.unwrap().is_empty());
            report(&store, clock, &mut waiting).await.unwrap();
        }
        assert_eq!(waiting, BTreeSet::new());
        let lines = store.audit_lines(seq, 10).await.unwrap();
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].1.contains("store.forged") && lines[0].1.contains(&grant.id.to_string()));
        assert_eq!(logged.text().matches("store.forged").count(), 1, "{}", logged.text());
        let scrape = recorder.handle().render();
        assert!(scrape.contains("postern_store_forged_total 5"), "{scrape}");
        assert!(store.forgeries().summary().unwrap().contains(&grant.id.to_string()));
    }
}
