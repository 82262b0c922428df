//! The tokens of refusals and reports, and the count of those that found none.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use governor::DefaultDirectRateLimiter;
use jiff::{SignedDuration, Timestamp};
use postern_core::audit::{AuditEvent, Outcome};

use crate::clock::boottime;
use crate::limits::{Buckets, Limit, Limits, MAX_OWNERS, Owner, bucket};
use crate::telemetry;

/// The refusals of every caller.
#[derive(Debug)]
pub struct Denials(Mutex<State>);

#[derive(Debug)]
struct State {
    by_caller: Buckets,
    all: DefaultDirectRateLimiter,
    /// The omitted refusals and reports by caller; none: of all callers past the bound.
    omitted: HashMap<Option<Owner>, Omitted>,
}

/// The omitted refusals and reports of one caller.
#[derive(Debug, Clone)]
pub(super) struct Omitted {
    pub(super) actor: String,
    pub(super) refusals: u64,
    /// Reports of tampering and of checkpoints.
    pub(super) reports: u64,
    /// The time of the first.
    pub(super) since: Timestamp,
}

impl Denials {
    /// Begins without a refusal.
    pub fn new(limits: &Limits) -> Self {
        Self(Mutex::new(State {
            by_caller: Buckets::per_minute(limits.denials_per_caller, MAX_OWNERS),
            all: bucket(limits.denials),
            omitted: HashMap::new(),
        }))
    }

    /// Reports whether a refusal of this caller is recorded.
    pub(super) fn passes(&self, caller: &Owner) -> bool {
        let mut state = self.lock();
        let reached = if !state.by_caller.take(caller, boottime()) {
            Limit::DenialsPerCaller
        } else if state.all.check().is_err() {
            Limit::Denials
        } else {
            return true;
        };
        telemetry::limited(reached);
        false
    }

    /// Counts a refusal, or a report of what was done, that is not recorded.
    pub(super) fn omit(&self, caller: Owner, event: &AuditEvent) {
        telemetry::denial_omitted();
        let (refusals, reports) = if event.outcome == Outcome::Denied { (1, 0) } else { (0, 1) };
        self.add(Some(caller), Omitted { actor: event.actor.clone(), refusals, reports, since: event.at });
    }

    pub(super) fn add(&self, caller: Option<Owner>, more: Omitted) {
        let omitted = &mut self.lock().omitted;
        let is_counted_apart = omitted.len() < MAX_OWNERS || omitted.contains_key(&caller);
        let (caller, actor) =
            if is_counted_apart { (caller, more.actor) } else { (None, "broker".to_owned()) };
        let none = Omitted { actor, refusals: 0, reports: 0, since: more.since };
        let counted = omitted.entry(caller).or_insert(none);
        counted.refusals += more.refusals;
        counted.reports += more.reports;
        counted.since = counted.since.min(more.since);
    }

    /// Takes out the counts whose first refusal was so long ago.
    pub(super) fn take(&self, now: Timestamp, age: Duration) -> Vec<(Option<Owner>, Omitted)> {
        let age = SignedDuration::try_from(age).unwrap_or(SignedDuration::MAX);
        self.lock().omitted.extract_if(|_, omitted| now.duration_since(omitted.since) >= age).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
