//! Grants and the state machine they live in.
//!
//! ```text
//! pending_approval -> opening -> active -> closing -> closed(expired | revoked | superseded)
//!        |               |                    ^  \--> failed(reason)
//!      denied            +--------------------+
//! ```
//!
//! I5 is kept here: the only way into `active` is a confirmation by every layer, and the only way from `opening`
//! to `failed` leads through `closing`, so that a grant that cannot open whole is rolled back whole.

use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::policy::{Authorized, Unreachable};
use crate::{AccessRequest, GrantId, Justification, Principal, TargetId, Window};

/// An authorized request, with an id, an end, and a state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// Its identifier.
    pub id: GrantId,
    /// Who asked.
    pub principal: Principal,
    /// Why.
    pub justification: Justification,
    /// When it was asked for.
    pub requested_at: Timestamp,
    /// How long it was asked for.
    pub duration: Duration,
    /// What it opens.
    pub windows: Vec<Window>,
    /// What becomes of it while an agent is away.
    pub unreachable: Unreachable,
    /// The end: fixed when opening begins, the same in both layers from the first write.
    pub not_after: Timestamp,
    /// When an opening that no layer refused, but not every layer confirmed, is given up.
    pub open_by: Timestamp,
    /// When every layer had confirmed.
    pub opened_at: Option<Timestamp>,
    /// When it was first to close; none in a record of a version that did not keep it.
    #[serde(default)]
    pub closing_since: Option<Timestamp>,
    /// When every layer had confirmed the end.
    pub closed_at: Option<Timestamp>,
    /// Where it stands.
    pub state: GrantState,
}

/// Where a grant stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GrantState {
    /// Waits for an approval; nothing is open, and the end is not fixed.
    PendingApproval,
    /// Durable and audited; the layers are being opened.
    Opening,
    /// Every required layer has confirmed.
    Active,
    /// The layers are being closed, for this reason.
    Closing(CloseReason),
    /// Every layer has confirmed the end. Never left again.
    Closed(CloseReason),
    /// An approver said no. Never left again.
    Denied {
        /// What the approver said.
        reason: String,
    },
    /// It could not open whole, and what had opened was closed again. Never left again.
    Failed {
        /// What stood in the way.
        reason: String,
    },
}

/// Why a grant closes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CloseReason {
    /// Its end was reached.
    Expired,
    /// Someone revoked it.
    Revoked {
        /// Who.
        by: Principal,
        /// Why, if they said.
        reason: Option<Justification>,
    },
    /// A newer grant of the same principal opens the same windows.
    Superseded {
        /// The newer grant.
        by: GrantId,
    },
    /// It cannot open whole and is being rolled back; it ends as failed.
    CannotOpen {
        /// What stands in the way.
        reason: String,
    },
}

/// What can happen to a grant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// An approver said yes; opening begins now.
    Approved,
    /// An approver said no.
    Denied {
        /// What they said.
        reason: String,
    },
    /// Every required layer has confirmed every window.
    Confirmed,
    /// The grant is to close.
    Close(CloseReason),
    /// Every layer has confirmed that no window of the grant is open.
    ClosedEverywhere,
}

/// An event that cannot happen to a grant in its state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a grant that is {state} cannot be {event}")]
pub struct IllegalTransition {
    /// The state's word.
    pub state: &'static str,
    /// What was tried.
    pub event: &'static str,
}

impl Grant {
    /// How long the layers of a grant have to confirm when its policy does not wait for absent agents.
    pub const OPEN_TIMEOUT: Duration = Duration::from_secs(30);
    /// The same where a window has to be written into an Azure Firewall: a write of one takes three to five minutes, and
    /// another may be under way.
    pub const FIREWALL_OPEN_TIMEOUT: Duration = Duration::from_secs(900);

    /// Makes the grant of an authorized request. Unless it waits for an approval, opening begins at `now`.
    pub fn new(
        id: GrantId,
        principal: Principal,
        request: &AccessRequest,
        authorized: Authorized,
        now: Timestamp,
    ) -> Self {
        let mut grant = Self {
            id,
            principal,
            justification: request.justification().clone(),
            requested_at: now,
            duration: request.duration(),
            windows: authorized.windows,
            unreachable: authorized.unreachable,
            not_after: now,
            open_by: now,
            opened_at: None,
            closing_since: None,
            closed_at: None,
            state: GrantState::PendingApproval,
        };
        if !authorized.approval_required {
            grant.begin_opening(now);
        }
        grant
    }

    /// The grant after the event. Pure: the caller stores the result.
    ///
    /// # Errors
    /// The event cannot happen in the grant's state; nothing changes.
    pub fn after(&self, event: Event, now: Timestamp) -> Result<Self, IllegalTransition> {
        use GrantState as S;
        let mut next = self.clone();
        match (&self.state, event) {
            (S::PendingApproval, Event::Approved) => next.begin_opening(now),
            (S::PendingApproval, Event::Denied { reason }) => {
                next.state = S::Denied { reason };
                next.closed_at = Some(now);
            }
            // Nothing was opened yet, so nothing has to confirm.
            (S::PendingApproval, Event::Close(CloseReason::CannotOpen { reason })) => {
                next.state = S::Failed { reason };
                next.closed_at = Some(now);
            }
            (S::PendingApproval, Event::Close(reason)) => {
                next.state = S::Closed(reason);
                next.closed_at = Some(now);
            }
            (S::Opening, Event::Confirmed) => {
                next.state = S::Active;
                next.opened_at = Some(now);
            }
            (S::Opening | S::Active, Event::Close(reason)) => {
                next.state = S::Closing(reason);
                next.closing_since = Some(now);
            }
            (S::Closing(CloseReason::CannotOpen { reason }), Event::ClosedEverywhere) => {
                next.state = S::Failed { reason: reason.clone() };
                next.closed_at = Some(now);
            }
            (S::Closing(reason), Event::ClosedEverywhere) => {
                next.state = S::Closed(reason.clone());
                next.closed_at = Some(now);
            }
            (state, event) => return Err(IllegalTransition { state: state.word(), event: event.word() }),
        }
        Ok(next)
    }

    /// Gives the layers of a grant that is opening more time to confirm, or less: counted from when it was asked for.
    #[must_use]
    pub fn opening_within(mut self, timeout: Duration) -> Self {
        if self.state == GrantState::Opening && self.unreachable == Unreachable::Fail {
            self.open_by = self.not_after.min(later(self.requested_at, timeout));
        }
        self
    }

    fn begin_opening(&mut self, now: Timestamp) {
        self.state = GrantState::Opening;
        self.not_after = later(now, self.duration);
        self.open_by = match self.unreachable {
            Unreachable::Fail => self.not_after.min(later(now, Self::OPEN_TIMEOUT)),
            Unreachable::Wait => self.not_after,
        };
    }

    /// Whether the layers should hold this grant's windows at `now`.
    pub fn wants_open(&self, now: Timestamp) -> bool {
        matches!(self.state, GrantState::Opening | GrantState::Active) && now < self.not_after
    }

    /// Since when the layers have had to close it: since its end at the latest, whoever was there to say so. None while
    /// that is to come, and once it is over.
    pub fn closes_since(&self, now: Timestamp) -> Option<Timestamp> {
        match &self.state {
            GrantState::Closing(_) => {
                Some(self.closing_since.map_or(self.not_after, |since| since.min(self.not_after)))
            }
            GrantState::Opening | GrantState::Active => (now >= self.not_after).then_some(self.not_after),
            GrantState::PendingApproval
            | GrantState::Closed(_)
            | GrantState::Denied { .. }
            | GrantState::Failed { .. } => None,
        }
    }

    /// The targets, each once.
    pub fn targets(&self) -> Vec<&TargetId> {
        let mut targets: Vec<&TargetId> = self.windows.iter().map(|window| &window.target).collect();
        targets.sort();
        targets.dedup();
        targets
    }

    /// Whether this grant makes the older one unnecessary: same principal, every opening of it is here too, and for no
    /// less long.
    pub fn supersedes(&self, older: &Self) -> bool {
        self.id != older.id
            && self.principal.name == older.principal.name
            && self.not_after >= older.not_after
            && older.windows.iter().all(|old| self.windows.iter().any(|new| new.same_opening(old)))
    }
}

impl GrantState {
    /// Whether it is never left again.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Closed(_) | Self::Denied { .. } | Self::Failed { .. })
    }

    /// The state's word, as it is written everywhere.
    pub fn word(&self) -> &'static str {
        match self {
            Self::PendingApproval => "pending_approval",
            Self::Opening => "opening",
            Self::Active => "active",
            Self::Closing(_) => "closing",
            Self::Closed(_) => "closed",
            Self::Denied { .. } => "denied",
            Self::Failed { .. } => "failed",
        }
    }

    /// The reason that goes with the state, in words; empty where there is none.
    pub fn reason(&self) -> String {
        match self {
            Self::PendingApproval | Self::Opening | Self::Active => String::new(),
            Self::Closing(reason) | Self::Closed(reason) => reason.to_string(),
            Self::Denied { reason } | Self::Failed { reason } => reason.clone(),
        }
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Expired => f.write_str("expired"),
            Self::Revoked { by, reason: None } => write!(f, "revoked by {by}"),
            Self::Revoked { by, reason: Some(reason) } => write!(f, "revoked by {by}: {reason}"),
            Self::Superseded { by } => write!(f, "superseded by {by}"),
            Self::CannotOpen { reason } => f.write_str(reason),
        }
    }
}

impl Event {
    /// What it does, as a participle.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Approved => "approved",
            Self::Denied { .. } => "denied",
            Self::Confirmed => "activated",
            Self::Close(CloseReason::Expired) => "expired",
            Self::Close(CloseReason::Revoked { .. }) => "revoked",
            Self::Close(CloseReason::Superseded { .. }) => "superseded",
            Self::Close(CloseReason::CannotOpen { .. }) => "rolled back",
            Self::ClosedEverywhere => "closed",
        }
    }
}

/// `at + span`, or the end of time where that does not fit.
fn later(at: Timestamp, span: Duration) -> Timestamp {
    at.checked_add(span).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests;
