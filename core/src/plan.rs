//! The reconciler's plan: desired against observed gives the next step. Pure, so that every decision of the
//! broker's loop can be tested without one.
//!
//! Two questions are answered here. What does a grant do next ([`next_event`])? What must a layer of a target
//! hold ([`desired_host`], [`cloud_steps`])? Whoever asks stores the first answer before acting on the second:
//! that order is I4.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::policy::{Protection, Unreachable};
use crate::{CloseReason, Event, Grant, GrantId, GrantState, ProtectedPort, SourcePrefix, TargetId, Window};

/// A layer that enforces windows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layer {
    /// nftables on the target.
    Host,
    /// The cloud's own rules.
    Cloud,
}

impl Layer {
    /// Both layers.
    pub const ALL: [Self; 2] = [Self::Host, Self::Cloud];

    /// Its word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Cloud => "cloud",
        }
    }

    /// Whether the window needs this layer.
    pub fn required_by(self, window: &Window) -> bool {
        match self {
            Self::Host => window.layers.host(),
            Self::Cloud => window.layers.cloud(),
        }
    }
}

/// What is known of one window in one layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Observed {
    /// The layer confirmed that it is open.
    Open,
    /// The layer confirmed that it is not.
    Absent,
    /// Not known: told and not yet answered, or not heard of since a restart.
    Unconfirmed,
    /// The layer cannot be reached.
    Unreachable {
        /// Why, for people.
        reason: String,
        /// Whether it may hold the window all the same: it was told of it, or nobody knows whether it was.
        may_hold: bool,
    },
    /// The layer answered that it will not.
    Refused {
        /// Why, for people.
        reason: String,
    },
}

/// The next thing that happens to the grant, if anything. `observe` answers for every required layer.
///
/// A grant in a final state, and one that waits for an approval, never moves by itself.
pub fn next_event(
    grant: &Grant,
    observe: impl Fn(&Window, Layer) -> Observed,
    now: Timestamp,
) -> Option<Event> {
    match &grant.state {
        GrantState::Opening => opening(grant, observe, now),
        GrantState::Active => (now >= grant.not_after).then_some(Event::Close(CloseReason::Expired)),
        GrantState::Closing(_) => {
            let gone = |(window, layer): (&Window, Layer)| match observe(window, layer) {
                Observed::Absent | Observed::Unreachable { may_hold: false, .. } => true,
                Observed::Open
                | Observed::Unconfirmed
                | Observed::Unreachable { .. }
                | Observed::Refused { .. } => false,
            };
            required(grant).all(gone).then_some(Event::ClosedEverywhere)
        }
        GrantState::PendingApproval
        | GrantState::Closed(_)
        | GrantState::Denied { .. }
        | GrantState::Failed { .. } => None,
    }
}

fn opening(grant: &Grant, observe: impl Fn(&Window, Layer) -> Observed, now: Timestamp) -> Option<Event> {
    let cannot = |reason: String| Some(Event::Close(CloseReason::CannotOpen { reason }));
    let mut waiting = Vec::new();
    for (window, layer) in required(grant) {
        let place = || format!("{} layer of {}", layer.word(), window.target);
        match observe(window, layer) {
            Observed::Open => {}
            Observed::Refused { reason } => return cannot(format!("the {} refused: {reason}", place())),
            Observed::Unreachable { reason, .. } if grant.unreachable == Unreachable::Fail => {
                return cannot(format!("the {} cannot be reached: {reason}", place()));
            }
            Observed::Absent | Observed::Unconfirmed | Observed::Unreachable { .. } => waiting.push(place()),
        }
    }
    if now >= grant.not_after {
        return cannot("its end passed before every layer had confirmed".into());
    }
    if waiting.is_empty() {
        return Some(Event::Confirmed);
    }
    if now >= grant.open_by {
        waiting.dedup();
        return cannot(format!("not confirmed in time by the {}", waiting.join(", the ")));
    }
    None
}

/// Every (window, layer) that must confirm.
fn required(grant: &Grant) -> impl Iterator<Item = (&Window, Layer)> {
    grant.windows.iter().flat_map(|window| {
        Layer::ALL.into_iter().filter(|layer| layer.required_by(window)).map(move |layer| (window, layer))
    })
}

/// When the grant must be looked at again though nothing was heard: its end, or the moment its opening is given up.
pub fn next_deadline(grant: &Grant) -> Option<Timestamp> {
    match &grant.state {
        GrantState::Opening => Some(grant.open_by.min(grant.not_after)),
        GrantState::Active => Some(grant.not_after),
        GrantState::PendingApproval
        | GrantState::Closing(_)
        | GrantState::Closed(_)
        | GrantState::Denied { .. }
        | GrantState::Failed { .. } => None,
    }
}

/// One window as the host layer holds it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct HostWindow {
    /// The grant it belongs to.
    pub grant: GrantId,
    /// The port that is open.
    pub port: ProtectedPort,
    /// Who may connect.
    pub source: SourcePrefix,
    /// The end of the grant.
    pub not_after: Timestamp,
}

/// The whole desired state of a target's host layer. What is absent is to be removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DesiredHost {
    /// The protected ports and the mode.
    pub protection: Protection,
    /// The open windows, sorted.
    pub windows: BTreeSet<HostWindow>,
}

/// What the host layer of a target must hold at `now`, from the grants that touch it.
pub fn desired_host<'a>(
    target: &TargetId,
    protection: Protection,
    grants: impl IntoIterator<Item = &'a Grant>,
    now: Timestamp,
) -> DesiredHost {
    let windows = grants.into_iter().filter(|grant| grant.wants_open(now)).flat_map(|grant| {
        let here = grant.windows.iter().filter(|window| window.target == *target && window.layers.host());
        here.map(|window| HostWindow {
            grant: grant.id,
            port: window.port,
            source: window.source,
            not_after: grant.not_after,
        })
    });
    DesiredHost { protection, windows: windows.collect() }
}

/// One window as a cloud holds it: the rule carries its grant and its end, so that I2 holds with an empty store.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CloudWindow {
    /// The VM.
    pub target: TargetId,
    /// The grant it belongs to.
    pub grant: GrantId,
    /// The port that is open.
    pub port: ProtectedPort,
    /// Who may connect.
    pub source: SourcePrefix,
    /// The end of the grant.
    pub not_after: Timestamp,
}

/// One idempotent change of a cloud's rules.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum CloudStep {
    /// Close what should not be open. Ordered first: a port shut late is worse than one opened late.
    Close(BTreeSet<CloudWindow>),
    /// Open what should be.
    Open(BTreeSet<CloudWindow>),
}

/// What the cloud layer of a target must hold at `now`.
pub fn desired_cloud<'a>(
    target: &TargetId,
    grants: impl IntoIterator<Item = &'a Grant>,
    now: Timestamp,
) -> BTreeSet<CloudWindow> {
    known_cloud(target, grants.into_iter().filter(|grant| grant.wants_open(now)))
}

/// Every window of these grants in the cloud layer of a target, whether or not it is to be open.
pub fn known_cloud<'a>(
    target: &TargetId,
    grants: impl IntoIterator<Item = &'a Grant>,
) -> BTreeSet<CloudWindow> {
    let windows = grants.into_iter().flat_map(|grant| {
        let here = grant.windows.iter().filter(|window| window.target == *target && window.layers.cloud());
        here.map(|window| CloudWindow {
            target: window.target.clone(),
            grant: grant.id,
            port: window.port,
            source: window.source,
            not_after: grant.not_after,
        })
    });
    windows.collect()
}

/// The steps from what a cloud holds to what it should hold: closes first, and the windows of one grant in one step. Of
/// the partial windows something is open, and not all: they are closed, or opened whole.
pub fn cloud_steps(
    desired: &BTreeSet<CloudWindow>,
    observed: &BTreeSet<CloudWindow>,
    partial: &BTreeSet<CloudWindow>,
) -> Vec<CloudStep> {
    let close = observed.union(partial).filter(|window| !desired.contains(*window));
    let open = desired.iter().filter(|window| !observed.contains(*window));
    let close = by_grant(close).into_values().map(CloudStep::Close);
    close.chain(by_grant(open).into_values().map(CloudStep::Open)).collect()
}

fn by_grant<'a>(
    windows: impl Iterator<Item = &'a CloudWindow>,
) -> BTreeMap<(GrantId, Timestamp), BTreeSet<CloudWindow>> {
    let mut grants: BTreeMap<_, BTreeSet<CloudWindow>> = BTreeMap::new();
    for window in windows {
        grants.entry((window.grant, window.not_after)).or_default().insert(window.clone());
    }
    grants
}

#[cfg(test)]
mod tests;
