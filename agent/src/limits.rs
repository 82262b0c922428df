//! The agent's own bounds on a desired state, which no broker can pass (I10).
//!
//! **The rule.** A state with more windows or ports than the bound opens nothing new. The windows that this host holds and the state
//! still wants stay, all others close. No port loses its protection, and as many new ports as fit get it. The broker gets an error that
//! names the bound. A state within the bounds closes first and opens after that, so that what it opens delays no close.
//!
//! **On failure.** A host that has accepted no state yet does not know what it holds: such a state changes nothing there.

use postern_core::Invalid;

use crate::desired_state::DesiredState;

/// The bytes of a window or a port in a message, rounded up.
const ITEM_BYTES: usize = 128;
/// The multiple of the bounds that a message may hold. A message that is larger ends the session, and then its closes are not
/// applied either.
const MESSAGE_MARGIN: usize = 16;

/// The bounds on a desired state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StateLimits {
    /// The most windows.
    pub windows: usize,
    /// The most protected ports.
    pub ports: usize,
}

impl Default for StateLimits {
    fn default() -> Self {
        Self { windows: 4096, ports: 1024 }
    }
}

impl StateLimits {
    /// Makes bounds from the numbers of a configuration.
    ///
    /// # Errors
    /// A number is out of range.
    pub fn new(windows: usize, ports: usize) -> Result<Self, Invalid> {
        let checked = |field: &str, number: usize, most: usize| {
            let problem = || format!("{number} is out of range");
            let remedy = || format!("use 1 to {most}");
            (1..=most)
                .contains(&number)
                .then_some(number)
                .ok_or_else(|| Invalid::new(field, problem(), remedy()))
        };
        Ok(Self {
            windows: checked("limits.windows", windows, 65_536)?,
            ports: checked("limits.ports", ports, 4096)?,
        })
    }

    /// Checks a desired state.
    ///
    /// # Errors
    /// The state is past a bound; the first that it passes.
    pub fn check(&self, desired: &DesiredState) -> Result<(), LimitExceeded> {
        let numbers =
            [("windows", desired.windows.len(), self.windows), ("ports", desired.ports.len(), self.ports)];
        let passed = numbers.into_iter().find(|(_, number, most)| number > most);
        passed.map_or(Ok(()), |(what, number, most)| Err(LimitExceeded { what, number, most }))
    }

    /// Returns a state with as many of its ports as fit beside those that are protected already.
    pub(crate) fn fitting(&self, mut wanted: DesiredState, accepted: &DesiredState) -> DesiredState {
        let held = accepted.ports.clone();
        let room = self.ports.saturating_sub(held.len());
        wanted.ports = wanted.ports.into_iter().filter(|port| !held.contains(port)).take(room).collect();
        wanted.ports.extend(held);
        wanted
    }

    /// Returns the largest message that the agent accepts, in bytes.
    pub fn message_bytes(&self) -> usize {
        (self.windows + self.ports) * ITEM_BYTES * MESSAGE_MARGIN
    }
}

/// A desired state is past a bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "limits.{what}: the state has {number} {what}, and this host holds {most} at most; nothing new was opened"
)]
pub struct LimitExceeded {
    what: &'static str,
    number: usize,
    most: usize,
}
