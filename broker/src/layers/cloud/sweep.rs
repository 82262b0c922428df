//! The sweep: every target that Postern manages in every cloud, read from the clouds' own state, at the start and from time to
//! time.
//!
//! It finds windows that the store does not know of (I2) and changes by other principals, and only says where to look: the
//! reconciler asks the store what each of these targets must hold, and the driver closes the windows that no grant wants.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use postern_core::TargetId;
use postern_core::audit::AuditEvent;
use postern_core::target::CloudKind;
use postern_provider::{CloudError, Hidden, Sighting, SweepReport, Unread};
use postern_store::coordination::Claim;
use rand::Rng as _;

use super::CloudLayer;
use crate::clock::boottime;
use crate::signals::rounds::RoundReporter;
use crate::telemetry;

/// The number of leases that are asked for at once.
const MAX_CONCURRENT_CLAIMS: usize = 64;
/// The time limit of a sweep.
const SWEEP_TIMEOUT: Duration = Duration::from_secs(1800);

impl CloudLayer {
    /// Sweeps now and once in every period, until the process ends.
    ///
    /// # Errors
    /// Never: what cannot be read is read the next time.
    pub async fn keep_sweeping(
        self: Arc<Self>,
        every: Duration,
        reporter: RoundReporter,
    ) -> anyhow::Result<()> {
        let mut unread = BTreeMap::new();
        loop {
            let mut result = Ok(());
            for kind in self.providers.keys() {
                let failure = self.sweep(*kind, unread.entry(*kind).or_default()).await;
                result = result.and(failure.map_or(Ok(()), Err));
            }
            reporter.report(boottime(), result);
            // Brokers that were started together do not sweep together.
            let jitter = rand::rng().random_range(0.9..1.1);
            tokio::time::sleep(every.mul_f64(jitter)).await;
        }
    }

    /// Sweeps one cloud. `unread` are the accounts and regions that the last sweep could not read.
    /// Returns the first place that it could not read, with the reason.
    pub(crate) async fn sweep(&self, kind: CloudKind, unread: &mut BTreeSet<String>) -> Option<String> {
        let provider = self.providers.get(&kind)?;
        let before = self.rounds();
        let began = self.clock.now();
        let late = Unread {
            place: format!("{kind:?}"),
            error: CloudError::unavailable(format!(
                "the sweep did not finish within {} s",
                SWEEP_TIMEOUT.as_secs()
            )),
            hides: Hidden::Everything,
        };
        let SweepReport { sightings, unread: places, given_back } =
            tokio::time::timeout(SWEEP_TIMEOUT, provider.sweep())
                .await
                .unwrap_or_else(|_| SweepReport { unread: vec![late], ..SweepReport::default() });
        let now = self.clock.now();
        self.record(
            given_back
                .into_iter()
                .map(|what| AuditEvent::done(now, "broker", "cloud.given_back").with("what", what)),
        );
        let took = self.clock.now().duration_since(began);
        metrics::histogram!(telemetry::CLOUD_SWEEP).record(took.as_secs_f64());
        tracing::debug!(?kind, targets = sightings.len(), "swept");

        let seen: BTreeSet<TargetId> = sightings.iter().map(|sighting| sighting.target.clone()).collect();
        let sighted = stream::iter(sightings).map(|sighting| async {
            let is_here = self.is_here(&sighting.target).await;
            (sighting, is_here)
        });
        let mut sighted = std::pin::pin!(sighted.buffer_unordered(MAX_CONCURRENT_CLAIMS));
        while let Some((sighting, is_here)) = sighted.next().await {
            if is_here {
                self.sighted(sighting, &before);
            } else {
                self.let_go(&sighting.target);
            }
        }
        self.look_for_the_unseen(kind, &seen, &places, &before);
        let failure =
            places.first().map(|Unread { place, error, .. }| format!("cannot read {place}: {error}"));
        self.record_unread(places, unread);
        failure
    }

    /// Reports whether this broker works on the target, or no broker is known to: each broker sweeps for itself, and one repairs
    /// and records what is amiss. If the store cannot say which, every broker closes what has ended (I2).
    async fn is_here(&self, target: &TargetId) -> bool {
        match self.leases.hold(target, Claim::Free).await {
            Ok(held) => held.is_some(),
            Err(_) => true,
        }
    }

    pub(super) fn sighted(&self, Sighting { target, held }: Sighting, before: &BTreeMap<TargetId, u64>) {
        let now = self.clock.now();
        let mut states = self.lock();
        let state = states.entry(target.clone()).or_default();
        // A round since then is newer than the sighting, and a target that fails is looked at anyway.
        let is_newer = state.busy || state.rounds != before.get(&target).copied().unwrap_or(0);
        if is_newer || state.failure.is_some() && !state.is_gone() {
            return;
        }
        let events = match held {
            // Clouds show old state for a while after a change: a look at this target decides.
            Some(observation)
                if state.observed.as_ref().is_some_and(|known| {
                    *known != observation.windows || state.partial != observation.partial
                }) =>
            {
                state.doubt();
                Vec::new()
            }
            Some(observation) => {
                state.failure = None;
                state.looked(&target, observation, now)
            }
            None => {
                state.left_behind();
                Vec::new()
            }
        };
        drop(states);
        self.record(events);
        self.wakeups.wake(&target);
        self.notify.notify_one();
    }

    /// Has each target looked at on which a window is or should be open, and of which the sweep saw nothing although it could
    /// read the place of the target.
    fn look_for_the_unseen(
        &self,
        kind: CloudKind,
        seen: &BTreeSet<TargetId>,
        unread: &[Unread],
        before: &BTreeMap<TargetId, u64>,
    ) {
        let mut states = self.lock();
        for (target, state) in states.iter_mut().filter(|(target, _)| target.cloud() == Some(kind)) {
            let is_unchanged = before.get(target) == Some(&state.rounds) && !state.busy;
            let is_hidden = unread.iter().any(|place| place.may_hide(target));
            if is_unchanged && !is_hidden && !seen.contains(target) {
                state.drift.clear();
                let wants_windows = state.desired.as_ref().is_some_and(|desired| !desired.is_empty());
                let is_open = !state.partial.is_empty()
                    || !state.strays.is_empty()
                    || state.observed.as_ref().is_some_and(|observed| !observed.is_empty());
                if wants_windows || is_open || !state.known.is_empty() {
                    state.observed = None;
                } else if state.failure.is_none() {
                    state.observed = Some(BTreeSet::new());
                }
                state.last_seen = Some(self.clock.now());
            }
        }
        drop(states);
        self.notify.notify_one();
    }

    fn record_unread(&self, places: Vec<Unread>, unread: &mut BTreeSet<String>) {
        metrics::gauge!(telemetry::CLOUD_UNREAD).set(u32::try_from(places.len()).unwrap_or(u32::MAX));
        let now = self.clock.now();
        let mut still = BTreeSet::new();
        for Unread { place, error, .. } in places {
            if !unread.contains(&place) {
                tracing::error!(%place, %error, "the sweep could not read this account or region; its last known state is kept");
                let event = AuditEvent::done(now, "broker", "cloud.unread").with("place", &place);
                self.record([event.with("error", error)]);
            }
            still.insert(place);
        }
        *unread = still;
    }

    /// Returns the number of rounds on each target so far.
    pub(super) fn rounds(&self) -> BTreeMap<TargetId, u64> {
        self.lock().iter().map(|(target, state)| (target.clone(), state.rounds)).collect()
    }
}
