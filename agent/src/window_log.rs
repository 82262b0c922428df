//! Log lines about windows. Each line carries its grant, and the generation that brought it.

use std::collections::BTreeSet;

use postern_core::{GrantId, Mode};

use crate::clock::BootTime;
use crate::desired_state::DesiredState;
use crate::firewall::policy::HeldWindow;

/// The most windows of one desired state that are logged one by one.
const MAX_LOGGED: usize = 32;

/// Logs that a desired state replaced another.
pub(crate) fn accepted(before: Option<&DesiredState>, after: &DesiredState, now: BootTime) {
    let known = |desired: Option<&DesiredState>, window: &HeldWindow| {
        desired.is_some_and(|d| d.same_opening_as(window).is_some())
    };
    let opened: Vec<_> = after.windows.iter().filter(|window| !known(before, window)).collect();
    let before_windows = before.into_iter().flat_map(|before| &before.windows);
    let closed: Vec<_> = before_windows.filter(|window| !known(Some(after), window)).collect();
    let generation = after.generation;
    tracing::info!(
        generation,
        mode = mode_name(after.mode),
        ports = after.ports.len(),
        windows = after.windows.len(),
        opened = opened.len(),
        closed = closed.len(),
        "the host holds a new desired state"
    );
    for window in opened.into_iter().take(MAX_LOGGED) {
        let left_s = window.deadline.since(now).as_secs();
        tracing::info!(event = "window.opened", generation, grant = %window.grant, port = %window.port, source = %window.source, left_s, "window opened");
    }
    for window in closed.into_iter().take(MAX_LOGGED) {
        tracing::info!(event = "window.closed", generation, grant = %window.grant, port = %window.port, source = %window.source, "window closed");
    }
}

/// Returns the grants with a window that is desired and not held yet.
pub(crate) fn not_yet_held(held: Option<&DesiredState>, desired: &BTreeSet<HeldWindow>) -> BTreeSet<GrantId> {
    let is_held = |window: &HeldWindow| held.is_some_and(|held| held.same_opening_as(window).is_some());
    desired.iter().filter(|window| !is_held(window)).map(|window| window.grant).collect()
}

/// Logs that the host holds the windows of a state without policies, and no others.
pub(crate) fn protection_alone(generation: u64, windows: usize) {
    tracing::warn!(
        event = "protection.alone",
        generation,
        windows,
        "the broker does not know this host or cannot read its policies; the host has closed every window besides the broker's, and keeps \
         its ports protected"
    );
}

/// Logs that a desired state was not accepted, so that no new window opens.
pub(crate) fn refused(generation: u64, unopened: &BTreeSet<GrantId>, error: &str) {
    tracing::error!(generation, error, "the host did not accept a desired state");
    for grant in unopened.iter().take(MAX_LOGGED) {
        tracing::error!(generation, %grant, error, "the windows of a grant were not opened");
    }
}

/// Logs that windows came to their end; the kernel closed them by itself.
pub(crate) fn ended(windows: &[HeldWindow]) {
    for window in windows.iter().take(MAX_LOGGED) {
        tracing::info!(event = "window.ended", grant = %window.grant, port = %window.port, source = %window.source, "window ended");
    }
    if windows.len() > MAX_LOGGED {
        tracing::info!(count = windows.len() - MAX_LOGGED, "further windows ended");
    }
}

/// Logs the state that came from the ledger.
pub(crate) fn restored(accepted: &DesiredState, now: BootTime) {
    tracing::info!(
        generation = accepted.generation,
        mode = mode_name(accepted.mode),
        ports = accepted.ports.len(),
        windows = accepted.windows.len(),
        "the host holds the state that was accepted before the start"
    );
    for window in accepted.windows.iter().take(MAX_LOGGED) {
        let left_s = window.deadline.since(now).as_secs();
        tracing::info!(generation = accepted.generation, grant = %window.grant, port = %window.port, source = %window.source, left_s, "window kept");
    }
}

/// Returns the name of a mode.
pub(crate) fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Monitor => "monitor",
        Mode::Enforce => "enforce",
    }
}
