//! Flattening: overlapping source prefixes with different ends become disjoint ranges, each with the latest
//! end of the prefixes that cover it, because the kernel refuses overlapping elements in an interval set.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::SourcePrefix;

/// A run of addresses of one family, both bounds included, admitted until `end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceRange<E> {
    /// The first address.
    pub first: IpAddr,
    /// The last address, of the same family and not before the first.
    pub last: IpAddr,
    /// The end: a time on the caller's clock.
    pub end: E,
}

/// Flattens prefixes of both families. The result is sorted (IPv4 first), its ranges are disjoint, and at every
/// instant it admits exactly the addresses that the prefixes admit. Touching ranges with one end are joined.
pub fn flatten<E: Ord + Copy>(prefixes: impl IntoIterator<Item = (SourcePrefix, E)>) -> Vec<SourceRange<E>> {
    let (mut v4, mut v6) = (Edges::new(), Edges::new());
    for (prefix, end) in prefixes {
        let (first, last) = prefix.bounds();
        let edges = if prefix.is_ipv4() { &mut v4 } else { &mut v6 };
        edges.entry(number(first)).or_default().begin.push(end);
        // Past the last address of IPv6 there is no number, and no edge is needed there.
        if let Some(after) = number(last).checked_add(1) {
            edges.entry(after).or_default().stop.push(end);
        }
    }
    let mut ranges = sweep(v4, u128::from(u32::MAX), v4_address);
    ranges.extend(sweep(v6, u128::MAX, |n| IpAddr::V6(Ipv6Addr::from_bits(n))));
    ranges
}

/// The prefixes that begin or stop at each address.
type Edges<E> = BTreeMap<u128, Edge<E>>;

struct Edge<E> {
    begin: Vec<E>,
    stop: Vec<E>,
}

impl<E> Default for Edge<E> {
    fn default() -> Self {
        Self { begin: Vec::new(), stop: Vec::new() }
    }
}

/// Walks the edges in order with the multiset of ends in force; between two edges the latest of them counts.
fn sweep<E: Ord + Copy>(edges: Edges<E>, max: u128, address: impl Fn(u128) -> IpAddr) -> Vec<SourceRange<E>> {
    let mut in_force: BTreeMap<E, usize> = BTreeMap::new();
    let mut ranges: Vec<(u128, u128, E)> = Vec::new();
    let mut edges = edges.into_iter().peekable();
    while let Some((first, edge)) = edges.next() {
        for end in edge.begin {
            *in_force.entry(end).or_insert(0) += 1;
        }
        for end in edge.stop {
            if let Some(count) = in_force.get_mut(&end) {
                *count -= 1;
                if *count == 0 {
                    in_force.remove(&end);
                }
            }
        }
        let Some((&end, _)) = in_force.last_key_value() else { continue };
        let last = edges.peek().map_or(max, |(next, _)| next - 1);
        match ranges.last_mut() {
            Some((_, before, same)) if *same == end && before.checked_add(1) == Some(first) => *before = last,
            _ => ranges.push((first, last, end)),
        }
    }
    ranges
        .into_iter()
        .map(|(first, last, end)| SourceRange { first: address(first), last: address(last), end })
        .collect()
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

fn v4_address(number: u128) -> IpAddr {
    // Numbers here come from IPv4 addresses, or are one before one: they always fit.
    IpAddr::V4(Ipv4Addr::from_bits(u32::try_from(number).unwrap_or(u32::MAX)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn flat(prefixes: &[(&str, u32)]) -> Vec<(String, String, u32)> {
        flatten(prefixes.iter().map(|(text, end)| (text.parse().unwrap(), *end)))
            .into_iter()
            .map(|range| (range.first.to_string(), range.last.to_string(), range.end))
            .collect()
    }

    fn ranges(expected: &[(&str, &str, u32)]) -> Vec<(String, String, u32)> {
        expected.iter().map(|(first, last, end)| ((*first).into(), (*last).into(), *end)).collect()
    }

    #[test]
    fn a_longer_lived_address_splits_the_prefix_around_it() {
        assert_eq!(
            flat(&[("192.0.2.0/28", 10), ("192.0.2.9/32", 20)]),
            ranges(&[
                ("192.0.2.0", "192.0.2.8", 10),
                ("192.0.2.9", "192.0.2.9", 20),
                ("192.0.2.10", "192.0.2.15", 10)
            ])
        );
    }

    #[test]
    fn a_shorter_lived_part_vanishes_in_the_whole() {
        assert_eq!(
            flat(&[("10.0.0.0/8", 20), ("10.1.0.0/16", 10)]),
            ranges(&[("10.0.0.0", "10.255.255.255", 20)])
        );
    }

    #[test]
    fn the_edges_of_the_address_space_do_not_overflow() {
        assert_eq!(flat(&[("0.0.0.0/0", 1)]), ranges(&[("0.0.0.0", "255.255.255.255", 1)]));
        assert_eq!(flat(&[("255.255.255.255/32", 1)]), ranges(&[("255.255.255.255", "255.255.255.255", 1)]));
        assert_eq!(
            flat(&[("::/0", 1), ("0.0.0.0/1", 1)]),
            ranges(&[
                ("0.0.0.0", "127.255.255.255", 1),
                ("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", 1)
            ])
        );
    }

    /// Prefixes crowded into a few bits, so that they nest, touch and repeat; both families.
    fn crowded() -> impl Strategy<Value = Vec<(SourcePrefix, u8)>> {
        let v4 = (0u32..64, 24u8..=32).prop_map(|(low, len)| {
            let net = ipnet::Ipv4Net::new(Ipv4Addr::from_bits(0xC000_0200 | low), len).unwrap().trunc();
            net.to_string().parse().unwrap()
        });
        let v6 = (0u128..64, 120u8..=128).prop_map(|(low, len)| {
            let net = ipnet::Ipv6Net::new(Ipv6Addr::from_bits(0x2001_0db8 << 96 | low), len).unwrap().trunc();
            net.to_string().parse().unwrap()
        });
        prop::collection::vec((prop_oneof![v4, v6], 0u8..6), 0..24)
    }

    proptest! {
        #[test]
        fn a_flattened_set_admits_exactly_what_the_windows_admit_at_every_instant(prefixes in crowded()) {
            let ranges = flatten(prefixes.clone());
            for pair in ranges.windows(2) {
                prop_assert!(pair[0].last < pair[1].first, "sorted and disjoint: {pair:?}");
            }
            let v4 = (0u32..=256).map(|low| IpAddr::V4(Ipv4Addr::from_bits(0xC000_0200 + low)));
            let v6 = (0u128..=256).map(|low| IpAddr::V6(Ipv6Addr::from_bits((0x2001_0db8 << 96) + low)));
            for address in v4.chain(v6) {
                for now in 0u8..7 {
                    let by_windows = prefixes.iter().any(|(prefix, end)| now < *end && prefix.contains(address));
                    let by_ranges = ranges.iter().any(|r| now < r.end && (r.first..=r.last).contains(&address));
                    prop_assert_eq!(by_windows, by_ranges, "{} at {}", address, now);
                }
            }
        }

        #[test]
        fn flattening_is_minimal(prefixes in crowded()) {
            for pair in flatten(prefixes).windows(2) {
                let touching = number(pair[0].last) + 1 == number(pair[1].first) && pair[0].last.is_ipv4() == pair[1].first.is_ipv4();
                prop_assert!(!(touching && pair[0].end == pair[1].end), "should be one range: {pair:?}");
            }
        }
    }
}
