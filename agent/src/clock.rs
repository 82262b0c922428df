//! The only place of the agent that reads a clock.

use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// A moment on `CLOCK_BOOTTIME`, in nanoseconds since boot: it never steps, and it counts time in suspend
/// (clock_gettime(2)), which the kernel's own set timeouts do not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BootTime(pub u64);

impl BootTime {
    /// This much later; saturates.
    #[must_use]
    pub fn plus(self, span: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// How long after `earlier`; zero where it is not after.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// One boot of one kernel. [`BootTime`]s of different boots have nothing to do with each other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BootId(pub String);

impl BootId {
    /// Whether both are the same boot. One that could not be read is the same as no other.
    pub fn same(&self, other: &Self) -> bool {
        !self.0.is_empty() && self == other
    }
}

impl fmt::Display for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One moment by every clock that a record on disk needs, to be understood after a reboot too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    /// The boot that `boottime` belongs to.
    pub boot: BootId,
    /// By the clock that never steps.
    pub boottime: BootTime,
    /// By the wall.
    pub wall: Timestamp,
}

/// The kernel's id of this boot: random(4), a UUID that changes with every boot. Empty where it cannot be read.
pub fn boot_id() -> BootId {
    let read = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    BootId(read.map(|text| text.trim().to_owned()).unwrap_or_default())
}

/// Now, by every clock.
pub fn moment() -> Moment {
    Moment { boot: boot_id(), boottime: boottime(), wall: wall() }
}

/// Now on `CLOCK_BOOTTIME`.
pub fn boottime() -> BootTime {
    BootTime(nanoseconds(rustix::time::clock_gettime(rustix::time::ClockId::Boottime)))
}

/// Now on `CLOCK_MONOTONIC`, which stands still while the machine is suspended.
pub fn monotonic() -> Duration {
    Duration::from_nanos(nanoseconds(rustix::time::clock_gettime(rustix::time::ClockId::Monotonic)))
}

/// Now by the wall. It may step: used only to carry an end across a reboot, and for certificates.
#[allow(clippy::disallowed_methods)]
pub fn wall() -> Timestamp {
    Timestamp::now()
}

fn nanoseconds(time: rustix::time::Timespec) -> u64 {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(time.tv_nsec).unwrap_or(0))
}
