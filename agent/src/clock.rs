//! The moments of the agent, and the only module of the agent that asks for the time.
//!
//! The agent uses the wall clock, which may step, only to carry an end across a reboot, and for certificates.

use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
pub use postern_runtime::clock::{monotonic, wall};
use serde::{Deserialize, Serialize};

/// The largest step of the wall clock that counts as none: clocks are adjusted, and read one after the other.
pub(crate) const MAX_UNNOTICED_STEP: Duration = Duration::from_secs(1);

/// A moment on `CLOCK_BOOTTIME`, in nanoseconds since boot: it never steps, and it counts time in suspend
/// (clock_gettime(2)), which the kernel's own set timeouts do not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BootTime(pub u64);

impl BootTime {
    /// Returns the moment that is this much later; saturates.
    #[must_use]
    pub fn plus(self, span: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// Returns the time since `earlier`; zero where this moment is not after it.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// A boot of the kernel. [`BootTime`]s of different boots cannot be compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BootId(pub String);

impl BootId {
    /// Reports whether both are the same boot. An id that could not be read equals no other.
    pub fn same(&self, other: &Self) -> bool {
        !self.0.is_empty() && self == other
    }
}

impl fmt::Display for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A moment by every clock that a record on disk needs to be understood after a reboot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    /// The boot that `boottime` belongs to.
    pub boot: BootId,
    /// The moment on the clock that never steps.
    pub boottime: BootTime,
    /// The moment on the wall clock.
    pub wall: Timestamp,
}

/// Returns the kernel's id of this boot (random(4)): a UUID that changes with every boot, empty where it cannot be read.
pub fn boot_id() -> BootId {
    let read = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    BootId(read.map(|text| text.trim().to_owned()).unwrap_or_default())
}

/// Returns the present moment on every clock.
pub fn moment() -> Moment {
    Moment { boot: boot_id(), boottime: boottime(), wall: wall() }
}

/// Returns the time on `CLOCK_BOOTTIME`.
pub fn boottime() -> BootTime {
    BootTime(0).plus(postern_runtime::clock::boottime())
}
