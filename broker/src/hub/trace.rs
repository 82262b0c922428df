//! Log lines about what an agent is told and how it answers. Each carries one grant, and the generation.

use std::collections::BTreeSet;

use postern_core::{GrantId, TargetId};
use tracing::Span;

use super::Told;

/// More grants than this in one message are counted, not listed.
const LISTED: usize = 32;

/// What is logged in here is about the host layer of this target.
pub(super) fn span(target: &TargetId) -> Span {
    tracing::info_span!("host", %target)
}

/// An agent is told something else than before.
pub(super) fn told(before: Option<&Told>, after: &Told) {
    let (before, grants) = (before.map(grants).unwrap_or_default(), grants(after));
    let generation = after.generation;
    each(grants.difference(&before), |grant| {
        tracing::info!(%grant, generation, "told the agent to open");
    });
    each(before.difference(&grants), |grant| {
        tracing::info!(%grant, generation, "told the agent to close");
    });
}

/// An agent refused what it was told: what it does not hold already does not open.
pub(super) fn refused(confirmed: Option<&Told>, told: Option<&Told>, reason: &str) {
    let held = confirmed.map(grants).unwrap_or_default();
    let Some(told) = told else { return };
    each(grants(told).difference(&held), |grant| {
        tracing::warn!(%grant, generation = told.generation, reason, "the agent refused");
    });
}

fn grants(told: &Told) -> BTreeSet<GrantId> {
    told.desired.windows.iter().map(|window| window.grant).collect()
}

fn each<'a>(grants: impl Iterator<Item = &'a GrantId>, tell: impl Fn(&GrantId)) {
    let mut more = 0_usize;
    for (number, grant) in grants.enumerate() {
        if number < LISTED { tell(grant) } else { more += 1 }
    }
    if more > 0 {
        tracing::info!(more, "so many more grants");
    }
}
