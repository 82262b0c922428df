//! The elements of the table's sets, and what must change to get from some to others. Pure: time is an argument.
//!
//! Single addresses, the usual case, are in hash sets. Wider prefixes are flattened into disjoint ranges, because the
//! kernel refuses intervals that overlap.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use postern_core::flatten::flatten;
use postern_core::{ProtectedPort, SourcePrefix};

use super::policy::OpenWindow;
use crate::clock::BootTime;

/// The sets of windows in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Set {
    /// Single IPv4 addresses.
    Hosts4,
    /// Single IPv6 addresses.
    Hosts6,
    /// Ranges of IPv4 addresses.
    Nets4,
    /// Ranges of IPv6 addresses.
    Nets6,
}

impl Set {
    pub(super) const ALL: [Self; 4] = [Self::Hosts4, Self::Hosts6, Self::Nets4, Self::Nets6];

    /// Its name in the table.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Hosts4 => "hosts4",
            Self::Hosts6 => "hosts6",
            Self::Nets4 => "nets4",
            Self::Nets6 => "nets6",
        }
    }

    pub(super) fn is_ipv4(self) -> bool {
        matches!(self, Self::Hosts4 | Self::Nets4)
    }

    pub(super) fn is_interval(self) -> bool {
        matches!(self, Self::Nets4 | Self::Nets6)
    }
}

/// One element: while it is there, these sources may open connections to this port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Element {
    /// The set that it is in.
    pub(super) set: Set,
    /// The port.
    pub(super) port: ProtectedPort,
    /// The first source.
    pub(super) first: IpAddr,
    /// The last source; in a hash set the first again.
    pub(super) last: IpAddr,
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} from {}", self.port, self.first)?;
        if self.first == self.last { Ok(()) } else { write!(f, "-{}", self.last) }
    }
}

/// Elements with their ends.
pub(super) type Elements = BTreeMap<Element, BootTime>;

/// The elements that admit, at every instant from `now` on, exactly what the windows admit.
pub(super) fn of_windows(windows: &[OpenWindow], now: BootTime) -> Elements {
    let mut elements = Elements::new();
    let mut wide: BTreeMap<ProtectedPort, Vec<(SourcePrefix, BootTime)>> = BTreeMap::new();
    for window in windows.iter().filter(|window| window.deadline > now) {
        let (first, last) = window.source.bounds();
        if first == last {
            let set = if first.is_ipv4() { Set::Hosts4 } else { Set::Hosts6 };
            let element = Element { set, port: window.port, first, last };
            let deadline = elements.entry(element).or_insert(window.deadline);
            *deadline = window.deadline.max(*deadline);
        } else {
            wide.entry(window.port).or_default().push((window.source, window.deadline));
        }
    }
    for (port, prefixes) in wide {
        elements.extend(flatten(prefixes).into_iter().map(|range| {
            let set = if range.first.is_ipv4() { Set::Nets4 } else { Set::Nets6 };
            (Element { set, port, first: range.first, last: range.last }, range.end)
        }));
    }
    elements
}

/// What changes some elements into others, in one transaction.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Delta {
    /// To be removed first.
    pub(super) remove: BTreeSet<Element>,
    /// To be added then. An element whose end changes is in both: older kernels keep the timeout of one that is added
    /// again.
    pub(super) add: Elements,
}

impl Delta {
    /// From what the kernel holds to what is wanted.
    pub(super) fn between(held: &Elements, wanted: &Elements) -> Self {
        let differs = |in_one: &Elements, element: &Element, end: &BootTime| in_one.get(element) != Some(end);
        let remove = held.iter().filter(|(element, end)| differs(wanted, element, end));
        let add = wanted.iter().filter(|(element, end)| differs(held, element, end));
        Self {
            remove: remove.map(|(element, _)| *element).collect(),
            add: add.map(|(e, end)| (*e, *end)).collect(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.add.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.remove.len() + self.add.len()
    }

    /// Whether it leaves every element where it is, with another end.
    pub(super) fn only_moves_ends(&self) -> bool {
        self.remove.iter().eq(self.add.keys())
    }

    /// The same in transactions of at most `most` changes, where none of them needs another to have been made: that is
    /// so where only ends are moved. In one piece otherwise.
    pub(super) fn parts(&self, most: usize) -> Vec<Self> {
        if !self.only_moves_ends() {
            return vec![self.clone()];
        }
        let ends: Vec<_> = self.add.iter().map(|(element, end)| (*element, *end)).collect();
        let part = |part: &[(Element, BootTime)]| Self {
            remove: part.iter().map(|(element, _)| *element).collect(),
            add: part.iter().copied().collect(),
        };
        ends.chunks(most / 2).map(part).collect()
    }

    /// Every element that it touches.
    pub(super) fn touched(&self) -> BTreeSet<Element> {
        self.remove.iter().chain(self.add.keys()).copied().collect()
    }
}

/// How far the kernel's end of an element may be from the one it was given: it counts in jiffies (up to 10 ms), and
/// some time passes between telling it and asking it, more on a busy machine.
const END_TOLERANCE: Duration = Duration::from_millis(150);
/// Nearer than this, an end that was read is taken for the one that was given. Less than the tolerance, so that what is
/// taken for right once is not found wrong the next time.
const SAME_END: Duration = Duration::from_millis(50);

/// Whether an end that was read back is the one that was given.
pub(super) fn same_end(read: BootTime, given: BootTime) -> bool {
    apart(read, given) <= SAME_END
}

fn apart(one: BootTime, other: BootTime) -> Duration {
    one.since(other).max(other.since(one))
}

/// The first difference, in words, between what the kernel was found to hold and what it should; none where they agree.
/// What has ended by `now`, or is just about to, may be there or not.
pub(super) fn difference(found: &Elements, wanted: &Elements, now: BootTime) -> Option<String> {
    let alive = |end: &BootTime| *end > now.plus(END_TOLERANCE);
    let missing = wanted.iter().find(|(element, end)| alive(end) && !found.contains_key(element));
    let foreign = found.iter().find(|(element, end)| alive(end) && !wanted.contains_key(element));
    let off = found
        .iter()
        .find(|(element, end)| wanted.get(element).is_some_and(|due| apart(**end, *due) > END_TOLERANCE));
    let missing = missing.map(|(element, _)| format!("the window {element} is missing"));
    let foreign = foreign.map(|(element, _)| format!("the window {element} is not ours"));
    missing.or(foreign).or_else(|| off.map(|(element, _)| format!("the window {element} has another end")))
}

#[cfg(test)]
mod tests;
