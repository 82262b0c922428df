//! Noticing what no message tells: suspend, stepped clocks, and that time has come to look again.

use std::time::Duration;

use jiff::SignedDuration;

use crate::clock::{BootTime, Moment};

/// Less than this is the noise of reading two clocks one after the other.
const MIN_SUSPEND: Duration = Duration::from_millis(100);
/// A step of the wall that is worth a new ledger.
const MIN_CLOCK_STEP: SignedDuration = SignedDuration::from_secs(1);
/// How old the ledger may grow while it holds windows.
const LEDGER_WRITE_INTERVAL: Duration = Duration::from_secs(60);
/// How often the kernel is looked at though nothing was noticed.
const TABLE_CHECK_INTERVAL: Duration = Duration::from_secs(60);

/// What was last seen of each clock.
#[derive(Debug)]
pub(super) struct ClockWatch {
    suspended: Duration,
    wall_offset: SignedDuration,
    written: BootTime,
    applied: BootTime,
}

impl ClockWatch {
    pub(super) fn new(now: &Moment, suspended: Duration) -> Self {
        Self { suspended, wall_offset: wall_offset(now), written: now.boottime, applied: now.boottime }
    }

    /// Whether the machine slept since the last call: the kernel's timeouts stood still meanwhile.
    pub(super) fn slept(&mut self, suspended: Duration) -> bool {
        let slept = suspended.saturating_sub(self.suspended) > MIN_SUSPEND;
        if slept {
            self.suspended = suspended;
        }
        slept
    }

    /// Whether the kernel should be looked at again.
    pub(super) fn check_is_due(&self, now: &Moment) -> bool {
        self.since_applied(now) >= TABLE_CHECK_INTERVAL
    }

    /// Whether the ledger should be written again: its wall ends are no longer true, or it grows old.
    pub(super) fn write_is_due(&self, now: &Moment, holds_windows: bool) -> bool {
        let stepped = (wall_offset(now) - self.wall_offset).abs() > MIN_CLOCK_STEP;
        stepped || (holds_windows && now.boottime.since(self.written) >= LEDGER_WRITE_INTERVAL)
    }

    pub(super) fn written(&mut self, now: &Moment) {
        self.written = now.boottime;
        self.wall_offset = wall_offset(now);
    }

    /// How long ago the kernel was last seen to hold what it should.
    pub(super) fn since_applied(&self, now: &Moment) -> Duration {
        now.boottime.since(self.applied)
    }

    pub(super) fn applied(&mut self, now: &Moment) {
        self.applied = now.boottime;
    }
}

/// Where the wall's zero lies on the clock that never steps.
fn wall_offset(now: &Moment) -> SignedDuration {
    let boottime = SignedDuration::try_from(now.boottime.since(BootTime(0))).unwrap_or_default();
    now.wall.as_duration() - boottime
}
