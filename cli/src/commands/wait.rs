//! The wait for a grant to reach its goal, with progress for people.

use std::collections::BTreeMap;
use std::time::Duration;

use postern_proto::v1::{self, GrantState};

use super::watch::{GrantWatch, WatchEvent};
use crate::connect::BrokerClient;
use crate::error::Failure;
use crate::output::{Console, json, printable, time};

/// The state that a grant should reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Goal {
    /// Every layer open.
    Active,
    /// Every layer closed.
    Closed,
}

/// Waits until the grant has reached its goal or cannot reach it any more, and returns its last known state.
pub(super) async fn until(
    goal: Goal,
    timeout: Duration,
    grant: v1::Grant,
    broker: &BrokerClient,
    console: &mut Console,
) -> (v1::Grant, Result<(), Failure>) {
    let mut latest = grant;
    let mut progress = ShownProgress::default();
    let waiting = follow(goal, &mut latest, &mut progress, broker, console);
    let outcome = match tokio::time::timeout(timeout, waiting).await {
        Ok(outcome) => outcome,
        Err(_) => Err(Failure::TimedOut {
            grant: latest.id.clone(),
            state: json::grant_state(latest.state()),
            waited: time::span(timeout),
        }),
    };
    (latest, outcome)
}

async fn follow(
    goal: Goal,
    latest: &mut v1::Grant,
    progress: &mut ShownProgress,
    broker: &BrokerClient,
    console: &mut Console,
) -> Result<(), Failure> {
    let filter = v1::GrantFilter { grant_id: latest.id.clone(), ..v1::GrantFilter::default() };
    let mut watch = GrantWatch::new(broker, filter);
    let mut seen = false;
    loop {
        for line in progress.lines(latest) {
            console.note(&line);
        }
        if let Some(settled) = settled(goal, latest) {
            return settled;
        }
        match watch.next().await? {
            WatchEvent::Grant(grant) => {
                seen = true;
                *latest = *grant;
            }
            WatchEvent::Listed if !seen => {
                return Err(Failure::BadAnswer {
                    what: format!("its list does not contain grant {}", latest.id),
                });
            }
            WatchEvent::Listed => {}
        }
    }
}

/// Returns the outcome of the wait, or none while the wait continues.
fn settled(goal: Goal, grant: &v1::Grant) -> Option<Result<(), Failure>> {
    let not_active = || {
        Err(Failure::NotActive {
            grant: grant.id.clone(),
            state: json::grant_state(grant.state()),
            reason: printable(&grant.reason),
        })
    };
    match (goal, grant.state()) {
        (_, GrantState::Unspecified | GrantState::PendingApproval | GrantState::Opening) => None,
        (Goal::Active, GrantState::Active) => Some(Ok(())),
        (Goal::Active, GrantState::Denied) => {
            Some(Err(Failure::Denied { grant: grant.id.clone(), reason: printable(&grant.reason) }))
        }
        // A rollback continues: the grant has failed once nothing of it is open.
        (Goal::Active, GrantState::Closing) if grant.close_reason() == v1::CloseReason::CannotOpen => None,
        (Goal::Active, GrantState::Closing | GrantState::Closed | GrantState::Failed) => Some(not_active()),
        (Goal::Closed, GrantState::Active | GrantState::Closing) => None,
        (Goal::Closed, GrantState::Closed | GrantState::Denied | GrantState::Failed) => Some(Ok(())),
    }
}

/// The progress that has been shown already.
#[derive(Debug, Default)]
struct ShownProgress {
    state: Option<GrantState>,
    windows: BTreeMap<String, String>,
}

impl ShownProgress {
    /// Returns the news: the grant's state, and each window with a layer that has changed.
    fn lines(&mut self, grant: &v1::Grant) -> Vec<String> {
        let mut lines = Vec::new();
        if self.state.replace(grant.state()) != Some(grant.state()) {
            let state = json::grant_state(grant.state()).replace('_', " ");
            lines.push(format!("grant {} is {state}", grant.id));
        }
        for window in grant.windows.iter().cloned().map(json::WindowJson::from) {
            let port = window.port.as_ref().map_or_else(time::dash, ToString::to_string);
            let name = format!("{} {port} from {}", window.target, window.source);
            let layers = window.layers.iter().map(layer).collect::<Vec<_>>().join(", ");
            if self.windows.get(&name) != Some(&layers) {
                lines.push(format!("  {name}: {layers}"));
                self.windows.insert(name, layers);
            }
        }
        lines.into_iter().map(|line| printable(&line)).collect()
    }
}

/// Describes a layer: `host open`, or `host unreachable (its agent is not connected)`.
fn layer(layer: &json::WindowLayerJson) -> String {
    let state = format!("{} {}", layer.layer, layer.state);
    if layer.detail.is_empty() { state } else { format!("{state} ({})", layer.detail) }
}

#[cfg(test)]
mod tests;
