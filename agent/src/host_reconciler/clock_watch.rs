//! The clock watch: notices what no message reports, namely a suspend, a step of the wall clock, and the time for the next
//! check.
//!
//! The agent lives by four clocks that disagree after such events:
//!
//! - `CLOCK_BOOTTIME` counts through a suspend and never steps. Deadlines are on it.
//! - `CLOCK_MONOTONIC` stands still in a suspend. The difference of the two is the time that the machine was suspended.
//! - The kernel's set timeouts stand still in a suspend as well. After one, each window in the kernel would end late by
//!   that time (I2), so the reconciler must set every timeout again.
//! - None of these counts while a hypervisor pauses the machine, or before a snapshot of it is restored. Afterwards the wall clock is
//!   set forward, by the host or by NTP, and that step is all that shows the pause. So a step forward shortens every window by as
//!   much, unless a broker sends the true ends at once; a step backward changes nothing, and nothing is ever lengthened. A machine whose wall clock is never set after a pause
//!   cannot know of it before it reaches the broker ([`crate::broker_clock`]).
//! - The wall clock may step. The ledger stores each end on it, for the time after a reboot (see [`crate::ledger`]), so a
//!   step makes the ledger wrong, and the reconciler must write it again.
//!
//! [`ClockWatch`] keeps the last values that it needs and answers questions; it acts on nothing. The reconciler asks at
//! every tick, about once a second, so it notices a suspend within a second of waking. The clock watch also says when the
//! next check is due: the ledger is written every minute while it holds windows, which bounds the harm of a wall clock
//! that is wrong at the next boot, and the table is read every minute, which finds a change that the watch of the table
//! missed.
//!
//! A suspend of up to 100 ms is not noticed, because it looks like the noise of two clocks that are read one
//! after the other. A step of the wall clock of up to 1 s is not noticed either: it moves ends by less than a second, and
//! only after a reboot.

use std::time::Duration;

use jiff::SignedDuration;

use crate::clock::{BootTime, MAX_UNNOTICED_STEP, Moment};

/// The shortest suspend that is noticed; less is the noise of reading two clocks one after the other.
const MIN_SUSPEND: Duration = Duration::from_millis(100);
/// The age of a ledger with windows at which it is written again.
const LEDGER_WRITE_INTERVAL: Duration = Duration::from_secs(60);
/// The interval at which the table is checked although nothing was noticed.
const TABLE_CHECK_INTERVAL: Duration = Duration::from_secs(60);

/// The last values of each clock.
#[derive(Debug)]
pub(super) struct ClockWatch {
    suspended: Duration,
    wall_offset: SignedDuration,
    /// The offset of the wall clock by which the ends of windows are right.
    judged_offset: SignedDuration,
    written: BootTime,
    applied: BootTime,
}

impl ClockWatch {
    pub(super) fn new(now: &Moment, suspended: Duration) -> Self {
        let offset = wall_offset(now);
        Self {
            suspended,
            wall_offset: offset,
            judged_offset: offset,
            written: now.boottime,
            applied: now.boottime,
        }
    }

    /// Reports whether the machine was suspended since the last call: the kernel's timeouts stood still meanwhile.
    pub(super) fn was_suspended(&mut self, suspended: Duration) -> bool {
        let was_suspended = suspended.saturating_sub(self.suspended) > MIN_SUSPEND;
        if was_suspended {
            self.suspended = suspended;
        }
        was_suspended
    }

    /// Returns the time by which the wall clock went forward since the last call, other than by counting, if that is more than a
    /// second. Smaller steps add up.
    pub(super) fn stepped_forward(&mut self, now: &Moment) -> Option<Duration> {
        let offset = wall_offset(now);
        let step = offset - self.judged_offset;
        let forward = Duration::try_from(step).ok();
        // A step back counts at once, whatever its size.
        if forward.is_none_or(|forward| forward > MAX_UNNOTICED_STEP) {
            self.judged_offset = offset;
        }
        forward.filter(|forward| *forward > MAX_UNNOTICED_STEP)
    }

    /// Reports whether the next check of the table is due.
    pub(super) fn check_is_due(&self, now: &Moment) -> bool {
        self.since_applied(now) >= TABLE_CHECK_INTERVAL
    }

    /// Reports whether the ledger must be written again: the wall clock was stepped, or the ledger is old.
    pub(super) fn write_is_due(&self, now: &Moment, holds_windows: bool) -> bool {
        let stepped = (wall_offset(now) - self.wall_offset).unsigned_abs() > MAX_UNNOTICED_STEP;
        stepped || (holds_windows && now.boottime.since(self.written) >= LEDGER_WRITE_INTERVAL)
    }

    pub(super) fn written(&mut self, now: &Moment) {
        self.written = now.boottime;
        self.wall_offset = wall_offset(now);
    }

    /// Returns the time since the kernel was last known to hold the state that it should.
    pub(super) fn since_applied(&self, now: &Moment) -> Duration {
        now.boottime.since(self.applied)
    }

    pub(super) fn applied(&mut self, now: &Moment) {
        self.applied = now.boottime;
    }
}

/// Returns the offset of the wall clock from the clock that never steps.
fn wall_offset(now: &Moment) -> SignedDuration {
    let boottime = SignedDuration::try_from(now.boottime.since(BootTime(0))).unwrap_or_default();
    now.wall.as_duration() - boottime
}
