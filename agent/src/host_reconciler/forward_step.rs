//! A step of the wall clock forward, which may be all that shows a pause by the hypervisor: see [`super::clock_watch`]. Pure: time is an
//! argument.

use std::time::Duration;

use crate::clock::BootTime;

/// The time that a connected broker has to send the true ends of windows after a step of the wall clock.
const ASK_GRACE: Duration = Duration::from_secs(3);

/// A step of the wall clock forward, by which windows may have to be shortened.
#[derive(Debug)]
pub(super) struct ForwardStep {
    /// The size of the step.
    pub(super) by: Duration,
    noticed: BootTime,
    /// True once a session has begun since: the next desired state has the true ends.
    pub(super) asked: bool,
}

impl ForwardStep {
    /// Makes a step that was noticed at `now`, together with an earlier one that has not been answered.
    pub(super) fn after(earlier: Option<&Self>, by: Duration, now: BootTime) -> Self {
        let by = by.saturating_add(earlier.map_or(Duration::ZERO, |earlier| earlier.by));
        Self { by, noticed: now, asked: false }
    }

    /// Reports whether windows must be shortened now: no broker has sent the true ends, or may soon send them.
    pub(super) fn is_due(&self, is_connected: bool, now: BootTime) -> bool {
        !is_connected || now.since(self.noticed) >= ASK_GRACE
    }
}
