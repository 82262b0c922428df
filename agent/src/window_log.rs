//! Log lines about windows. Each carries its grant, and the generation that brought it.

use std::collections::BTreeSet;

use postern_core::{GrantId, Mode};

use crate::clock::BootTime;
use crate::desired_state::{DesiredState, HeldWindow};

/// More changes than this in one message are counted, not listed.
const MAX_LOGGED: usize = 32;

/// A desired state was accepted in the place of another.
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
        "holding a new desired state"
    );
    for window in opened.into_iter().take(MAX_LOGGED) {
        let left_s = window.deadline.since(now).as_secs();
        tracing::info!(generation, grant = %window.grant, port = %window.port, source = %window.source, left_s, "window opened");
    }
    for window in closed.into_iter().take(MAX_LOGGED) {
        tracing::info!(generation, grant = %window.grant, port = %window.port, source = %window.source, "window closed");
    }
}

/// The grants with a window that is told and not held yet.
pub(crate) fn not_yet_open(held: Option<&DesiredState>, desired: &DesiredState) -> BTreeSet<GrantId> {
    let is_held = |window: &HeldWindow| held.is_some_and(|held| held.same_opening_as(window).is_some());
    desired.windows.iter().filter(|window| !is_held(window)).map(|window| window.grant).collect()
}

/// A desired state was not accepted, and nothing new opens.
pub(crate) fn refused(generation: u64, unopened: &BTreeSet<GrantId>, error: &str) {
    tracing::error!(generation, error, "a desired state was not accepted");
    for grant in unopened.iter().take(MAX_LOGGED) {
        tracing::error!(generation, %grant, error, "windows were not opened");
    }
}

/// Windows came to their end; the kernel closed them by itself.
pub(crate) fn ended(windows: &[HeldWindow]) {
    for window in windows.iter().take(MAX_LOGGED) {
        tracing::info!(grant = %window.grant, port = %window.port, source = %window.source, "window ended");
    }
    if windows.len() > MAX_LOGGED {
        tracing::info!(more = windows.len() - MAX_LOGGED, "more windows ended");
    }
}

/// A desired state came from the ledger.
pub(crate) fn restored(accepted: &DesiredState, now: BootTime) {
    tracing::info!(
        generation = accepted.generation,
        mode = mode_name(accepted.mode),
        ports = accepted.ports.len(),
        windows = accepted.windows.len(),
        "holding what was accepted before the start"
    );
    for window in accepted.windows.iter().take(MAX_LOGGED) {
        let left_s = window.deadline.since(now).as_secs();
        tracing::info!(generation = accepted.generation, grant = %window.grant, port = %window.port, source = %window.source, left_s, "window kept");
    }
}

/// The word of a mode.
pub(crate) fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Monitor => "monitor",
        Mode::Enforce => "enforce",
    }
}
