//! The reconciler's plan: the next step from the desired and the observed state. Pure, so that tests of every
//! decision of the broker's loop need no broker.
//!
//! The plan answers two questions: the next event of a grant ([`next_event`]), and the windows that a layer of a
//! target must hold ([`desired_host`], [`desired_cloud`], [`cloud_steps`]). The caller stores the first answer
//! before it acts on the second: that order is I4.
//!
//! | observed of a window in a layer | a grant that opens | a grant that closes |
//! | --- | --- | --- |
//! | open | counts as confirmed | waits |
//! | absent | waits until `open_by` | counts as closed |
//! | unconfirmed | waits until `open_by` | waits |
//! | unreachable | rolls back, or waits, as its policy says | waits if the layer may hold the window, or else counts as closed |
//! | refused | rolls back | waits |
//!
//! An active grant ignores observations: the layers repair a difference, and only its end or a revocation closes
//! it.

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

    /// Returns the layer's word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Cloud => "cloud",
        }
    }

    /// Reports whether the window needs this layer.
    pub fn required_by(self, window: &Window) -> bool {
        match self {
            Self::Host => window.layers.host(),
            Self::Cloud => window.layers.cloud(),
        }
    }
}

/// The known state of a window in a layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Observed {
    /// The layer confirmed that the window is open.
    Open,
    /// The layer confirmed that the window is not open.
    Absent,
    /// Unknown: the layer has not answered yet, or not since a restart.
    Unconfirmed,
    /// The layer cannot be reached.
    Unreachable {
        /// The reason, for people.
        reason: String,
        /// True if the layer may hold the window all the same: the broker sent it the window, or cannot rule that
        /// out.
        may_hold: bool,
    },
    /// The layer refused to open the window.
    Refused {
        /// The reason, for people.
        reason: String,
    },
}

/// Returns the next event of the grant, if any. `observe` returns the state of a window in a required layer.
///
/// A grant in a final state, or one that waits for an approval, never moves by itself.
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

/// The words between a layer and its own text in a reason, see [`opening`].
const OWN_TEXT: [&str; 2] = [" refused: ", " cannot be reached: "];

/// Returns the reason for which a grant could not open without the cloud's own text.
pub fn reason_without_cloud_text(reason: &str) -> String {
    let is_of_cloud = reason.starts_with(&format!("the {} layer of ", Layer::Cloud.word()));
    let cut = OWN_TEXT.iter().filter_map(|words| Some(reason.find(words)? + words.len() - ": ".len())).min();
    match cut {
        Some(cut) if is_of_cloud => format!("{}; ask an operator for the cause", &reason[..cut]),
        _ => reason.to_owned(),
    }
}

fn opening(grant: &Grant, observe: impl Fn(&Window, Layer) -> Observed, now: Timestamp) -> Option<Event> {
    let cannot = |reason: String| Some(Event::Close(CloseReason::CannotOpen { reason }));
    let mut waiting = Vec::new();
    for (window, layer) in required(grant) {
        let place = || format!("{} layer of {}", layer.word(), window.target.in_words());
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

/// Returns every (window, layer) that must confirm.
fn required(grant: &Grant) -> impl Iterator<Item = (&Window, Layer)> {
    grant.windows.iter().flat_map(|window| {
        Layer::ALL.into_iter().filter(|layer| layer.required_by(window)).map(move |layer| (window, layer))
    })
}

/// Returns the time at which the reconciler must look at the grant even without an event: its end, or the end of
/// its opening.
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

/// A window of a grant as a layer holds it. A cloud's rule carries all of it, so that I2 holds with an empty store.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LayerWindow {
    /// The VM.
    pub target: TargetId,
    /// The grant it belongs to.
    pub grant: GrantId,
    /// The port that is open.
    pub port: ProtectedPort,
    /// The source that may connect.
    pub source: SourcePrefix,
    /// The end of the grant.
    pub not_after: Timestamp,
}

impl LayerWindow {
    /// Returns a window of a grant.
    pub fn of(grant: &Grant, window: &Window) -> Self {
        Self {
            target: window.target.clone(),
            grant: grant.id,
            port: window.port,
            source: window.source,
            not_after: grant.not_after,
        }
    }
}

/// Returns every window of these grants that a layer of a target must hold while it is open.
fn windows_in<'a>(
    layer: Layer,
    target: &TargetId,
    grants: impl Iterator<Item = &'a Grant>,
) -> BTreeSet<LayerWindow> {
    let windows = grants.flat_map(|grant| {
        let here =
            grant.windows.iter().filter(|window| window.target == *target && layer.required_by(window));
        here.map(|window| LayerWindow::of(grant, window))
    });
    windows.collect()
}

/// The complete desired state of a target's host layer. The agent removes every window that is not in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DesiredHost {
    /// The protected ports and the mode; none while the policies cannot be read: the host keeps its own.
    pub protection: Option<Protection>,
    /// The open windows, sorted.
    pub windows: BTreeSet<LayerWindow>,
}

/// Returns the desired state of a target's host layer at `now`, from the grants on the target.
pub fn desired_host<'a>(
    target: &TargetId,
    protection: Option<Protection>,
    grants: impl IntoIterator<Item = &'a Grant>,
    now: Timestamp,
) -> DesiredHost {
    let grants = grants.into_iter().filter(|grant| grant.wants_open(now));
    DesiredHost { protection, windows: windows_in(Layer::Host, target, grants) }
}

/// An idempotent change of a cloud's rules.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum CloudStep {
    /// Close these windows. Ordered first: a port that closes late is worse than one that opens late.
    Close(BTreeSet<LayerWindow>),
    /// Open these windows.
    Open(BTreeSet<LayerWindow>),
}

/// Returns the windows that the cloud layer of a target must hold at `now`.
pub fn desired_cloud<'a>(
    target: &TargetId,
    grants: impl IntoIterator<Item = &'a Grant>,
    now: Timestamp,
) -> BTreeSet<LayerWindow> {
    known_cloud(target, grants.into_iter().filter(|grant| grant.wants_open(now)))
}

/// Returns every window of these grants in the cloud layer of a target, whether it should be open or not.
pub fn known_cloud<'a>(
    target: &TargetId,
    grants: impl IntoIterator<Item = &'a Grant>,
) -> BTreeSet<LayerWindow> {
    windows_in(Layer::Cloud, target, grants.into_iter())
}

/// Returns the steps from the observed to the desired windows of a cloud: closes first, and the windows of one
/// grant in one step. A partial window is open in some of its rules only: it is closed, or opened completely.
pub fn cloud_steps(
    desired: &BTreeSet<LayerWindow>,
    observed: &BTreeSet<LayerWindow>,
    partial: &BTreeSet<LayerWindow>,
) -> Vec<CloudStep> {
    let close = observed.union(partial).filter(|window| !desired.contains(*window));
    let open = desired.iter().filter(|window| !observed.contains(*window));
    let close = by_grant(close).into_values().map(CloudStep::Close);
    close.chain(by_grant(open).into_values().map(CloudStep::Open)).collect()
}

fn by_grant<'a>(
    windows: impl Iterator<Item = &'a LayerWindow>,
) -> BTreeMap<(GrantId, Timestamp), BTreeSet<LayerWindow>> {
    let mut grants: BTreeMap<_, BTreeSet<LayerWindow>> = BTreeMap::new();
    for window in windows {
        grants.entry((window.grant, window.not_after)).or_default().insert(window.clone());
    }
    grants
}

#[cfg(test)]
mod tests;
