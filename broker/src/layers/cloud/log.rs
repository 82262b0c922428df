//! Calls to a cloud in the log and in traces: one span each, with the target, and with the grant if the call is about one.

use std::collections::BTreeSet;

use postern_core::TargetId;
use postern_core::plan::LayerWindow;
use tracing::Span;

/// Returns the span of a call about a target.
pub(super) fn call(what: &'static str, target: &TargetId) -> Span {
    tracing::info_span!("cloud", call = what, %target, grant = tracing::field::Empty)
}

/// Returns the span of a call that opens windows of one grant, and logs the call.
pub(super) fn open_call(target: &TargetId, windows: &BTreeSet<LayerWindow>) -> Span {
    let span = call_for("open", target, windows);
    span.in_scope(|| {
        tracing::info!(event = "cloud.open_called", windows = windows.len(), "calling the cloud to open");
    });
    span
}

/// Returns the span of a call that closes windows of one grant, and logs the call.
pub(super) fn close_call(target: &TargetId, windows: &BTreeSet<LayerWindow>) -> Span {
    let span = call_for("close", target, windows);
    span.in_scope(|| {
        tracing::info!(event = "cloud.close_called", windows = windows.len(), "calling the cloud to close");
    });
    span
}

/// Returns the span of a call about windows of one grant.
fn call_for(what: &'static str, target: &TargetId, windows: &BTreeSet<LayerWindow>) -> Span {
    let span = call(what, target);
    if let Some(window) = windows.first() {
        span.record("grant", tracing::field::display(window.grant));
    }
    span
}
