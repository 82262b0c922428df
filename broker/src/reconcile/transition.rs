//! Transitions: the events that are due, each as the transaction that makes it durable. Pure.

use jiff::Timestamp;
use postern_core::audit::AuditEvent;
use postern_core::plan::{Layer, Observed, next_event};
use postern_core::{CloseReason, Event, Grant, GrantId, GrantState, TargetId, Window};

use crate::store::{Change, Expect, Transaction, Versioned};

/// One grant's step into its next state.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) grant: GrantId,
    pub(super) state: &'static str,
    /// Every target that the grant touches: they all have to be looked at.
    pub(super) targets: Vec<TargetId>,
    pub(super) transaction: Transaction,
}

/// Every step that is due for these grants at `now`.
pub(super) fn due(
    grants: &[Versioned<Grant>],
    observe: impl Fn(&Grant, &Window, Layer) -> Observed,
    now: Timestamp,
) -> Vec<Step> {
    let mut steps = Vec::new();
    for grant in grants {
        let Some(event) =
            next_event(&grant.record, |window, layer| observe(&grant.record, window, layer), now)
        else {
            continue;
        };
        let confirmed = event == Event::Confirmed;
        steps.extend(step(grant, event, now));
        if confirmed {
            steps.extend(superseded(&grant.record, grants, now));
        }
    }
    // One grant takes one step at a time: the next look finds the others.
    let mut seen = std::collections::BTreeSet::new();
    steps.retain(|step| seen.insert(step.grant));
    steps
}

/// The grants that the newly active one makes unnecessary. Only now, so that there is no gap between them.
fn superseded(newer: &Grant, grants: &[Versioned<Grant>], now: Timestamp) -> Vec<Step> {
    let close =
        |older: &Versioned<Grant>| step(older, Event::Close(CloseReason::Superseded { by: newer.id }), now);
    let older = grants.iter().filter(|older| {
        older.record.id < newer.id
            && matches!(older.record.state, GrantState::Opening | GrantState::Active)
            && newer.supersedes(&older.record)
    });
    older.filter_map(close).collect()
}

fn step(grant: &Versioned<Grant>, event: Event, now: Timestamp) -> Option<Step> {
    let word = event.word();
    let next = match grant.record.after(event, now) {
        Ok(next) => next,
        Err(illegal) => {
            tracing::error!(grant = %grant.record.id, %illegal, "the plan asked for a step that cannot be");
            return None;
        }
    };
    let audit = AuditEvent::done(now, "broker", &format!("grant.{}", word.replace(' ', "_")))
        .on_grant(next.id)
        .with("state", next.state.word());
    let audit =
        if next.state.reason().is_empty() { audit } else { audit.with("reason", next.state.reason()) };
    Some(Step {
        grant: next.id,
        state: next.state.word(),
        targets: next.targets().into_iter().cloned().collect(),
        transaction: Transaction::default()
            .change(Change::PutGrant { grant: next, expect: Expect::Version(grant.version) })
            .audit(audit),
    })
}
