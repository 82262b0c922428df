//! The policy: the desired state of the host layer.

use std::collections::{BTreeMap, BTreeSet};

use postern_core::{GrantId, Mode, ProtectedPort, SourcePrefix};

use crate::clock::BootTime;

/// The whole policy that the host layer must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPolicy {
    /// The treatment of a protected port that has no window.
    pub mode: Mode,
    /// The protected ports; the table does not look at any other traffic.
    pub ports: BTreeSet<ProtectedPort>,
    /// The open windows, which may overlap and repeat.
    pub windows: Vec<HeldWindow>,
    /// The moment at which the kernel goes from denying to monitoring by itself; `None` outside a trial.
    pub trial_until: Option<BootTime>,
}

impl HostPolicy {
    /// Returns the policy that admits, at every instant, what both admit and nothing else: on the way from one policy to another it
    /// closes everything that the other closes, opens nothing, and leaves no gap in what stays.
    #[must_use]
    pub fn common_with(&self, other: &Self) -> Self {
        let (own, others) = (Openings::of(self), Openings::of(other));
        let of_self = self.windows.iter().filter_map(|window| others.end_over(window));
        let of_other = other.windows.iter().filter_map(|window| own.end_over(window));
        let mut windows = BTreeMap::new();
        for window in of_self.chain(of_other) {
            let latest = windows.entry((window.port, window.source)).or_insert(window);
            if latest.deadline < window.deadline {
                *latest = window;
            }
        }
        Self {
            mode: if [self.mode, other.mode].contains(&Mode::Enforce) {
                Mode::Enforce
            } else {
                Mode::Monitor
            },
            ports: self.ports.union(&other.ports).copied().collect(),
            windows: windows.into_values().collect(),
            trial_until: self.trial_until.or(other.trial_until),
        }
    }

    /// Reports whether this policy may admit something that the other does not.
    pub fn admits_beyond(&self, other: &Self) -> bool {
        let others = Openings::of(other);
        let is_beyond = |window: &HeldWindow| {
            others.end_over(window).is_none_or(|common| common.deadline < window.deadline)
        };
        let is_laxer = self.mode == Mode::Monitor && other.mode == Mode::Enforce;
        is_laxer || !other.ports.is_subset(&self.ports) || self.windows.iter().any(is_beyond)
    }
}

/// The windows of a policy by port and source, each with its latest end.
struct Openings {
    ends: BTreeMap<(ProtectedPort, SourcePrefix), BootTime>,
    /// The lengths of prefixes that occur: mostly one, of single addresses.
    lengths: BTreeSet<u8>,
}

impl Openings {
    fn of(policy: &HostPolicy) -> Self {
        let (mut ends, mut lengths) = (BTreeMap::new(), BTreeSet::new());
        for window in &policy.windows {
            let latest = ends.entry((window.port, window.source)).or_insert(window.deadline);
            *latest = window.deadline.max(*latest);
            lengths.insert(window.source.net().prefix_len());
        }
        Self { ends, lengths }
    }

    /// Returns the part of a window, in time, for which one of these covers all of its sources; none if none does.
    fn end_over(&self, window: &HeldWindow) -> Option<HeldWindow> {
        let occurring =
            window.source.widening().filter(|over| self.lengths.contains(&over.net().prefix_len()));
        let latest = occurring.filter_map(|over| self.ends.get(&(window.port, over))).max()?;
        Some(HeldWindow { deadline: window.deadline.min(*latest), ..*window })
    }
}

/// An open window, with its end on this host's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HeldWindow {
    /// The grant it belongs to.
    pub grant: GrantId,
    /// The port that is open.
    pub port: ProtectedPort,
    /// The sources that may connect.
    pub source: SourcePrefix,
    /// The end, never after the true end.
    pub deadline: BootTime,
}

impl HeldWindow {
    /// Reports whether both are the same opening for the same grant, whatever their deadlines.
    pub fn same_opening(&self, other: &Self) -> bool {
        (self.grant, self.port, self.source) == (other.grant, other.port, other.source)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn window(source: &str, end: u64) -> HeldWindow {
        HeldWindow {
            grant: "01arz3ndektsv4rrffq69g5fav".parse().unwrap(),
            port: "tcp/22".parse().unwrap(),
            source: source.parse().unwrap(),
            deadline: BootTime(end),
        }
    }

    fn policy(windows: &[(&str, u64)]) -> HostPolicy {
        let windows = windows.iter().map(|(source, end)| window(source, *end)).collect();
        HostPolicy {
            mode: Mode::Enforce,
            ports: ["tcp/22".parse().unwrap()].into(),
            windows,
            trial_until: None,
        }
    }

    /// Returns the end up to which a policy admits an address; 0 if it does not.
    fn admits(policy: &HostPolicy, address: &str) -> u64 {
        let over = policy.windows.iter().filter(|window| window.source.contains(address.parse().unwrap()));
        over.map(|window| window.deadline.0).max().unwrap_or(0)
    }

    #[test]
    fn the_common_part_closes_all_and_opens_nothing() {
        let before = policy(&[("192.0.2.1", 10), ("192.0.2.2", 10), ("198.51.100.0/24", 10)]);
        let after = policy(&[("192.0.2.2", 20), ("192.0.2.3", 20), ("198.51.100.7", 5)]);
        let common = before.common_with(&after);
        for (address, end) in
            [("192.0.2.1", 0), ("192.0.2.2", 10), ("192.0.2.3", 0), ("198.51.100.7", 5), ("198.51.100.8", 0)]
        {
            assert_eq!(admits(&common, address), end, "{address}");
        }
        assert!(before.admits_beyond(&after) && after.admits_beyond(&before));
        assert!(!common.admits_beyond(&before) && !common.admits_beyond(&after));
    }

    #[test]
    fn a_laxer_mode_and_fewer_ports_admit_more() {
        let strict = policy(&[]);
        let monitor = HostPolicy { mode: Mode::Monitor, ..strict.clone() };
        let no_port = HostPolicy { ports: BTreeSet::new(), ..strict.clone() };
        for laxer in [monitor, no_port] {
            assert!(laxer.admits_beyond(&strict) && !strict.admits_beyond(&laxer));
            assert_eq!(laxer.common_with(&strict), strict);
        }
    }

    fn any_policy() -> impl Strategy<Value = HostPolicy> {
        let source = (0u8..8, 29u8..=32).prop_map(|(host, length)| {
            let host = host & (0xffu16 << (32 - length)).to_be_bytes()[1];
            format!("192.0.2.{host}/{length}")
        });
        prop::collection::vec((source, 1u64..6), 0..8).prop_map(|windows| {
            let windows: Vec<_> = windows.iter().map(|(source, end)| (source.as_str(), *end)).collect();
            policy(&windows)
        })
    }

    proptest! {
        #[test]
        fn the_common_part_is_exact(one in any_policy(), other in any_policy()) {
            let common = one.common_with(&other);
            for host in 0..8 {
                let address = format!("192.0.2.{host}");
                let both = admits(&one, &address).min(admits(&other, &address));
                prop_assert_eq!(admits(&common, &address), both, "{}", address);
                prop_assert!(one.admits_beyond(&other) || admits(&one, &address) <= admits(&other, &address));
            }
        }
    }
}
