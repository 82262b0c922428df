//! Noticing what no message tells: suspend, stepped clocks, and that time has come to look again.

use std::time::Duration;

use jiff::SignedDuration;

use crate::clock::{BootTime, Moment};

/// Less than this is the noise of reading two clocks one after the other.
const SUSPEND_NOTICED: Duration = Duration::from_millis(100);
/// A step of the wall that is worth a new ledger.
const STEP_NOTICED: SignedDuration = SignedDuration::from_secs(1);
/// How old the ledger may grow while it holds windows.
const WRITE_EVERY: Duration = Duration::from_secs(60);
/// How often the kernel is looked at though nothing was noticed.
const ENSURE_EVERY: Duration = Duration::from_secs(60);

/// What was last seen of each clock.
#[derive(Debug)]
pub(super) struct Watchful {
    suspended: Duration,
    wall_off: SignedDuration,
    written: BootTime,
    ensured: BootTime,
}

impl Watchful {
    pub(super) fn new(now: &Moment, suspended: Duration) -> Self {
        Self { suspended, wall_off: wall_off(now), written: now.boottime, ensured: now.boottime }
    }

    /// Whether the machine slept since the last call: the kernel's timeouts stood still meanwhile.
    pub(super) fn slept(&mut self, suspended: Duration) -> bool {
        let slept = suspended.saturating_sub(self.suspended) > SUSPEND_NOTICED;
        if slept {
            self.suspended = suspended;
        }
        slept
    }

    /// Whether the kernel should be looked at again.
    pub(super) fn due(&self, now: &Moment) -> bool {
        self.since_ensured(now) >= ENSURE_EVERY
    }

    /// Whether the ledger should be written again: its wall ends are no longer true, or it grows old.
    pub(super) fn must_write(&self, now: &Moment, holds_windows: bool) -> bool {
        let stepped = (wall_off(now) - self.wall_off).abs() > STEP_NOTICED;
        stepped || (holds_windows && now.boottime.since(self.written) >= WRITE_EVERY)
    }

    pub(super) fn written(&mut self, now: &Moment) {
        self.written = now.boottime;
        self.wall_off = wall_off(now);
    }

    /// How long ago the kernel was last seen to hold what it should.
    pub(super) fn since_ensured(&self, now: &Moment) -> Duration {
        now.boottime.since(self.ensured)
    }

    pub(super) fn ensured(&mut self, now: &Moment) {
        self.ensured = now.boottime;
    }
}

/// Where the wall's zero lies on the clock that never steps.
fn wall_off(now: &Moment) -> SignedDuration {
    let boottime = SignedDuration::try_from(now.boottime.since(BootTime(0))).unwrap_or_default();
    now.wall.as_duration() - boottime
}
