//! Transitions: the events that are due, each as the transaction that makes it durable. Pure.

use std::collections::HashMap;

use jiff::Timestamp;
use postern_core::audit::AuditEvent;
use postern_core::plan::{Layer, Observed, next_event};
use postern_core::{
    CloseReason, Event, Grant, GrantId, GrantState, PrincipalKey, ProtectedPort, SourcePrefix, TargetId,
    Window,
};

use postern_store::{Expect, Transaction, Versioned};

/// The step of one grant into its next state.
#[derive(Debug)]
pub(super) struct GrantStep {
    pub(super) grant: GrantId,
    pub(super) state: &'static str,
    /// Every target of the grant: all of them must be looked at.
    pub(super) targets: Vec<TargetId>,
    pub(super) transaction: Transaction,
}

/// Returns every step that is due for these grants at `now`.
pub(super) fn due(
    grants: &[Versioned<Grant>],
    observe: impl Fn(&Grant, &Window, Layer) -> Observed,
    now: Timestamp,
) -> Vec<GrantStep> {
    let (mut steps, mut active) = (Vec::new(), Vec::new());
    for grant in grants {
        let event = next_event(&grant.record, |window, layer| observe(&grant.record, window, layer), now);
        let stays_active = event.is_none() && grant.record.state == GrantState::Active;
        if stays_active || event == Some(Event::Confirmed) {
            active.push(&grant.record);
        }
        steps.extend(event.and_then(|event| step(grant, event, now)));
    }
    // After the step that makes the newer one active, so that there is no gap between them.
    steps.extend(superseded(&active, grants, now));
    // One grant takes one step at a time: the next look finds the others.
    let mut seen = std::collections::BTreeSet::new();
    steps.retain(|step| seen.insert(step.grant));
    steps
}

/// Returns the steps that close grants which an active one makes unnecessary. They are found at every look, so that a crash between
/// two steps loses neither.
fn superseded(active: &[&Grant], grants: &[Versioned<Grant>], now: Timestamp) -> Vec<GrantStep> {
    let mut openings: HashMap<_, Vec<&Grant>> = HashMap::new();
    for newer in active {
        for window in &newer.windows {
            openings.entry(opening(newer, window)).or_default().push(newer);
        }
    }
    let close = |older: &Versioned<Grant>| {
        let same = openings.get(&opening(&older.record, older.record.windows.first()?))?;
        let newer =
            same.iter().find(|newer| newer.id > older.record.id && newer.supersedes(&older.record))?;
        step(older, Event::Close(CloseReason::Superseded { by: newer.id }), now)
    };
    let open =
        |grant: &&Versioned<Grant>| matches!(grant.record.state, GrantState::Opening | GrantState::Active);
    grants.iter().filter(open).filter_map(close).collect()
}

/// The key that two grants share if one may supersede the other.
fn opening<'a>(
    grant: &'a Grant,
    window: &'a Window,
) -> (&'a PrincipalKey, &'a TargetId, ProtectedPort, SourcePrefix) {
    (grant.principal.key(), &window.target, window.port, window.source)
}

fn step(grant: &Versioned<Grant>, event: Event, now: Timestamp) -> Option<GrantStep> {
    let word = event.word();
    let next = match grant.record.after(event, now) {
        Ok(next) => next,
        Err(illegal) => {
            tracing::error!(grant = %grant.record.id, %illegal, "the plan asked for a step that is not possible");
            return None;
        }
    };
    let audit = AuditEvent::done(now, "broker", &format!("grant.{}", word.replace(' ', "_")))
        .on_grant(next.id)
        .with("state", next.state.word());
    let audit =
        if next.state.reason().is_empty() { audit } else { audit.with("reason", next.state.reason()) };
    Some(GrantStep {
        grant: next.id,
        state: next.state.word(),
        targets: next.targets().into_iter().cloned().collect(),
        transaction: Transaction::default().put_grant(next, Expect::Version(grant.version)).audit(audit),
    })
}

#[cfg(test)]
mod tests;
