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
use super::table::{COMMENT, TABLE};
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

/// Returns a transaction that replaces the table by this one, which has no owner. `exists` says whether the kernel holds a table:
/// one that persists refuses to be added again, and one that is missing cannot be deleted.
pub(super) fn replacement(
    exists: bool,
    layout: &Layout,
    elements: &Elements,
    established: &[EstablishedConnection],
    now: BootTime,
) -> String {
    let removal = if exists { format!("delete table inet {TABLE}\n") } else { String::new() };
    let contents = contents(TABLE, layout, elements, established, now);
    format!("{removal}add table inet {TABLE} {{ comment \"{COMMENT}\"; }}\n{contents}")
}

/// Returns a transaction that fills an empty table. It never adds the table itself: `nft` would ask for other flags.
pub(super) fn contents(
    table: &str,
    layout: &Layout,
    elements: &Elements,
    established: &[EstablishedConnection],
    now: BootTime,
) -> String {
    let mut script = Script { text: String::new(), table };
    // Writing to a string cannot fail.
    let _ = script.write(layout, elements, established, now);
    script.text
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

/// The commands that fill a table. Sets come first, then chains, then the rules that name them.
struct Script<'a> {
    text: String,
    table: &'a str,
}

impl Script<'_> {
    fn write(
        &mut self,
        layout: &Layout,
        elements: &Elements,
        established: &[EstablishedConnection],
        now: BootTime,
    ) -> std::fmt::Result {
        for set in WindowSet::ALL {
            let address = if set.is_ipv4() { "ipv4_addr" } else { "ipv6_addr" };
            let flags = if set.is_interval() { "interval,timeout" } else { "timeout" };
            let kind = format!("type {address} . inet_proto . inet_service; flags {flags};");
            self.set(set.name(), &kind, &with_timeouts(elements, set, now))?;
        }
        let [four, six] = ESTABLISHED_SETS;
        self.established(four, "ipv4_addr", established.iter().filter(|c| c.peer.is_ipv4()))?;
        self.established(six, "ipv6_addr", established.iter().filter(|c| c.peer.is_ipv6()))?;
        if let Some(end) = layout.trial_until {
            self.trial(end, now)?;
        }
        self.chain("gate", "")?;
        self.chain("dialled", "type filter hook prerouting priority dstnat - 10; policy accept;")?;
        self.chain("input", "type filter hook input priority filter - 10; policy accept;")?;
        self.dialled(&layout.ports)?;
        self.input(layout)?;
        self.gate(layout)
    }

    fn set(&mut self, name: &str, kind: &str, elements: &str) -> std::fmt::Result {
        let elements =
            if elements.is_empty() { String::new() } else { format!(" elements = {{ {elements} }};") };
        writeln!(self.text, "add set inet {} {name} {{ {kind}{elements} }}", self.table)
    }

    /// Writes a set of the connections that are older than the table: see [`super::established`].
    fn established<'c>(
        &mut self,
        name: &str,
        address: &str,
        established: impl Iterator<Item = &'c EstablishedConnection>,
    ) -> std::fmt::Result {
        let elements: Vec<String> =
            established.map(|c| format!("{} . {} . {}", c.peer, c.peer_port, c.local_port)).collect();
        let kind = format!("type {address} . inet_service . inet_service;");
        self.set(name, &kind, &elements.join(", "))
    }

    /// Writes the set that denies until a trial ends: the kernel drops its elements then, also while the agent is dead.
    fn trial(&mut self, end: BootTime, now: BootTime) -> std::fmt::Result {
        // A timeout of zero would mean no timeout.
        let left = end.since(now).as_millis().max(1);
        let elements = TRIAL_PROTOCOLS.map(|protocol| format!("{protocol} timeout {left}ms")).join(", ");
        self.set(TRIAL_SET, "type inet_proto; flags timeout;", &elements)
    }

    fn chain(&mut self, name: &str, hook: &str) -> std::fmt::Result {
        let hook = if hook.is_empty() { String::new() } else { format!(" {{ {hook} }}") };
        writeln!(self.text, "add chain inet {} {name}{hook}", self.table)
    }

    fn rule(&mut self, chain: &str, rule: &str) -> std::fmt::Result {
        writeln!(self.text, "add rule inet {} {chain} {rule}", self.table)
    }

    /// Writes the rules for what was dialled at an address of this host, before the kernel translates destinations: so a port that a
    /// container publishes counts, and a connection that only passes through does not, whatever it is translated to. The second rule
    /// knows the addresses of interfaces in a VRF, which are in a routing table of their own.
    fn dialled(&mut self, ports: &BTreeSet<ProtectedPort>) -> std::fmt::Result {
        self.rule("dialled", "iif lo return")?;
        if !ports.is_empty() {
            let ports = port_set(ports);
            let to = format!("meta l4proto . th dport {ports}");
            self.rule("dialled", &format!("{to} fib daddr type local goto gate"))?;
            self.rule("dialled", &format!("{to} fib daddr . iif type local goto gate"))?;
        }
        Ok(())
    }

    /// Writes the rules for packets that are delivered on this host, by the port that they come to: a connection may have been dialled
    /// at another port, or elsewhere. Connections of the host to itself pass: their maker is on the host already.
    fn input(&mut self, layout: &Layout) -> std::fmt::Result {
        self.rule("input", "iif lo return")?;
        if !layout.ports.is_empty() {
            if layout.mode == Mode::Monitor {
                // The chain `dialled` has counted these. In enforce mode both chains judge a packet, so that neither needs the other.
                self.rule("input", "fib daddr type local ct status ! dnat return")?;
            }
            let ports = port_set(&layout.ports);
            self.rule("input", &format!("meta l4proto . th dport {ports} goto gate"))?;
        }
        Ok(())
    }

    fn gate(&mut self, layout: &Layout) -> std::fmt::Result {
        self.rule("gate", "ct state established,related accept")?;
        let [four, six] = ESTABLISHED_SETS;
        let older = "tcp flags & syn == 0";
        self.rule("gate", &format!("{older} ip saddr . tcp sport . tcp dport @{four} accept"))?;
        self.rule("gate", &format!("{older} ip6 saddr . tcp sport . tcp dport @{six} accept"))?;
        for set in WindowSet::ALL {
            let window = format!("{} saddr . meta l4proto . th dport @{}", family(set), set.name());
            self.rule("gate", &format!("{window} accept"))?;
        }
        if layout.trial_until.is_some() {
            let on_trial =
                format!("meta l4proto @{TRIAL_SET} counter drop comment \"no open window, on trial\"");
            self.rule("gate", &on_trial)?;
        }
        match layout.mode {
            Mode::Enforce if layout.trial_until.is_none() => {
                self.rule("gate", "counter drop comment \"no open window\"")
            }
            Mode::Enforce | Mode::Monitor => {
                self.rule(
                    "gate",
                    "limit rate 10/second burst 20 packets log prefix \"postern would drop: \"",
                )?;
                self.rule("gate", "counter accept comment \"no open window, and only monitored\"")
            }
        }
    }
}

fn port_set(ports: &BTreeSet<ProtectedPort>) -> String {
    let ports: Vec<_> = ports.iter().map(|port| format!("{} . {}", port.protocol, port.port)).collect();
    format!("{{ {} }}", ports.join(", "))
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
        let text = replacement(
            true,
            &layout(Mode::Enforce, &["tcp/22", "udp/161"]),
            &Elements::new(),
            &[],
            BootTime(0),
        );
        let at = |part: &str| text.find(part).unwrap_or_else(|| panic!("{part} in\n{text}"));
        assert!(at("delete table inet postern") < at("add table inet postern {"));
        assert!(
            at("meta l4proto . th dport { tcp . 22, udp . 161 } fib daddr type local goto gate")
                < at("ct state established,related")
        );
        assert!(at("ct state established,related accept") < at("@hosts4 accept"));
        assert!(at("@nets6 accept") < at("counter drop"));
        assert!(
            !replacement(true, &layout(Mode::Monitor, &["tcp/22"]), &Elements::new(), &[], BootTime(0))
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
        let text = replacement(true, &layout, &Elements::new(), &[], BootTime(500_000_000));
        assert!(text.contains("elements = { tcp timeout 2000ms, udp timeout 2000ms }"), "{text}");
        let at = |part: &str| text.find(part).unwrap_or_else(|| panic!("{part} in\n{text}"));
        assert!(at("@nets6 accept") < at("meta l4proto @trial counter drop"));
        assert!(at("meta l4proto @trial counter drop") < at("counter accept"));
        assert_eq!(text.matches("drop comment").count(), 1, "{text}");
    }

    #[test]
    fn a_host_with_nothing_to_protect_has_no_rule_that_looks_at_a_port() {
        let text = replacement(true, &layout(Mode::Enforce, &[]), &Elements::new(), &[], BootTime(0));
        assert!(!text.contains("goto"), "{text}");
    }
}
