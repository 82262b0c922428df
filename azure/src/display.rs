//! The text form of rules, for the audit log and for errors: the traffic, the sources and the destinations.

use std::fmt;
use std::net::SocketAddr;
use std::ops::RangeInclusive;

use crate::network::{NatRule, NsgRule, NsgTraffic, RuleProtocol};

impl fmt::Display for NsgRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let NsgTraffic { protocol, sources, destinations, ports, .. } = &self.traffic;
        let does = if self.allows { "allows" } else { "denies" };
        let protocol = match protocol {
            RuleProtocol::Any => "every protocol".to_owned(),
            RuleProtocol::One(protocol) => protocol.to_string(),
            RuleProtocol::Other => "no protocol of a window".to_owned(),
        };
        let (ports, sources, destinations) = (ranges(ports), list(sources), list(destinations));
        let (name, priority) = (&self.name, self.priority);
        write!(
            f,
            "rule {name} (priority {priority}, {does} {protocol} {ports} from {sources} to {destinations})"
        )
    }
}

impl fmt::Display for NatRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { collection, name, sources, protocols, destinations, ports, translated, .. } = self;
        let (ports, sources, destinations) = (ranges(ports), list(sources), list(destinations));
        let to = translated
            .map_or_else(|| "a name".to_owned(), |(ip, port)| SocketAddr::new(ip, port).to_string());
        write!(
            f,
            "rule {name} of the collection {collection} ({} {ports} of {destinations} leads {sources} to {to})",
            list(protocols)
        )
    }
}

fn list(items: &[impl ToString]) -> String {
    let words: Vec<String> = items.iter().map(ToString::to_string).collect();
    if words.is_empty() { "none".to_owned() } else { words.join(", ") }
}

fn ranges(ranges: &[RangeInclusive<u16>]) -> String {
    let word = |range: &RangeInclusive<u16>| match (range.start(), range.end()) {
        (from, to) if from == to => from.to_string(),
        (0, &u16::MAX) => "every port".to_owned(),
        (from, to) => format!("{from}-{to}"),
    };
    list(&ranges.iter().map(word).collect::<Vec<_>>())
}
