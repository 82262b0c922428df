//! The desired state of this host as the broker sends it, parsed and placed on the host's own clock.
//!
//! I2 begins here. The broker sends the *remaining* time of each window, counted from the moment at which it sent the
//! message. With it come two values: `heard`, the agent's own stamp (on the agent's clock) of the last message that the
//! broker had received, and `heard_ago`, the time since the broker received it (on the broker's clock). The agent stamped
//! that message before the broker received it, so `heard + heard_ago` is not after the moment of sending, and
//! `heard + heard_ago + remaining` is not after the true end. That holds however long the network or a stopped process
//! delayed the message, and whatever the wall clocks show.

use std::collections::BTreeSet;
use std::time::Duration;

use postern_core::{Invalid, Mode, ProtectedPort};
use postern_proto::convert;
use postern_proto::v1;

use crate::clock::BootTime;
use crate::firewall::policy::{HeldWindow, HostPolicy};

/// The whole desired state of this host. The agent removes a port or window that is absent from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DesiredState {
    /// The number that the broker gave this state.
    pub generation: u64,
    /// The treatment of a protected port that has no window.
    pub mode: Mode,
    /// The protected ports.
    pub ports: BTreeSet<ProtectedPort>,
    /// The open windows.
    pub windows: BTreeSet<HeldWindow>,
    /// The generation of the policies from which mode and ports follow; 0 if unknown.
    pub policies: u64,
    /// Set if the host keeps protection that the broker has taken off with policies that are not newer.
    pub keeps: bool,
    /// Set for the state of the configuration, before this host has held anything that a broker has sent.
    pub is_bootstrap: bool,
}

impl DesiredState {
    /// Places a desired state on this host's clock. `anchor` comes from [`anchor`].
    ///
    /// # Errors
    /// The first field that no core type can hold.
    pub fn from_wire(wire: &v1::DesiredState, anchor: BootTime) -> Result<Self, Invalid> {
        let ports =
            wire.ports.iter().enumerate().map(|(i, port)| convert::port(&format!("ports[{i}]"), Some(port)));
        Ok(Self {
            generation: wire.generation,
            mode: convert::mode("mode", wire.mode())?,
            ports: ports.collect::<Result<_, _>>()?,
            windows: Self::windows_from_wire(wire, anchor)?,
            policies: wire.policy_generation,
            keeps: false,
            is_bootstrap: false,
        })
    }

    /// Returns the windows of a state that names no protection, placed on this host's clock.
    ///
    /// # Errors
    /// The first field that no core type can hold.
    pub fn windows_from_wire(
        wire: &v1::DesiredState,
        anchor: BootTime,
    ) -> Result<BTreeSet<HeldWindow>, Invalid> {
        let windows = wire.windows.iter().enumerate().map(|(i, window)| {
            window_from_wire(window, anchor).map_err(|error| error.within(&format!("windows[{i}]")))
        });
        windows.collect()
    }

    /// Reports whether this state drops a protected port of the other, or only watches what the other enforces.
    pub fn takes_protection_off(&self, other: &Self) -> bool {
        let relaxes = other.mode == Mode::Enforce && self.mode == Mode::Monitor;
        !other.ports.is_subset(&self.ports) || (relaxes && !other.ports.is_empty())
    }

    /// Returns the policy that the host layer must hold for this state.
    pub fn policy(&self) -> HostPolicy {
        HostPolicy {
            mode: self.mode,
            ports: self.ports.clone(),
            windows: self.windows.iter().copied().collect(),
            trial_until: None,
        }
    }

    /// Returns the window here that is the same opening as the given one.
    pub fn same_opening_as(&self, of: &HeldWindow) -> Option<&HeldWindow> {
        // Windows sort by their opening first, and by deadline last.
        let earliest = HeldWindow { deadline: BootTime(0), ..*of };
        self.windows.range(earliest..).next().filter(|window| window.same_opening(of))
    }

    /// Drops the windows whose end has come.
    pub fn drop_ended(&mut self, now: BootTime) {
        self.windows.retain(|window| window.deadline > now);
    }
}

/// Returns the latest moment, on this host's clock, that is certainly not after the broker sent the message.
///
/// A `heard` after `now` is no stamp of this agent; the anchor is never later than `now`.
pub fn anchor(heard: BootTime, heard_ago: Duration, now: BootTime) -> BootTime {
    heard.plus(heard_ago).min(now)
}

fn window_from_wire(wire: &v1::HostWindow, anchor: BootTime) -> Result<HeldWindow, Invalid> {
    Ok(HeldWindow {
        grant: wire.grant_id.parse().map_err(|e: Invalid| e.named("grant_id"))?,
        port: convert::port("port", wire.port.as_ref())?,
        source: wire.source.parse()?,
        deadline: anchor.plus(convert::duration("remaining", wire.remaining.as_ref())?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire() -> v1::DesiredState {
        v1::DesiredState {
            keep_protection: false,
            policy_generation: 0,
            generation: 7,
            mode: v1::Mode::Enforce.into(),
            ports: vec![v1::ProtectedPort { protocol: v1::Protocol::Tcp.into(), number: 22 }],
            windows: vec![v1::HostWindow {
                grant_id: "01arz3ndektsv4rrffq69g5fav".into(),
                port: Some(v1::ProtectedPort { protocol: v1::Protocol::Tcp.into(), number: 22 }),
                source: "192.0.2.7/32".into(),
                remaining: Some(prost_types::Duration { seconds: 60, nanos: 0 }),
            }],
        }
    }

    #[test]
    fn a_deadline_is_heard_plus_heard_ago_plus_remaining() {
        let at = anchor(BootTime(1_000), Duration::from_nanos(500), BootTime(9_000));
        let desired = DesiredState::from_wire(&wire(), at).unwrap();
        assert_eq!(desired.windows.first().unwrap().deadline, BootTime(60_000_001_500));
        assert_eq!(desired.policy().windows.len(), 1);
    }

    #[test]
    fn i2_a_message_cannot_be_anchored_in_the_future() {
        assert_eq!(anchor(BootTime(9_999), Duration::from_secs(5), BootTime(100)), BootTime(100));
        assert_eq!(anchor(BootTime(u64::MAX), Duration::MAX, BootTime(100)), BootTime(100));
    }

    #[test]
    fn a_state_that_cannot_be_held_is_refused_by_field() {
        let refused = |change: fn(&mut v1::DesiredState)| {
            let mut wire = wire();
            change(&mut wire);
            DesiredState::from_wire(&wire, BootTime(0)).unwrap_err().field
        };
        assert_eq!(refused(|w| w.mode = 0), "mode");
        assert_eq!(refused(|w| w.ports[0].number = 0), "ports[0].number");
        assert_eq!(refused(|w| w.windows[0].source = "10.0.0.1/8".into()), "windows[0].source");
        assert_eq!(refused(|w| w.windows[0].grant_id = "x".into()), "windows[0].grant_id");
        assert_eq!(refused(|w| w.windows[0].remaining = None), "windows[0].remaining");
    }
}
