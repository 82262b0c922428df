//! The tags by which Postern knows its own resources (I6), and from which alone it can close windows (I2).
//!
//! A group of Postern's carries [`MANAGED_BY`], [`ROLE`] and one [`HOLDER`] tag for each instance that it
//! serves. A window's rule carries [`MANAGED_BY`] and one [`GRANT`] tag for each grant that shares it. Each
//! grant has a tag of its own because EC2 has no compare-and-swap: adding or removing one key touches no
//! other. [`LATEST_GRANT`] and [`NOT_AFTER`] repeat, for people and for scripts, which of the grants ends
//! last.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use postern_core::{GrantId, ProtectedPort};
use postern_provider::{ConcernKind, Consent};

use crate::rule::Tags;

/// The name of the deployment that owns the resource.
pub(crate) const MANAGED_BY: &str = "postern:managed-by";
/// The role of a group: [`WINDOWS`] or [`PARKED`].
pub(crate) const ROLE: &str = "postern:role";
/// The role of an instance's own group.
pub(crate) const WINDOWS: &str = "windows";
/// The role of a group that keeps the originals of another group's rules.
pub(crate) const PARKED: &str = "parked";
/// The instance of an own group.
pub(crate) const INSTANCE: &str = "postern:instance";
/// The group whose rules a parked group keeps.
pub(crate) const PARKED_FOR: &str = "postern:parked-for";
/// The state of the lockdown, on an own group: [`PREPARING`], [`LOCKING`], [`LOCKED`] or [`RELEASING`].
pub(crate) const STATE: &str = "postern:state";
/// A lockdown was begun that has not touched a rule of the customer's: a sweep undoes it.
pub(crate) const PREPARING: &str = "preparing";
/// A lockdown was begun, and a sweep finishes it. The accepted concerns follow in the same value ([`locking`]).
pub(crate) const LOCKING: &str = "locking";
/// The lockdown is complete.
pub(crate) const LOCKED: &str = "locked";
/// A release was begun.
pub(crate) const RELEASING: &str = "releasing";
/// The interfaces on which an own group belongs: [`ALL`] or [`PRIMARY`].
pub(crate) const INTERFACES: &str = "postern:interfaces";
/// Every interface in the group's VPC.
pub(crate) const ALL: &str = "all";
/// The primary interface alone: others are Kubernetes's.
pub(crate) const PRIMARY: &str = "primary";
/// The prefix of a holder's tag, before the instance's id. The value lists the ports that the instance needs
/// shut.
pub(crate) const HOLDER: &str = "postern:holder:";
/// The prefix of a tag of an own group, before the id of a customer's group whose rules the lockdown parked: it tells that
/// what was parked there is gone.
pub(crate) const SHUTS: &str = "postern:shuts:";
/// The most customer's groups that an own group's tags name: its other tags need room.
pub(crate) const MAX_SHUTS: usize = 32;
/// The rule of which a rule of a customer's group is a piece.
pub(crate) const PIECE_OF: &str = "postern:piece-of";
/// The id that a parked rule had in the customer's group.
pub(crate) const ORIGINAL: &str = "postern:original";
/// The prefix of a grant's tag on a window's rule, before the grant's id. The value is a [`Mark`].
pub(crate) const GRANT: &str = "postern:grant:";
/// The grant that ends last, on a window's rule.
pub(crate) const LATEST_GRANT: &str = "postern:grant";
/// The end of that grant, on a window's rule (RFC 3339).
pub(crate) const NOT_AFTER: &str = "postern:not-after";
/// The most tags that a resource may carry (EC2 User Guide, "Tag restrictions").
pub(crate) const MAX_TAGS: usize = 50;

/// Reports whether a tag is Postern's.
pub(crate) fn is_posterns(key: &str) -> bool {
    key.starts_with("postern:")
}

/// Reports whether AWS reserves the tag: it can be read, and not written.
pub(crate) fn is_reserved(key: &str) -> bool {
    key.to_ascii_lowercase().starts_with("aws:")
}

/// The part that a rule has in a window of one grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark {
    /// The end of the grant.
    pub(crate) not_after: Timestamp,
    /// The rule is a whole window of the grant.
    pub(crate) whole: bool,
    /// The rule is half of a window for every address of a family.
    pub(crate) half: bool,
}

impl Mark {
    /// Formats the mark as a tag's value: `2026-03-01T12:00:00Z`, followed by `half` or `whole half` if the
    /// rule is half of a window.
    pub(crate) fn value(self) -> String {
        let kind = match (self.whole, self.half) {
            (_, false) => "",
            (false, true) => " half",
            (true, true) => " whole half",
        };
        format!("{}{kind}", self.not_after)
    }

    fn read(value: &str) -> Option<Self> {
        let (end, kind) = value.split_once(' ').unwrap_or((value, "whole"));
        let not_after = end.parse().ok()?;
        let (whole, half) = match kind {
            "whole" => (true, false),
            "half" => (false, true),
            "whole half" => (true, true),
            _ => return None,
        };
        Some(Self { not_after, whole, half })
    }
}

/// The grants that hold a rule.
pub(crate) type Marks = BTreeMap<GrantId, Mark>;

/// Reads the grants' tags; none if one of them is not exactly as Postern writes it.
pub(crate) fn marks(tags: &Tags) -> Option<Marks> {
    let of_grants = tags.iter().filter(|(key, _)| key.starts_with(GRANT));
    let mark = |(key, value): (&String, &String)| {
        let (grant, mark) = (key.strip_prefix(GRANT)?.parse().ok()?, Mark::read(value)?);
        (of_mark(grant, mark) == (key.clone(), value.clone())).then_some((grant, mark))
    };
    of_grants.map(mark).collect()
}

/// Returns the tag of one grant's mark.
pub(crate) fn of_mark(grant: GrantId, mark: Mark) -> (String, String) {
    (format!("{GRANT}{grant}"), mark.value())
}

/// Returns the grant that ends last.
pub(crate) fn latest(marks: &Marks) -> Option<(&GrantId, &Mark)> {
    marks.iter().max_by_key(|(_, mark)| mark.not_after)
}

/// Returns the two tags that name the grant that ends last.
pub(crate) fn of_latest(marks: &Marks) -> Vec<(String, String)> {
    latest(marks).map_or_else(Vec::new, |(grant, mark)| {
        vec![(LATEST_GRANT.into(), grant.to_string()), (NOT_AFTER.into(), mark.not_after.to_string())]
    })
}

/// Returns the instances that a group serves, with the ports that each needs shut.
pub(crate) fn holders(tags: &Tags) -> BTreeMap<String, BTreeSet<ProtectedPort>> {
    let holder =
        |(key, value): (&String, &String)| Some((key.strip_prefix(HOLDER)?.to_owned(), read_ports(value)));
    tags.iter().filter_map(holder).collect()
}

/// Returns the customer's groups whose rules the lockdown of an own group parked.
pub(crate) fn shuts(tags: &Tags) -> BTreeSet<String> {
    tags.keys().filter_map(|key| key.strip_prefix(SHUTS)).map(ToOwned::to_owned).collect()
}

/// Returns the tags that name these customer's groups, as many as there is room for.
pub(crate) fn of_shuts<'a>(groups: impl IntoIterator<Item = &'a str>) -> Tags {
    groups.into_iter().take(MAX_SHUTS).map(|group| (format!("{SHUTS}{group}"), String::new())).collect()
}

/// Returns the tag of an instance that needs ports shut.
pub(crate) fn of_holder(instance: &str, ports: &BTreeSet<ProtectedPort>) -> (String, String) {
    (format!("{HOLDER}{instance}"), write_ports(ports))
}

/// Returns the state of a lockdown that was begun with a consent: [`LOCKING`], and the words of the concerns
/// that the administrator accepted.
pub(crate) fn locking(consent: &Consent) -> String {
    let words = consent.0.iter().map(|kind| kind.word());
    [LOCKING].into_iter().chain(words).collect::<Vec<_>>().join(" ")
}

/// Reads the consent with which the lockdown was begun.
pub(crate) fn consent(tags: &Tags) -> Consent {
    let state = tags.get(STATE).map_or("", String::as_str);
    let is_accepted = |kind: &ConcernKind| state.split_whitespace().any(|word| word == kind.word());
    Consent(ConcernKind::ALL.into_iter().filter(is_accepted).collect())
}

/// Formats ports as a tag's value. Ranges, because 256 characters hold only some two dozen ports one by one.
fn write_ports(ports: &BTreeSet<ProtectedPort>) -> String {
    let mut runs: Vec<(ProtectedPort, u16)> = Vec::new();
    for port in ports {
        match runs.last_mut() {
            Some((first, last)) if first.protocol == port.protocol && *last + 1 == port.port.get() => {
                *last += 1
            }
            _ => runs.push((*port, port.port.get())),
        }
    }
    let run = |(first, last): &(ProtectedPort, u16)| {
        if first.port.get() == *last { first.to_string() } else { format!("{first}-{last}") }
    };
    runs.iter().map(run).collect::<Vec<_>>().join(" ")
}

fn read_ports(value: &str) -> BTreeSet<ProtectedPort> {
    let run = |word: &str| -> Vec<ProtectedPort> {
        let (first, last) = word.split_once('-').unwrap_or((word, ""));
        let Ok(first) = first.parse::<ProtectedPort>() else { return Vec::new() };
        let last = last.parse().unwrap_or(first.port.get());
        let port = |number: u16| postern_core::Port::new(number.into()).ok();
        (first.port.get()..=last)
            .filter_map(port)
            .map(|port| ProtectedPort { protocol: first.protocol, port })
            .collect()
    };
    value.split_whitespace().flat_map(run).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_survives_its_tag() {
        let not_after = Timestamp::from_nanosecond(4_000_000_000_123_456_789).unwrap();
        for (whole, half) in [(true, false), (false, true), (true, true)] {
            let mark = Mark { not_after, whole, half };
            let grant = GrantId::from_parts(Timestamp::UNIX_EPOCH, 7);
            let tags = Tags::from([of_mark(grant, mark), ("Name".into(), "x".into())]);
            assert_eq!(marks(&tags), Some(Marks::from([(grant, mark)])));
        }
        let written = "00000000000000000000000001";
        for (grant, value) in [
            ("x", "2026-03-01T12:00:00Z"),
            (written, "2026-03-01T13:00:00+01:00"),
            (written, "2026-03-01T12:00:00Z whole"),
            (written, "for ever"),
        ] {
            let edited = Tags::from([(format!("{GRANT}{grant}"), value.to_owned())]);
            assert_eq!(marks(&edited), None, "{grant} {value}");
        }
        for bad in ["", "soon", "2026-03-01T12:00:00Z quarter", "2026-03-01T12:00:00Z "] {
            assert_eq!(Mark::read(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn the_ports_of_a_holder_survive_their_tag() {
        let ports: BTreeSet<ProtectedPort> = ["tcp/22", "tcp/5985", "tcp/5986", "udp/5987", "tcp/65535"]
            .map(|port| port.parse().unwrap())
            .into();
        let tag = of_holder("i-1", &ports);
        assert_eq!(tag.1, "tcp/22 tcp/5985-5986 tcp/65535 udp/5987");
        assert_eq!(holders(&Tags::from([tag])), BTreeMap::from([("i-1".to_owned(), ports)]));
    }
}
