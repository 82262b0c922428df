//! The sweep: every target of ours in every cloud, read from the clouds' own state, at the start and from time to time.
//!
//! It finds what the store does not know of (I2) and what somebody changed, and only says where to look: the reconciler
//! asks the store what each of these targets must hold, and the driver closes what nobody wants.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use postern_core::TargetId;
use postern_core::audit::AuditEvent;
use postern_core::target::CloudKind;
use postern_provider::{CloudError, Sighting, Sweep, Unread};
use rand::Rng as _;

use super::Clouds;
use crate::measure;
use crate::store::members::Claim;

/// How many leases are asked for at once.
const AT_ONCE: usize = 64;
/// How long a sweep may take.
const PATIENCE: Duration = Duration::from_secs(1800);

impl Clouds {
    /// Sweeps now and every so often, until the process ends.
    ///
    /// # Errors
    /// Never: what cannot be read is read the next time.
    pub async fn keep_sweeping(self: Arc<Self>, every: Duration) -> anyhow::Result<()> {
        let mut unread = BTreeMap::new();
        loop {
            for kind in self.providers.keys() {
                self.sweep(*kind, unread.entry(*kind).or_default()).await;
            }
            // Brokers that were started together do not sweep together.
            let jitter = rand::rng().random_range(0.9..1.1);
            tokio::time::sleep(every.mul_f64(jitter)).await;
        }
    }

    /// One sweep of one cloud. `unread` are the places that the last one could not read.
    pub(crate) async fn sweep(&self, kind: CloudKind, unread: &mut BTreeSet<String>) {
        let Some(provider) = self.providers.get(&kind) else { return };
        let before = self.turns();
        let began = self.clock.now();
        let late = Unread {
            place: format!("{kind:?}"),
            error: CloudError::unavailable(format!("the sweep was not done in {} s", PATIENCE.as_secs())),
        };
        let Sweep { sightings, unread: places } = tokio::time::timeout(PATIENCE, provider.sweep())
            .await
            .unwrap_or_else(|_| Sweep { sightings: Vec::new(), unread: vec![late] });
        let took = self.clock.now().duration_since(began);
        metrics::histogram!(measure::CLOUD_SWEEP).record(took.as_secs_f64());
        tracing::debug!(?kind, targets = sightings.len(), "swept");

        let seen: BTreeSet<TargetId> = sightings.iter().map(|sighting| sighting.target.clone()).collect();
        let ours = stream::iter(sightings).map(|sighting| async {
            let is_ours = self.is_ours(&sighting.target).await;
            (sighting, is_ours)
        });
        let mut ours = std::pin::pin!(ours.buffer_unordered(AT_ONCE));
        while let Some((sighting, is_ours)) = ours.next().await {
            if is_ours {
                self.sighted(sighting, &before);
            } else {
                self.let_go(&sighting.target);
            }
        }
        if places.is_empty() {
            self.look_for_the_unseen(kind, &seen, &before);
        }
        self.tell_unread(places, unread);
    }

    /// Whether no other broker works on the target, as far as is known: each sweeps for itself, and what is amiss is put right
    /// and told by one. Without a store to say whose it is, what has ended is closed by everyone (I2).
    async fn is_ours(&self, target: &TargetId) -> bool {
        match self.replica.leases.hold(target, Claim::Free).await {
            Ok(held) => held.is_some(),
            Err(_) => true,
        }
    }

    pub(super) fn sighted(&self, Sighting { target, held }: Sighting, before: &BTreeMap<TargetId, u64>) {
        let now = self.clock.now();
        let mut places = self.lock();
        let place = places.entry(target.clone()).or_default();
        // What was done meanwhile is newer than what was seen, and what fails is looked at anyway.
        let is_newer = place.busy || place.turns != before.get(&target).copied().unwrap_or(0);
        if is_newer || place.failure.is_some() && !place.is_gone() {
            return;
        }
        let events = match held {
            // Clouds show for a while what was changed just now: a look of its own decides who is right.
            Some(observation)
                if place.observed.as_ref().is_some_and(|known| {
                    *known != observation.windows || place.partial != observation.partial
                }) =>
            {
                place.doubt();
                Vec::new()
            }
            Some(observation) => {
                place.failure = None;
                place.looked(&target, observation, now)
            }
            None => {
                place.left_behind();
                Vec::new()
            }
        };
        drop(places);
        self.tell(events);
        self.wakeups.wake(&target);
        self.notify.notify_one();
    }

    /// A target on which something is or should be open, and of which the sweep saw nothing, is looked at by itself.
    fn look_for_the_unseen(
        &self,
        kind: CloudKind,
        seen: &BTreeSet<TargetId>,
        before: &BTreeMap<TargetId, u64>,
    ) {
        let mut places = self.lock();
        for (target, place) in places.iter_mut().filter(|(target, _)| target.cloud() == Some(kind)) {
            let is_unchanged = before.get(target) == Some(&place.turns) && !place.busy;
            if is_unchanged && !seen.contains(target) {
                place.drift.clear();
                let has_wishes = place.desired.as_ref().is_some_and(|desired| !desired.is_empty());
                let is_open = !place.partial.is_empty()
                    || !place.strays.is_empty()
                    || place.observed.as_ref().is_some_and(|observed| !observed.is_empty());
                if has_wishes || is_open || !place.known.is_empty() {
                    place.observed = None;
                } else if place.failure.is_none() {
                    place.observed = Some(BTreeSet::new());
                }
                place.last_seen = Some(self.clock.now());
            }
        }
        drop(places);
        self.notify.notify_one();
    }

    fn tell_unread(&self, places: Vec<Unread>, unread: &mut BTreeSet<String>) {
        metrics::gauge!(measure::CLOUD_UNREAD).set(u32::try_from(places.len()).unwrap_or(u32::MAX));
        let now = self.clock.now();
        let mut still = BTreeSet::new();
        for Unread { place, error } in places {
            if !unread.contains(&place) {
                tracing::error!(%place, %error, "the sweep could not look there: what is there stays as it was known");
                let event = AuditEvent::done(now, "broker", "cloud.unread").with("place", &place);
                self.tell([event.with("error", error)]);
            }
            still.insert(place);
        }
        *unread = still;
    }

    /// How much was done at each target so far.
    pub(super) fn turns(&self) -> BTreeMap<TargetId, u64> {
        self.lock().iter().map(|(target, place)| (target.clone(), place.turns)).collect()
    }
}
