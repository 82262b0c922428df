//! Log lines about the states that are pushed to an agent and its answers. Each carries one grant and the generation.

use std::collections::BTreeSet;

use postern_core::{GrantId, TargetId};
use tracing::Span;

use super::desired_state::PushedState;

/// The number of grants of one message that are listed; further ones are counted.
const MAX_LISTED: usize = 32;

/// Returns the span for log lines about the host layer of a target.
pub(super) fn span(target: &TargetId) -> Span {
    tracing::info_span!("host", %target)
}

/// Logs the grants by which a pushed state differs from the one before.
pub(super) fn pushed(before: Option<&PushedState>, after: &PushedState) {
    let (before, grants) = (before.map(grants).unwrap_or_default(), grants(after));
    let generation = after.generation;
    each(grants.difference(&before), |grant| {
        tracing::info!(event = "host.open_pushed", %grant, generation, "pushed a state that opens");
    });
    each(before.difference(&grants), |grant| {
        tracing::info!(event = "host.close_pushed", %grant, generation, "pushed a state that closes");
    });
}

/// Logs a refusal: windows that the agent does not hold already do not open.
pub(super) fn refused(confirmed: Option<&PushedState>, pushed: Option<&PushedState>, reason: &str) {
    let held = confirmed.map(grants).unwrap_or_default();
    let Some(pushed) = pushed else { return };
    each(grants(pushed).difference(&held), |grant| {
        tracing::warn!(%grant, generation = pushed.generation, reason, "the agent refused");
    });
}

fn grants(state: &PushedState) -> BTreeSet<GrantId> {
    state.desired.windows.iter().map(|window| window.grant).collect()
}

fn each<'a>(grants: impl Iterator<Item = &'a GrantId>, log: impl Fn(&GrantId)) {
    let mut omitted = 0_usize;
    for (number, grant) in grants.enumerate() {
        if number < MAX_LISTED { log(grant) } else { omitted += 1 }
    }
    if omitted > 0 {
        tracing::info!(count = omitted, "further grants omitted");
    }
}
