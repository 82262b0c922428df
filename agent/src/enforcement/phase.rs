//! The phases of a machine on its way to enforcement, and the steps between them. Pure: time is an argument.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;
use postern_core::Mode;
use serde::{Deserialize, Serialize};

use crate::clock::{BootId, BootTime, Moment};
use crate::firewall::policy::HostPolicy;

/// The phase of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "snake_case", deny_unknown_fields)]
pub enum Phase {
    /// The machine has closed no port yet. The first state in mode enforce begins a trial.
    Untried,
    /// The table denies until the trial ends.
    Trial(Trial),
    /// A trial ended without a confirmation. The table monitors until an operator begins another trial.
    Lapsed {
        /// The time at which the agent noticed the end (UTC).
        since: Timestamp,
    },
    /// The machine enforces what its policies say.
    Confirmed,
}

/// A trial.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trial {
    /// The boot in which it began.
    pub boot: BootId,
    /// The moment at which it began, on the clock of that boot.
    pub begun: BootTime,
    /// The moment at which it ends, on the same clock.
    pub end: BootTime,
    /// The connections that are older than the closed table, and so prove nothing.
    pub older: OlderConnections,
}

/// The connections to protected ports that were there when the table closed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OlderConnections {
    /// The table has not closed yet.
    NotClosedYet,
    /// There were more than the mark holds.
    TooMany,
    /// All of them.
    Listed(Vec<TcpConnection>),
}

/// A TCP connection to this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TcpConnection {
    /// The peer's address.
    pub peer: IpAddr,
    /// The peer's port.
    pub peer_port: u16,
    /// The port of this machine.
    pub local_port: u16,
}

/// The name of a phase, for people, programs and the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PhaseName {
    /// No port was closed yet.
    Untried,
    /// The table denies until the trial ends.
    Trial,
    /// The trial ended without a confirmation.
    Lapsed,
    /// The machine enforces.
    Confirmed,
}

impl Phase {
    /// Returns a trial that begins now.
    pub fn begin(lasts: Duration, now: &Moment) -> Self {
        Self::Trial(Trial {
            boot: now.boot.clone(),
            begun: now.boottime,
            end: now.boottime.plus(lasts),
            older: OlderConnections::NotClosedYet,
        })
    }

    /// Returns the phase at a moment: a trial that is over has lapsed.
    #[must_use]
    pub fn at(self, now: &Moment) -> Self {
        let is_over = matches!(&self, Self::Trial(trial) if trial.is_over(now));
        if is_over { Self::Lapsed { since: now.wall } } else { self }
    }

    /// Returns the policy that the host layer holds in this phase for a policy that the machine should hold in the end.
    #[must_use]
    pub fn shape(&self, policy: HostPolicy) -> HostPolicy {
        match self {
            Self::Confirmed => policy,
            Self::Trial(trial) if policy.mode == Mode::Enforce => {
                HostPolicy { trial_until: Some(trial.end), ..policy }
            }
            Self::Trial(_) => policy,
            Self::Untried | Self::Lapsed { .. } => HostPolicy { mode: Mode::Monitor, ..policy },
        }
    }

    /// Returns the name of the phase.
    pub fn name(&self) -> PhaseName {
        match self {
            Self::Untried => PhaseName::Untried,
            Self::Trial(_) => PhaseName::Trial,
            Self::Lapsed { .. } => PhaseName::Lapsed,
            Self::Confirmed => PhaseName::Confirmed,
        }
    }
}

impl Trial {
    /// Returns the time left; zero in another boot than that of the trial.
    pub fn left(&self, now: &Moment) -> Duration {
        if !self.boot.same(&now.boot) || now.boottime < self.begun {
            return Duration::ZERO;
        }
        self.end.since(now.boottime)
    }

    /// Reports whether the trial has ended: its time has passed, or the machine was booted since.
    pub fn is_over(&self, now: &Moment) -> bool {
        self.left(now).is_zero()
    }
}

impl fmt::Display for PhaseName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Untried => "untried",
            Self::Trial => "trial",
            Self::Lapsed => "lapsed",
            Self::Confirmed => "confirmed",
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn moment(boot: u8, seconds: u64) -> Moment {
        Moment {
            boot: BootId(format!("boot-{boot}")),
            boottime: BootTime(seconds * 1_000_000_000),
            wall: Timestamp::UNIX_EPOCH,
        }
    }

    fn policy(mode: Mode) -> HostPolicy {
        HostPolicy { mode, ports: ["tcp/22".parse().unwrap()].into(), windows: Vec::new(), trial_until: None }
    }

    /// Something that happens to a machine.
    #[derive(Debug, Clone)]
    enum Event {
        Begin(u64),
        Confirm,
        Pass(u64),
        Reboot,
        /// The agent is killed, and reads the mark again.
        Restart,
    }

    fn any_event() -> impl Strategy<Value = Event> {
        prop_oneof![
            (10u64..100).prop_map(Event::Begin),
            Just(Event::Confirm),
            (0u64..60).prop_map(Event::Pass),
            Just(Event::Reboot),
            Just(Event::Restart),
        ]
    }

    proptest! {
        #[test]
        fn i1_a_machine_denies_on_trial_until_its_end_and_for_good_once_confirmed(
            events in prop::collection::vec(any_event(), 0..40),
        ) {
            let (mut phase, mut boot, mut now) = (Phase::Untried, 0u8, 100u64);
            // The reference: the end of the trial, if one is on, and whether one was confirmed.
            let (mut end, mut confirmed) = (None::<u64>, false);
            for event in events {
                match event {
                    Event::Begin(lasts) if !confirmed => {
                        phase = Phase::begin(Duration::from_secs(lasts), &moment(boot, now));
                        end = Some(now + lasts);
                    }
                    Event::Confirm if end.is_some_and(|end| now < end) => {
                        phase = Phase::Confirmed;
                        (confirmed, end) = (true, None);
                    }
                    Event::Begin(_) | Event::Confirm => {}
                    Event::Pass(seconds) => now += seconds,
                    Event::Reboot => (boot, now, end) = (boot.wrapping_add(1), now % 7, None),
                    Event::Restart => {
                        let mark = serde_json::to_vec(&phase).unwrap();
                        phase = serde_json::from_slice(&mark).unwrap();
                    }
                }
                end = end.filter(|end| now < *end);
                phase = phase.at(&moment(boot, now));
                let held = phase.shape(policy(Mode::Enforce));
                let expected = if confirmed || end.is_some() { Mode::Enforce } else { Mode::Monitor };
                prop_assert_eq!(held.mode, expected);
                let until = end.map(|end| BootTime(end * 1_000_000_000));
                prop_assert_eq!(held.trial_until, until, "the kernel ends what is not confirmed");
                prop_assert_eq!(phase.shape(policy(Mode::Monitor)), policy(Mode::Monitor));
            }
        }
    }

    #[test]
    fn a_boot_whose_id_cannot_be_read_ends_a_trial() {
        let unknown = Moment { boot: BootId(String::new()), ..moment(0, 5) };
        let phase = Phase::begin(Duration::from_secs(60), &unknown).at(&unknown);
        assert_eq!(phase.name(), PhaseName::Lapsed);
    }
}
