//! One target's place in the hub: its session, what it was told and what it confirmed.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use jiff::Timestamp;
use postern_core::plan::{DesiredHost, HostWindow, Observed};
use tokio::sync::watch;

use super::{Outgoing, Told, trace};
use crate::layer::{LayerReport, LayerStatus};

/// How often in a row an agent may refuse before the broker raises an alarm.
const ALARM_AT: u32 = 3;

/// One target's session and what is known through it.
#[derive(Debug, Default)]
pub(super) struct Slot {
    /// Counts sessions, so that a stale one cannot speak for a newer.
    number: u64,
    session: Option<watch::Sender<Outgoing>>,
    began: Option<Timestamp>,
    told: Option<Arc<Told>>,
    confirmed: Option<Arc<Told>>,
    refusal: Option<Refusal>,
    /// What the agent was told, in earlier sessions or before the last word of this one, and may hold still.
    left_behind: BTreeSet<HostWindow>,
    version: String,
    last_seen: Option<Timestamp>,
}

/// The agent said no to what it was told last.
#[derive(Debug)]
struct Refusal {
    reason: String,
    times: u32,
    retry_at: Timestamp,
    backoff: ExponentialBackoff,
}

impl Slot {
    pub(super) fn connect(
        &mut self,
        sender: watch::Sender<Outgoing>,
        version: String,
        now: Timestamp,
    ) -> u64 {
        self.end("a newer session of this agent took over");
        self.leave_behind();
        self.number += 1;
        self.session = Some(sender);
        self.version = version;
        (self.began, self.last_seen) = (Some(now), Some(now));
        self.number
    }

    /// Whether it has a session that began before that moment.
    pub(super) fn began_before(&self, moment: Timestamp) -> bool {
        self.session.is_some() && self.began.is_some_and(|began| began < moment)
    }

    pub(super) fn has_session(&self) -> bool {
        self.session.is_some()
    }

    pub(super) fn session(&self) -> Option<u64> {
        self.session.as_ref().map(|_| self.number)
    }

    /// Knows nothing of what the agent holds any more.
    pub(super) fn doubt(&mut self) {
        self.leave_behind();
    }

    pub(super) fn is_session(&self, number: u64) -> bool {
        self.number == number && self.session.is_some()
    }

    /// Tells the stream to end, and nothing after that. The slot forgets the session when the stream is dropped.
    pub(super) fn end(&mut self, reason: &'static str) {
        if let Some(session) = &self.session {
            session.send_replace(Outgoing::End(reason));
        }
    }

    pub(super) fn disconnect(&mut self, now: Timestamp) {
        self.leave_behind();
        self.session = None;
        self.last_seen = Some(now);
    }

    /// Forgets what the session knew, but for the windows that the agent may hold without it.
    fn leave_behind(&mut self) {
        let known = [self.told.take(), self.confirmed.take()];
        self.left_behind.extend(known.into_iter().flatten().flat_map(|told| told.desired.windows.clone()));
        self.refusal = None;
    }

    /// Whether the agent may hold a window though it has no session.
    pub(super) fn may_hold(&self, window: &HostWindow) -> bool {
        self.left_behind.contains(window)
    }

    pub(super) fn heard(&mut self, now: Timestamp) {
        self.last_seen = Some(now);
    }

    /// See [`super::Hub::tell`]. What was refused is told again when its backoff is over, for ever.
    pub(super) fn tell(
        &mut self,
        generation: u64,
        desired: DesiredHost,
        now: Timestamp,
    ) -> Option<Timestamp> {
        let session = self.session.as_ref()?;
        // An end that the stream has not read yet must not be overwritten: it may be a ban.
        if matches!(&*session.borrow(), Outgoing::End(_)) {
            return None;
        }
        let same = self.told.as_ref().is_some_and(|told| told.desired == desired);
        if same && self.refusal.as_ref().is_none_or(|refusal| now < refusal.retry_at) {
            return self.refusal.as_ref().map(|refusal| refusal.retry_at);
        }
        let told = Arc::new(Told { generation, desired });
        trace::told(self.told.as_deref(), &told);
        // What is replaced before its answer came may have been applied all the same.
        if !self.in_sync()
            && let Some(unanswered) = self.told.take()
        {
            self.left_behind.extend(unanswered.desired.windows.iter().cloned());
        }
        self.told = Some(Arc::clone(&told));
        session.send_replace(Outgoing::Tell(told));
        None
    }

    /// The answer to what was told last; answers to anything earlier are out of date. Whether it is a confirmation.
    pub(super) fn applied(&mut self, generation: u64, error: Option<String>, now: Timestamp) -> bool {
        self.last_seen = Some(now);
        let Some(told) = self.told.as_ref().filter(|told| told.generation == generation) else {
            return false;
        };
        let confirms = error.is_none();
        match error {
            None => {
                self.confirmed = Some(Arc::clone(told));
                self.refusal = None;
                // It holds this and nothing else.
                self.left_behind.clear();
            }
            Some(reason) => self.refuse(reason, now),
        }
        confirms
    }

    fn refuse(&mut self, reason: String, now: Timestamp) {
        let (times, mut backoff) = match self.refusal.take() {
            Some(refusal) => (refusal.times + 1, refusal.backoff),
            None => (1, patience()),
        };
        trace::refused(self.confirmed.as_deref(), self.told.as_deref(), &reason);
        if times == ALARM_AT {
            tracing::error!(%reason, "an agent has refused its desired state {times} times in a row");
        }
        let wait = backoff.next().unwrap_or(Duration::from_secs(30));
        self.refusal =
            Some(Refusal { reason, times, retry_at: now.checked_add(wait).unwrap_or(now), backoff });
    }

    /// What is known of a window; `None` where no session is there to know it.
    pub(super) fn observe(&self, window: &HostWindow) -> Option<Observed> {
        self.session.as_ref()?;
        let holds = |told: &Option<Arc<Told>>| {
            told.as_ref().is_some_and(|told| told.desired.windows.contains(window))
        };
        Some(match &self.refusal {
            _ if holds(&self.confirmed) => Observed::Open,
            Some(refusal) if holds(&self.told) => Observed::Refused { reason: refusal.reason.clone() },
            _ if self.in_sync() && !holds(&self.told) => Observed::Absent,
            _ => Observed::Unconfirmed,
        })
    }

    /// Whether the agent confirmed what it was told last.
    fn in_sync(&self) -> bool {
        let generation = |told: &Option<Arc<Told>>| told.as_ref().map(|told| told.generation);
        self.told.is_some() && generation(&self.told) == generation(&self.confirmed)
    }

    pub(super) fn report(&self) -> LayerReport {
        let (status, detail) = match (&self.session, &self.refusal) {
            (None, _) => (LayerStatus::Unreachable, "its agent is not connected".to_owned()),
            (Some(_), Some(refusal)) => (LayerStatus::Failed, refusal.reason.clone()),
            (Some(_), None) if self.in_sync() => (LayerStatus::InSync, String::new()),
            (Some(_), None) => (LayerStatus::Pending, String::new()),
        };
        LayerReport {
            status,
            detail,
            last_seen: self.last_seen,
            version: self.version.clone(),
            online: self.session.is_some(),
        }
    }
}

/// For ever, from half a second up to half a minute.
fn patience() -> ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(500))
        .with_max_delay(Duration::from_secs(30))
        .without_max_times()
        .with_jitter()
        .build()
}

#[cfg(test)]
mod tests;
