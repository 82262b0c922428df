//! The ruleset: the table in nft's own language. Pure.
//!
//! I1: the table's chains see a packet to a protected port before every other filter chain, and drop it where no window is
//! open, which is final. I3: a packet of an established connection is accepted before any window is looked up.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::IpAddr;

use postern_core::{Mode, ProtectedPort};

use super::elements::{Delta, Element, Elements, WindowSet};
use super::established::{ESTABLISHED_SETS, EstablishedConnection};
use super::table::TABLE;
use crate::clock::BootTime;

/// The parts of the policy that decide chains and rules. A change of the layout replaces the whole table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layout {
    /// The treatment of a new connection without a window.
    pub(super) mode: Mode,
    /// The protected ports.
    pub(super) ports: BTreeSet<ProtectedPort>,
    /// The end of a trial: from then on the kernel monitors by itself what it denies until then.
    pub(super) trial_until: Option<BootTime>,
}

/// The name of the set that holds the protocols until a trial ends.
pub(super) const TRIAL_SET: &str = "trial";
/// The protocols in the set of a trial.
pub(super) const TRIAL_PROTOCOLS: [&str; 2] = ["tcp", "udp"];

/// Returns a transaction that replaces the table, whatever it holds, by this one.
pub(super) fn replacement(
    layout: &Layout,
    elements: &Elements,
    established: &[EstablishedConnection],
    now: BootTime,
) -> String {
    let mut text = removal();
    // Writing to a string cannot fail.
    let _ = write_table(&mut text, layout, elements, established, now);
    text
}

/// Returns a transaction that changes elements.
pub(super) fn changes(delta: &Delta, now: BootTime) -> String {
    let mut text = String::new();
    for set in WindowSet::ALL {
        let removed: Vec<String> = delta.remove.iter().filter(|e| e.set == set).map(key).collect();
        if !removed.is_empty() {
            let _ = writeln!(text, "delete element inet {TABLE} {} {{ {} }}", set.name(), removed.join(", "));
        }
    }
    for set in WindowSet::ALL {
        let added = with_timeouts(&delta.add, set, now);
        if !added.is_empty() {
            let _ = writeln!(text, "add element inet {TABLE} {} {{ {added} }}", set.name());
        }
    }
    text
}

/// Returns a transaction that removes the table. It adds the table first, because to remove a missing one is an error.
pub(super) fn removal() -> String {
    format!("add table inet {TABLE}\ndelete table inet {TABLE}\n")
}

fn write_table(
    text: &mut String,
    layout: &Layout,
    elements: &Elements,
    established: &[EstablishedConnection],
    now: BootTime,
) -> std::fmt::Result {
    writeln!(text, "table inet {TABLE} {{")?;
    writeln!(text, "\tcomment \"kept by postern-agent; changes are undone\"")?;
    for set in WindowSet::ALL {
        write_set(text, set, &with_timeouts(elements, set, now))?;
    }
    let [four, six] = ESTABLISHED_SETS;
    write_established(text, four, "ipv4_addr", established.iter().filter(|c| c.peer.is_ipv4()))?;
    write_established(text, six, "ipv6_addr", established.iter().filter(|c| c.peer.is_ipv6()))?;
    if let Some(end) = layout.trial_until {
        write_trial(text, end, now)?;
    }
    write_dialled(text, &layout.ports)?;
    write_input(text, layout)?;
    write_gate(text, layout)?;
    writeln!(text, "}}")
}

fn write_set(text: &mut String, set: WindowSet, elements: &str) -> std::fmt::Result {
    let address = if set.is_ipv4() { "ipv4_addr" } else { "ipv6_addr" };
    let flags = if set.is_interval() { "interval,timeout" } else { "timeout" };
    writeln!(text, "\tset {} {{", set.name())?;
    writeln!(text, "\t\ttype {address} . inet_proto . inet_service; flags {flags};")?;
    if !elements.is_empty() {
        writeln!(text, "\t\telements = {{ {elements} }}")?;
    }
    writeln!(text, "\t}}")
}

/// Writes a set of the connections that are older than the table: see [`super::established`].
fn write_established<'a>(
    text: &mut String,
    name: &str,
    address: &str,
    established: impl Iterator<Item = &'a EstablishedConnection>,
) -> std::fmt::Result {
    let elements: Vec<String> =
        established.map(|c| format!("{} . {} . {}", c.peer, c.peer_port, c.local_port)).collect();
    writeln!(text, "\tset {name} {{\n\t\ttype {address} . inet_service . inet_service;")?;
    if !elements.is_empty() {
        writeln!(text, "\t\telements = {{ {} }}", elements.join(", "))?;
    }
    writeln!(text, "\t}}")
}

/// Writes the set that denies until a trial ends: the kernel drops its elements then, also while the agent is dead.
fn write_trial(text: &mut String, end: BootTime, now: BootTime) -> std::fmt::Result {
    // A timeout of zero would mean no timeout.
    let left = end.since(now).as_millis().max(1);
    let elements = TRIAL_PROTOCOLS.map(|protocol| format!("{protocol} timeout {left}ms")).join(", ");
    writeln!(text, "\tset {TRIAL_SET} {{\n\t\ttype inet_proto; flags timeout;")?;
    writeln!(text, "\t\telements = {{ {elements} }}\n\t}}")
}

/// Writes the chain of what was dialled at an address of this host, before the kernel translates destinations: so a port that a
/// container publishes counts, and a connection that only passes through does not, whatever it is translated to. The second rule
/// knows the addresses of interfaces in a VRF, which are in a routing table of their own.
fn write_dialled(text: &mut String, ports: &BTreeSet<ProtectedPort>) -> std::fmt::Result {
    writeln!(text, "\tchain dialled {{")?;
    writeln!(text, "\t\ttype filter hook prerouting priority dstnat - 10; policy accept;")?;
    writeln!(text, "\t\tiif lo return")?;
    if !ports.is_empty() {
        let ports = port_set(ports);
        writeln!(text, "\t\tmeta l4proto . th dport {ports} fib daddr type local goto gate")?;
        writeln!(text, "\t\tmeta l4proto . th dport {ports} fib daddr . iif type local goto gate")?;
    }
    writeln!(text, "\t}}")
}

/// Writes the chain of packets that are delivered on this host, by the port that they come to: a connection may have been dialled at
/// another port, or elsewhere. Connections of the host to itself pass: their maker is on the host already.
fn write_input(text: &mut String, layout: &Layout) -> std::fmt::Result {
    writeln!(text, "\tchain input {{")?;
    writeln!(text, "\t\ttype filter hook input priority filter - 10; policy accept;")?;
    writeln!(text, "\t\tiif lo return")?;
    if !layout.ports.is_empty() {
        if layout.mode == Mode::Monitor {
            // The chain `dialled` has counted these. In enforce mode both chains judge a packet, so that neither needs the other.
            writeln!(text, "\t\tfib daddr type local ct status ! dnat return")?;
        }
        writeln!(text, "\t\tmeta l4proto . th dport {} goto gate", port_set(&layout.ports))?;
    }
    writeln!(text, "\t}}")
}

fn port_set(ports: &BTreeSet<ProtectedPort>) -> String {
    let ports: Vec<_> = ports.iter().map(|port| format!("{} . {}", port.protocol, port.port)).collect();
    format!("{{ {} }}", ports.join(", "))
}

fn write_gate(text: &mut String, layout: &Layout) -> std::fmt::Result {
    writeln!(text, "\tchain gate {{")?;
    writeln!(text, "\t\tct state established,related accept")?;
    writeln!(text, "\t\ttcp flags & syn == 0 ip saddr . tcp sport . tcp dport @established4 accept")?;
    writeln!(text, "\t\ttcp flags & syn == 0 ip6 saddr . tcp sport . tcp dport @established6 accept")?;
    for set in WindowSet::ALL {
        writeln!(text, "\t\t{} saddr . meta l4proto . th dport @{} accept", family(set), set.name())?;
    }
    write_verdict(text, layout)
}

fn write_verdict(text: &mut String, layout: &Layout) -> std::fmt::Result {
    if layout.trial_until.is_some() {
        writeln!(text, "\t\tmeta l4proto @{TRIAL_SET} counter drop comment \"no open window, on trial\"")?;
    }
    match layout.mode {
        Mode::Enforce if layout.trial_until.is_none() => {
            writeln!(text, "\t\tcounter drop comment \"no open window\"")?;
        }
        Mode::Enforce | Mode::Monitor => {
            writeln!(text, "\t\tlimit rate 10/second burst 20 packets log prefix \"postern would drop: \"")?;
            writeln!(text, "\t\tcounter accept comment \"no open window, and only monitored\"")?;
        }
    }
    writeln!(text, "\t}}")
}

fn family(set: WindowSet) -> &'static str {
    if set.is_ipv4() { "ip" } else { "ip6" }
}

fn with_timeouts(elements: &Elements, set: WindowSet, now: BootTime) -> String {
    let one = |(element, end): (&Element, &BootTime)| {
        // A timeout of zero would mean no timeout.
        let timeout = end.since(now).as_millis().max(1);
        format!("{} timeout {timeout}ms", key(element))
    };
    let alive = elements.iter().filter(|(element, end)| element.set == set && **end > now);
    alive.map(one).collect::<Vec<_>>().join(", ")
}

fn key(element: &Element) -> String {
    let Element { port, first, last, .. } = element;
    let source = if element.set.is_interval() { range(*first, *last) } else { first.to_string() };
    format!("{source} . {} . {}", port.protocol, port.port)
}

fn range(first: IpAddr, last: IpAddr) -> String {
    if first == last { first.to_string() } else { format!("{first}-{last}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firewall::elements::of_windows;
    use crate::firewall::policy::HeldWindow;

    fn layout(mode: Mode, ports: &[&str]) -> Layout {
        let ports = ports.iter().map(|port| port.parse().unwrap()).collect();
        Layout { mode, ports, trial_until: None }
    }

    #[test]
    fn i1_established_connections_come_first_and_the_drop_last() {
        let text =
            replacement(&layout(Mode::Enforce, &["tcp/22", "udp/161"]), &Elements::new(), &[], BootTime(0));
        let at = |part: &str| text.find(part).unwrap_or_else(|| panic!("{part} in\n{text}"));
        assert!(at("delete table inet postern") < at("table inet postern {"));
        assert!(
            at("meta l4proto . th dport { tcp . 22, udp . 161 } fib daddr type local goto gate")
                < at("ct state established,related")
        );
        assert!(at("ct state established,related accept") < at("@hosts4 accept"));
        assert!(at("@nets6 accept") < at("counter drop"));
        assert!(
            !replacement(&layout(Mode::Monitor, &["tcp/22"]), &Elements::new(), &[], BootTime(0))
                .contains("drop comment")
        );
    }

    #[test]
    fn i2_every_element_carries_what_is_left_of_its_window() {
        let window = |source: &str, end| HeldWindow {
            grant: "01arz3ndektsv4rrffq69g5fav".parse().unwrap(),
            port: "tcp/22".parse().unwrap(),
            source: source.parse().unwrap(),
            deadline: BootTime(end),
        };
        let elements =
            of_windows(&[window("192.0.2.7", 2_500_000_000), window("10.0.0.0/8", 1_000_000)], BootTime(0));
        let text = changes(&Delta::between(&Elements::new(), &elements), BootTime(500_000));
        assert!(text.contains("hosts4 { 192.0.2.7 . tcp . 22 timeout 2499ms }"), "{text}");
        assert!(text.contains("nets4 { 10.0.0.0-10.255.255.255 . tcp . 22 timeout 1ms }"), "{text}");
        assert_eq!(changes(&Delta::between(&Elements::new(), &elements), BootTime(2_500_000_000)), "");
    }

    #[test]
    fn a_trial_denies_only_as_long_as_its_set_has_elements() {
        let end = BootTime(2_500_000_000);
        let layout = Layout { trial_until: Some(end), ..layout(Mode::Enforce, &["tcp/22"]) };
        let text = replacement(&layout, &Elements::new(), &[], BootTime(500_000_000));
        assert!(text.contains("elements = { tcp timeout 2000ms, udp timeout 2000ms }"), "{text}");
        let at = |part: &str| text.find(part).unwrap_or_else(|| panic!("{part} in\n{text}"));
        assert!(at("@nets6 accept") < at("meta l4proto @trial counter drop"));
        assert!(at("meta l4proto @trial counter drop") < at("counter accept"));
        assert_eq!(text.matches("drop comment").count(), 1, "{text}");
    }

    #[test]
    fn a_host_with_nothing_to_protect_has_no_rule_that_looks_at_a_port() {
        let text = replacement(&layout(Mode::Enforce, &[]), &Elements::new(), &[], BootTime(0));
        assert!(!text.contains("goto"), "{text}");
    }
}
