//! Grants and their state machine.
//!
//! ```text
//! pending_approval -> opening -> active -> closing -> closed(expired | revoked | superseded)
//!        |               |                    ^  \--> failed(reason)
//!      denied            +--------------------+
//! ```
//!
//! This module keeps I5: the only way into `active` is a confirmation by every layer, and the only way from
//! `opening` to `failed` leads through `closing`, so that a grant that cannot open completely is rolled back
//! completely.

use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::policy::{Authorized, Unreachable};
use crate::{AccessRequest, GrantId, Justification, Principal, TargetId, Window};

/// An authorized request, with an id, an end, and a state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// The identifier.
    pub id: GrantId,
    /// The principal that requested it.
    pub principal: Principal,
    /// The idempotency key of the request, if it had one; none in a record of a version that did not keep it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idempotency_key: Option<String>,
    /// The reason for the request.
    pub justification: Justification,
    /// The time of the request.
    pub requested_at: Timestamp,
    /// The duration that was requested.
    pub duration: Duration,
    /// The windows that it opens.
    pub windows: Vec<Window>,
    /// The rule for an agent that is away while the grant opens.
    pub unreachable: Unreachable,
    /// The end: fixed when opening begins, the same in both layers from the first write.
    pub not_after: Timestamp,
    /// The time at which the broker gives up an opening that no layer refused but not every layer confirmed.
    pub open_by: Timestamp,
    /// The time at which the last layer confirmed the opening.
    pub opened_at: Option<Timestamp>,
    /// The time from which the layers had to close it; none in a record of a version that did not keep it.
    #[serde(default)]
    pub closing_since: Option<Timestamp>,
    /// The time at which the last layer confirmed the end.
    pub closed_at: Option<Timestamp>,
    /// The state.
    pub state: GrantState,
}

/// The state of a grant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GrantState {
    /// Waiting for an approval: nothing is open, and the end is not fixed.
    PendingApproval,
    /// Durable and audited; the layers are being opened.
    Opening,
    /// Every required layer has confirmed.
    Active,
    /// The layers are being closed, for this reason.
    Closing(CloseReason),
    /// Every layer has confirmed the end. Final.
    Closed(CloseReason),
    /// An approver denied it. Final.
    Denied {
        /// The approver's reason.
        reason: String,
    },
    /// Some layer could not open it, and the other layers closed it again. Final.
    Failed {
        /// The obstacle.
        reason: String,
    },
}

/// The reason for which a grant closes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CloseReason {
    /// The grant has reached its end.
    Expired,
    /// A principal revoked it.
    Revoked {
        /// The principal that revoked it.
        by: Principal,
        /// The principal's reason, if given.
        reason: Option<Justification>,
    },
    /// A newer grant of the same principal opens the same windows.
    Superseded {
        /// The newer grant.
        by: GrantId,
    },
    /// Some layer cannot open it, and it is rolled back; it ends as failed.
    CannotOpen {
        /// The obstacle.
        reason: String,
    },
}

/// An event that can happen to a grant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// An approver approved it; opening begins now.
    Approved,
    /// An approver denied it.
    Denied {
        /// The approver's reason.
        reason: String,
    },
    /// Every required layer has confirmed every window.
    Confirmed,
    /// The grant must close.
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
    /// The word of the event.
    pub event: &'static str,
}

impl Grant {
    /// The time within which the layers of a grant must confirm if its policy does not wait for absent agents.
    pub const OPEN_TIMEOUT: Duration = Duration::from_secs(30);
    /// The same time for a grant with a window in an Azure Firewall: a write of a firewall takes three to five
    /// minutes, and another write may be in progress.
    pub const FIREWALL_OPEN_TIMEOUT: Duration = Duration::from_secs(900);

    /// Creates the grant of an authorized request. Opening begins at `now` unless the grant waits for an approval.
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
            idempotency_key: None,
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

    /// Returns the grant after the event. Pure: the caller stores the result.
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

    /// Sets the time within which the layers of a grant that is opening must confirm, counted from its request.
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

    /// Reports whether the layers should hold this grant's windows at `now`.
    pub fn wants_open(&self, now: Timestamp) -> bool {
        matches!(self.state, GrantState::Opening | GrantState::Active) && now < self.not_after
    }

    /// Returns the time from which the layers had to close the grant: its end at the latest, even if no broker ran
    /// then. None before that time, and once the grant is over.
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

    /// Returns the targets, each once.
    pub fn targets(&self) -> Vec<&TargetId> {
        let mut targets: Vec<&TargetId> = self.windows.iter().map(|window| &window.target).collect();
        targets.sort();
        targets.dedup();
        targets
    }

    /// Reports whether this grant makes the older one unnecessary: it has the same principal and every window of
    /// the older one, and ends no earlier.
    pub fn supersedes(&self, older: &Self) -> bool {
        self.id != older.id
            && self.principal.key() == older.principal.key()
            && self.not_after >= older.not_after
            && older.windows.iter().all(|old| self.windows.iter().any(|new| new.same_opening(old)))
    }
}

impl GrantState {
    /// Reports whether the state is final.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Closed(_) | Self::Denied { .. } | Self::Failed { .. })
    }

    /// Returns the state's word, the same in every output.
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

    /// Returns the reason for the state; empty if it has none.
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
    /// Returns the event as a past participle.
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

/// Returns `at + span`, or the last representable time if that overflows.
fn later(at: Timestamp, span: Duration) -> Timestamp {
    at.checked_add(span).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests;
