//! The table of limits against the documentation and the tests, and the admission of connections.

use std::net::SocketAddr;

use postern_core::{CallerKind, Principal, Role};

use super::*;
use crate::testing::builders::name;
use crate::testing::counted::Counted;

const DOCUMENTATION: &str = include_str!("../../../docs/operations.md");
/// The tests that drive limits.
const TESTS: [&str; 4] = [
    include_str!("tests.rs"),
    include_str!("../api/listener/tests.rs"),
    include_str!("../api/bounded/tests.rs"),
    include_str!("reads.rs"),
];

/// Each key, with the test that drives a peer to its limit and sees the count.
const DRIVEN: &[(&str, &str)] = &[
    ("connections", "i10_each_limit_on_connections_is_counted"),
    ("descriptors", "i10_a_process_without_descriptors_counts_that"),
    ("handshakes", "i10_each_limit_on_handshakes_is_counted"),
    ("handshakes_per_address", "i10_each_limit_on_handshakes_is_counted"),
    ("handshakes_per_network", "i10_each_limit_on_handshakes_is_counted"),
    ("handshakes_per_second", "i10_each_limit_on_the_rate_of_handshakes_is_counted"),
    ("handshakes_per_second_per_address", "i10_handshakes_past_the_rate_are_closed_before_tls"),
    ("handshakes_per_second_per_network", "i10_each_limit_on_the_rate_of_handshakes_is_counted"),
    ("anonymous", "i10_each_limit_on_connections_is_counted"),
    ("anonymous_per_address", "i10_each_limit_on_connections_is_counted"),
    ("anonymous_per_network", "i10_each_limit_on_connections_is_counted"),
    ("people", "i10_each_limit_on_connections_is_counted"),
    ("administrators", "i10_each_limit_on_connections_is_counted"),
    ("per_principal", "i10_each_limit_on_connections_is_counted"),
    ("per_agent", "i10_each_limit_on_connections_is_counted"),
    ("calls_per_principal", "i10_a_principal_has_a_number_of_calls_that_are_not_answered"),
    ("first_byte", "i10_each_deadline_of_a_connection_is_counted"),
    ("handshake", "i10_each_deadline_of_a_connection_is_counted"),
    ("preface", "i10_each_deadline_of_a_connection_is_counted"),
    ("anonymous_age", "i10_each_deadline_of_a_connection_is_counted"),
    ("receive", "i10_each_deadline_of_a_call_is_counted"),
    ("answer", "i10_each_deadline_of_a_call_is_counted"),
    ("anonymous_bytes", "i10_the_bytes_of_a_connection_without_a_certificate_are_counted"),
    ("anonymous_streams", "i10_streams_past_the_limit_of_each_class_are_refused"),
    ("agent_streams", "i10_streams_past_the_limit_of_each_class_are_refused"),
    ("streams", "i10_streams_past_the_limit_of_each_class_are_refused"),
    ("anonymous_headers", "i10_headers_past_the_limit_of_each_class_are_refused"),
    ("agent_headers", "i10_headers_past_the_limit_of_each_class_are_refused"),
    ("headers", "i10_headers_past_the_limit_of_each_class_are_refused"),
    ("anonymous_message", "i10_a_message_is_refused_by_the_length_that_it_announces"),
    ("agent_message", "i10_a_message_is_refused_by_the_length_that_it_announces"),
    ("small_message", "i10_a_message_is_refused_by_the_length_that_it_announces"),
    ("request_message", "i10_a_message_is_refused_by_the_length_that_it_announces"),
    ("message", "i10_a_message_is_refused_by_the_length_that_it_announces"),
    ("expensive_reads", "i10_long_reads_leave_a_place_to_pages_and_others_wait"),
    ("expensive_reads_waiting", "i10_reads_that_wait_are_bounded_in_all_and_for_each_caller"),
    ("expensive_reads_per_caller", "i10_reads_that_wait_are_bounded_in_all_and_for_each_caller"),
    ("denials", "i10_refusals_without_a_record_are_counted"),
    ("denials_per_caller", "i10_refusals_without_a_record_are_counted"),
    ("backlog", "i10_the_backlog_is_the_configured_one"),
    ("store_disk_reserve", "the_reserve_of_the_store_has_its_own_defaults"),
    ("store_memory_reserve", "the_reserve_of_the_store_has_its_own_defaults"),
];

#[test]
fn each_row_has_a_test_that_drives_it() {
    let rows: Vec<&str> = ROWS.iter().map(|row| row.key).collect();
    for key in &rows {
        assert!(DRIVEN.iter().any(|(driven, _)| driven == key), "no test drives {key}");
    }
    let sources = TESTS.iter().chain(&[include_str!("settings.rs"), include_str!("../app/denials.rs")]);
    let sources: String = sources.copied().collect();
    for (key, test) in DRIVEN {
        assert!(rows.contains(key), "{key} is no row");
        assert!(sources.contains(&format!("fn {test}()")), "{key}: there is no test {test}");
    }
}

#[test]
fn the_documentation_has_each_row() {
    let expected: Vec<String> = ROWS.iter().map(Row::documented).collect();
    let missing: Vec<&str> = expected
        .iter()
        .map(String::as_str)
        .filter(|line| !DOCUMENTATION.lines().any(|it| it == *line))
        .collect();
    assert!(missing.is_empty(), "docs/operations.md has not these lines:\n{}", missing.join("\n"));
    let table = DOCUMENTATION.split_once("#### A store that is low").map_or("", |(before, _)| before);
    let table = table.split_once("### Limits").map_or("", |(_, after)| after);
    let keys = table.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    let unknown: Vec<&str> = keys.filter(|key| Row::of(key).is_none() && *key != "load_balancers").collect();
    assert!(unknown.is_empty(), "docs/operations.md has keys that do not exist: {unknown:?}");
}

#[test]
fn each_label_is_there_from_the_start_and_each_other_counter_is_documented() {
    let counted = Counted::here().all();
    for row in ROWS {
        match row.counted {
            CountedBy::Label => assert_eq!(counted.get(row.key), Some(&0), "{}", row.key),
            CountedBy::Other(counter) => assert!(DOCUMENTATION.contains(counter), "{counter}"),
        }
    }
    assert_eq!(counted.len(), ROWS.iter().filter(|row| row.counted == CountedBy::Label).count());
}

fn v4(last: u8) -> SocketAddr {
    ([192, 0, 2, last], 1).into()
}

/// An address in the network of 64 bits with this number of one of 48 bits.
fn v6(number: u16) -> SocketAddr {
    (std::net::Ipv6Addr::new(0x2001, 0xdb8, 1, number, 0, 0, 0, 1), 1).into()
}

/// The limits that matter to a test of admission, all so small that a few peers reach them.
fn small() -> Limits {
    Limits {
        connections: 26,
        handshakes: 4,
        handshakes_per_address: 2,
        handshakes_per_network: 3,
        anonymous: 5,
        anonymous_per_address: 2,
        anonymous_per_network: 3,
        people: 3,
        administrators: 2,
        per_principal: 2,
        per_agent: 2,
        ..Limits::default()
    }
}

#[test]
fn i10_each_limit_on_handshakes_is_counted() {
    let (counted, admission) = (Counted::here(), Admission::new(small()));
    let mut held = Vec::new();
    let mut begin = |peer, limit| {
        let before = counted.of(limit);
        held.push(admission.admit_handshake(peer, true).unwrap());
        counted.of(limit) - before
    };
    assert_eq!([v4(1), v4(1), v4(1)].map(|peer| begin(peer, Limit::HandshakesPerAddress)), [0, 0, 1]);
    // Two are held, and two more fit.
    assert_eq!([v4(2), v4(3), v4(4)].map(|peer| begin(peer, Limit::Handshakes)), [0, 0, 1]);
    let admission = Admission::new(Limits { handshakes: 100, ..small() });
    let mut held = Vec::new();
    for number in 0..4 {
        held.push(admission.admit_handshake(v6(number), true).unwrap());
    }
    assert_eq!(counted.of(Limit::HandshakesPerNetwork), 1);
}

#[test]
fn i10_each_limit_on_the_rate_of_handshakes_is_counted() {
    let limits =
        Limits { handshakes_per_second: 8, handshakes_per_second_per_network: 2, ..Limits::default() };
    let (counted, admission) = (Counted::here(), Admission::new(limits));
    // A second may end in between: then it is tried again.
    let refused = |peer: &dyn Fn(u16) -> SocketAddr, limit| {
        (0..100).any(|_| {
            (0..20).for_each(|number| drop(admission.admit_handshake(peer(number), false)));
            counted.of(limit) > 0
        })
    };
    assert!(refused(&|number| v6(number), Limit::HandshakeRatePerNetwork));
    assert!(refused(&|number| v4(u8::try_from(number).unwrap()), Limit::HandshakeRate));
}

#[test]
fn i10_each_limit_on_connections_is_counted() {
    let (counted, admission) = (Counted::here(), Admission::new(small()));
    let mut held = Vec::new();
    let mut seat = |peer, kind: Option<&CallerKind>| held.push(admission.seat(peer, kind));
    let person = |who| CallerKind::Principal(Principal::local(Role::Reader, name(who)));
    let agent = |number: usize| CallerKind::Agent(format!("host:vm-{number}").parse().unwrap());
    (0..3).for_each(|_| seat(v4(1), None));
    assert_eq!(counted.of(Limit::AnonymousPerAddress), 1);
    (0..4).for_each(|number| seat(v6(number), None));
    assert_eq!((counted.of(Limit::AnonymousPerNetwork), counted.of(Limit::Anonymous)), (1, 0));
    seat(v4(2), None);
    assert_eq!(counted.of(Limit::Anonymous), 1);
    (0..3).for_each(|_| seat(v4(1), Some(&person("rita"))));
    assert_eq!(counted.of(Limit::PerPrincipal), 1);
    ["a", "b"].into_iter().for_each(|who| seat(v4(1), Some(&person(who))));
    assert_eq!(counted.of(Limit::People), 1);
    let root = |who| CallerKind::Principal(Principal::local(Role::Administrator, name(who)));
    ["root", "root", "other"].into_iter().for_each(|who| seat(v4(1), Some(&root(who))));
    assert_eq!(counted.of(Limit::Administrators), 1);
    (0..3).for_each(|_| seat(v4(1), Some(&agent(0))));
    assert_eq!(counted.of(Limit::PerAgent), 1);
    // Twelve places are for agents alone, and a second connection goes for a first.
    (1..=11).for_each(|number| seat(v4(1), Some(&agent(number))));
    assert_eq!(counted.of(Limit::Connections), 1);
    seat(v4(1), Some(&agent(99)));
    assert_eq!(counted.of(Limit::Connections), 2);
}
