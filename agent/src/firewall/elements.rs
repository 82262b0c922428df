//! The elements of the table's sets, and the difference between two collections of them. Pure: time is an argument.
//!
//! Single addresses, the usual case, are in hash sets. Wider prefixes are flattened into disjoint ranges, because the
//! kernel refuses intervals that overlap.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use postern_core::flatten::flatten;
use postern_core::{ProtectedPort, SourcePrefix};

use super::policy::HeldWindow;
use crate::clock::BootTime;

/// A set of windows in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum WindowSet {
    /// Single IPv4 addresses.
    Hosts4,
    /// Single IPv6 addresses.
    Hosts6,
    /// Ranges of IPv4 addresses.
    Nets4,
    /// Ranges of IPv6 addresses.
    Nets6,
}

impl WindowSet {
    pub(super) const ALL: [Self; 4] = [Self::Hosts4, Self::Hosts6, Self::Nets4, Self::Nets6];

    /// Returns the name of the set in the table.
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

/// An element of a set: while the kernel holds it, these sources may open connections to this port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Element {
    /// The set of the element.
    pub(super) set: WindowSet,
    /// The port.
    pub(super) port: ProtectedPort,
    /// The first source.
    pub(super) first: IpAddr,
    /// The last source; in a hash set the same as the first.
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

/// Returns the elements that admit, at every instant from `now` on, exactly what the windows admit.
pub(super) fn of_windows(windows: &[HeldWindow], now: BootTime) -> Elements {
    let mut elements = Elements::new();
    let mut wide: BTreeMap<ProtectedPort, Vec<(SourcePrefix, BootTime)>> = BTreeMap::new();
    for window in windows.iter().filter(|window| window.deadline > now) {
        let (first, last) = window.source.bounds();
        if first == last {
            let set = if first.is_ipv4() { WindowSet::Hosts4 } else { WindowSet::Hosts6 };
            let element = Element { set, port: window.port, first, last };
            let deadline = elements.entry(element).or_insert(window.deadline);
            *deadline = window.deadline.max(*deadline);
        } else {
            wide.entry(window.port).or_default().push((window.source, window.deadline));
        }
    }
    for (port, prefixes) in wide {
        elements.extend(flatten(prefixes).into_iter().map(|range| {
            let set = if range.first.is_ipv4() { WindowSet::Nets4 } else { WindowSet::Nets6 };
            (Element { set, port, first: range.first, last: range.last }, range.end)
        }));
    }
    elements
}

/// The changes that turn some elements into others, in one transaction.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Delta {
    /// The elements to remove first.
    pub(super) remove: BTreeSet<Element>,
    /// The elements to add after that. An element whose end changes is in both: older kernels keep the old timeout of an
    /// element that is added again.
    pub(super) add: Elements,
}

impl Delta {
    /// Returns the changes from what the kernel holds to what is wanted.
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

    /// Reports whether the changes keep every element and give it another end.
    pub(super) fn only_moves_ends(&self) -> bool {
        self.remove.iter().eq(self.add.keys())
    }

    /// Splits the changes into transactions of at most `most` changes if they only move ends, because then no transaction
    /// depends on another. Returns them in one piece otherwise.
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

    /// Returns every element that the changes touch.
    pub(super) fn touched(&self) -> BTreeSet<Element> {
        self.remove.iter().chain(self.add.keys()).copied().collect()
    }
}

/// The greatest accepted difference between the end that the kernel holds and the end that it was given: the kernel counts
/// in jiffies (up to 10 ms), and some time passes between the write and the read, more on a busy machine.
const END_TOLERANCE: Duration = Duration::from_millis(150);
/// The difference up to which an end that was read counts as the one that was given. Less than [`END_TOLERANCE`], so that
/// an end that was once accepted is not found wrong the next time.
const SAME_END: Duration = Duration::from_millis(50);

/// Reports whether an end that was read back is the one that was given.
pub(super) fn same_end(read: BootTime, given: BootTime) -> bool {
    apart(read, given) <= SAME_END
}

fn apart(one: BootTime, other: BootTime) -> Duration {
    one.since(other).max(other.since(one))
}

/// Returns the first difference, in words, between the elements that the kernel holds and those that it should; `None`
/// where they agree. An element that has ended by `now`, or is about to, may be present or absent.
pub(super) fn difference(found: &Elements, wanted: &Elements, now: BootTime) -> Option<String> {
    let alive = |end: &BootTime| *end > now.plus(END_TOLERANCE);
    let missing = wanted.iter().find(|(element, end)| alive(end) && !found.contains_key(element));
    let foreign = found.iter().find(|(element, end)| alive(end) && !wanted.contains_key(element));
    let off = found
        .iter()
        .find(|(element, end)| wanted.get(element).is_some_and(|due| apart(**end, *due) > END_TOLERANCE));
    let missing = missing.map(|(element, _)| format!("the window {element} is missing"));
    let foreign = foreign.map(|(element, _)| format!("the window {element} is not Postern's"));
    missing.or(foreign).or_else(|| off.map(|(element, _)| format!("the window {element} has another end")))
}

#[cfg(test)]
mod tests;
