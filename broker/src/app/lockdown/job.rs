//! The work on one target of a lockdown or a release, from its plan to its last audit line.

use std::collections::{BTreeMap, BTreeSet};

use postern_core::audit::{AuditEvent, Outcome};
use postern_core::{ProtectedPort, TargetId};
use postern_provider::{CloudError, Concern, Consent, LockdownOrder, LockdownReport};
use postern_store::{StoreError, Transaction};

use super::outcome::{TargetError, TargetOutcome};
use crate::app::{App, Caller};

/// The work on one target.
pub(super) enum Work {
    Lockdown(LockdownOrder),
    Release(TargetId),
}

/// The work on one target, and its progress.
pub(super) struct LockdownJob {
    work: Work,
    report: LockdownReport,
    done: bool,
    error: Option<TargetError>,
}

impl LockdownJob {
    /// Makes a job that has not begun, or that an error keeps from beginning.
    pub(super) fn new(work: Work, error: Option<TargetError>) -> Self {
        Self { work, report: LockdownReport::default(), done: false, error }
    }

    pub(super) fn target(&self) -> &TargetId {
        match &self.work {
            Work::Lockdown(order) => &order.target,
            Work::Release(target) => target,
        }
    }

    /// Reports that no error and no unaccepted concern is known.
    pub(super) fn takes_part(&self) -> bool {
        self.error.is_none() && self.unmet().is_empty()
    }

    /// Sets the targets that are locked down together with this one.
    pub(super) fn together(&mut self, partners: &BTreeMap<TargetId, BTreeSet<ProtectedPort>>) {
        if let Work::Lockdown(order) = &mut self.work {
            order.together.clone_from(partners);
            order.together.remove(&order.target);
        }
    }

    /// Returns the ports that a lockdown shuts; none for a release.
    pub(super) fn ports(&self) -> BTreeSet<ProtectedPort> {
        match &self.work {
            Work::Lockdown(order) => order.ports.clone(),
            Work::Release(_) => BTreeSet::new(),
        }
    }

    /// Returns the order of a lockdown; none for a release.
    pub(super) fn order(&self) -> Option<&LockdownOrder> {
        match &self.work {
            Work::Lockdown(order) => Some(order),
            Work::Release(_) => None,
        }
    }

    /// Carries the work out if the target takes part, and records how it ended.
    pub(super) async fn carry_out(&mut self, app: &App, caller: &Caller) {
        if self.takes_part() {
            if let Err(error) = self.record(app, self.requested(app, caller)).await {
                self.error = Some(error.into());
                return;
            }
            let answer = self.act(app).await;
            self.take_answer(answer);
            self.done = self.takes_part();
        }
        if let Err(error) = self.record_end(app, caller).await {
            tracing::error!(target = %self.target(), %error, "cannot record the end of a {} in the audit log", self.word());
            self.error.get_or_insert(error.into());
        }
    }

    async fn act(&self, app: &App) -> Result<LockdownReport, CloudError> {
        match &self.work {
            Work::Lockdown(order) => app.cloud.lockdown(order).await,
            Work::Release(target) => app.cloud.release(target).await,
        }
    }

    /// Records the cloud's answer to a plan or to the work itself.
    pub(super) fn take_answer(&mut self, answer: Result<LockdownReport, CloudError>) {
        match answer {
            Ok(report) => self.report = report,
            Err(error) => self.error = Some(error.into()),
        }
    }

    /// Returns the concerns that the caller does not accept. A release has none.
    fn unmet(&self) -> Vec<&Concern> {
        match &self.work {
            Work::Lockdown(order) => order.consent.unmet(&self.report.concerns),
            Work::Release(_) => Vec::new(),
        }
    }

    async fn record_end(&self, app: &App, caller: &Caller) -> Result<(), StoreError> {
        let event = self.ended(app, caller);
        match event.outcome {
            Outcome::Denied => app.record_denial(caller, event).await.map(drop),
            Outcome::Done => self.record(app, event).await,
        }
    }

    async fn record(&self, app: &App, event: AuditEvent) -> Result<(), StoreError> {
        app.store.commit(Transaction::default().audit(event)).await.map(drop)
    }

    fn requested(&self, app: &App, caller: &Caller) -> AuditEvent {
        let action = format!("target.{}.requested", self.word());
        self.described(AuditEvent::done(app.clock.now(), &caller.principal, &action))
    }

    fn ended(&self, app: &App, caller: &Caller) -> AuditEvent {
        let (now, actor) = (app.clock.now(), &caller.principal);
        let action = |end| format!("target.{}.{end}", self.word());
        let unmet = self.unmet();
        let event = match &self.error {
            Some(error @ TargetError::Precondition { .. }) => {
                AuditEvent::denied(now, actor, &action("refused")).with("reason", error)
            }
            Some(error) => AuditEvent::done(now, actor, &action("failed")).with("reason", error),
            None if unmet.is_empty() => {
                AuditEvent::done(now, actor, &action("done")).with("changes", self.report.changes.len())
            }
            None => {
                let concerns: Vec<_> =
                    unmet.iter().map(|one| format!("{}: {}", one.kind.word(), one.what)).collect();
                let event = AuditEvent::denied(now, actor, &action("refused"));
                event.with("reason", "CONCERNS_NOT_ACCEPTED").with("concerns", concerns.join("; "))
            }
        };
        self.described(event)
    }

    fn described(&self, event: AuditEvent) -> AuditEvent {
        let event = event.on_target(self.target());
        match &self.work {
            Work::Lockdown(order) => {
                let ports: Vec<_> = order.ports.iter().map(ToString::to_string).collect();
                let accepted: Vec<_> = order.consent.0.iter().map(|kind| kind.word()).collect();
                event.with("ports", ports.join(", ")).with("accepted", accepted.join(", "))
            }
            Work::Release(_) => event,
        }
    }

    fn word(&self) -> &'static str {
        match self.work {
            Work::Lockdown(_) => "lockdown",
            Work::Release(_) => "release",
        }
    }
}

impl From<LockdownJob> for TargetOutcome {
    fn from(job: LockdownJob) -> Self {
        let unmet = job.unmet().into_iter().cloned().collect();
        let target = job.target().clone();
        let consent = match job.work {
            Work::Lockdown(order) => order.consent,
            Work::Release(_) => Consent::default(),
        };
        Self { target, report: job.report, unmet, consent, done: job.done, error: job.error }
    }
}
