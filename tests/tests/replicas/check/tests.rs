//! The checker finds each violation in a history made by hand, and nothing in one that is as it should be.

use super::*;
use crate::history::{Asked, HostEvent};

const TARGET: &str = "aws:123456789012/eu-central-1/i-1";

fn at(milliseconds: i64) -> Timestamp {
    Timestamp::from_millisecond(1_700_000_000_000 + milliseconds).unwrap()
}

fn opening(source: &str) -> Opening {
    Opening::new(TARGET, source)
}

fn host(milliseconds: i64, source: &str, change: WindowChange) -> HostEvent {
    HostEvent { at: at(milliseconds), opening: opening(source), change, session: 1 }
}

fn look(milliseconds: i64, open: &[&str]) -> Look {
    let open = open.iter().map(|source| opening(source)).collect();
    Look { asked: at(milliseconds), answered: at(milliseconds + 10), open }
}

fn grant(id: &str, source: &str, from: i64, end: i64) -> Stored {
    Stored {
        id: id.into(),
        state: GrantState::Closed,
        reason: CloseReason::Expired,
        requested_at: at(from),
        not_after: at(end),
        opened_at: Some(at(from + 50)),
        openings: [opening(source)].into(),
    }
}

fn asked(id: &str, source: &str, milliseconds: i64) -> Asked {
    Asked {
        source: source.into(),
        targets: vec![TARGET.into()],
        at: at(milliseconds),
        answered: at(milliseconds + 60),
        retries: Vec::new(),
        answer: Answer::Granted { id: id.into(), state: GrantState::Active },
    }
}

/// A history of one grant from 0 to 5 s, asked for, opened and closed as it should be in both layers.
fn good() -> History {
    History {
        hosts: vec![
            host(40, "10.0.0.1", WindowChange::Opened(at(5_000))),
            host(5_000, "10.0.0.1", WindowChange::Closed),
        ],
        looks: vec![
            look(0, &[]),
            look(100, &["10.0.0.1"]),
            look(5_100, &["10.0.0.1"]),
            look(6_000, &[]),
            look(9_000, &[]),
        ],
        asked: vec![asked("g1", "10.0.0.1", 0)],
        stored: vec![grant("g1", "10.0.0.1", 0, 5_000)],
        quiet: at(8_000),
        ..History::default()
    }
}

fn span(fault: Fault, from: i64, until: i64) -> FaultSpan {
    FaultSpan { fault, from: at(from), undone: at(until), until: at(until) }
}

fn found(change: impl FnOnce(&mut History)) -> Vec<Violation> {
    let mut history = good();
    change(&mut history);
    violations(&history)
}

#[test]
fn a_good_history_has_no_violation() {
    assert_eq!(found(|_| {}), []);
}

#[test]
fn a_lost_grant_is_found() {
    let lost = Violation::Lost { grant: "g2".into() };
    assert_eq!(found(|history| history.asked.push(asked("g2", "10.0.0.1", 100))), [lost]);
    let lost = |violation: &Violation| matches!(violation, Violation::Lost { .. });
    assert!(found(|history| history.stored.clear()).iter().any(lost));
    let other = found(|history| history.stored[0].openings = [opening("10.0.0.9")].into());
    assert!(other.iter().any(lost), "a grant of something else");
}

#[test]
fn a_grant_that_does_not_end_is_found() {
    let violation = Violation::NotFinal { grant: "g1".into(), state: GrantState::Closing };
    assert_eq!(found(|history| history.stored[0].state = GrantState::Closing), [violation]);
}

#[test]
fn a_window_two_seconds_past_its_end_at_a_host_is_found() {
    let late = found(|history| history.hosts[1].at = at(7_000));
    let by = SignedDuration::from_secs(2);
    assert_eq!(late, [Violation::Late { at: Layer::Host, opening: opening("10.0.0.1"), end: at(5_000), by }]);
    assert_eq!(found(|history| history.hosts[1].at = at(5_100)), [], "the kernel may take a moment");
}

#[test]
fn a_window_past_its_end_in_the_cloud_is_found_as_far_as_no_fault_explains_it() {
    let seen = |until| move |history: &mut History| history.looks.insert(3, look(until, &["10.0.0.1"]));
    assert_eq!(
        found(|history| {
            history.quiet = at(20_000);
            seen(13_900)(history)
        }),
        []
    );
    let late = |history: &mut History| {
        history.looks.truncate(3);
        history.looks.extend([look(16_000, &["10.0.0.1"]), look(16_500, &[]), look(21_000, &[])]);
        history.quiet = at(20_000);
    };
    let by = SignedDuration::from_secs(2);
    let violation = Violation::Late { at: Layer::Cloud, opening: opening("10.0.0.1"), end: at(5_000), by };
    assert_eq!(found(late), [violation]);
    let fault = |from, until| span(Fault::KillRedis, from, until);
    let explained = |history: &mut History| {
        late(history);
        history.faults = vec![fault(4_000, 6_500), fault(6_000, 7_000), fault(30_000, 90_000)];
    };
    assert_eq!(found(explained), [], "two faults, one over the other, of two seconds past the end");
}

#[test]
fn a_stray_rule_after_quiet_is_found() {
    let stray = Violation::Stray { at: Layer::Cloud, opening: opening("10.0.0.1") };
    assert!(found(|history| history.looks.push(look(9_100, &["10.0.0.1"]))).contains(&stray));
    let stray = Violation::Stray { at: Layer::Host, opening: opening("10.0.0.1") };
    assert_eq!(found(|history| drop(history.hosts.pop())), [stray]);
}

#[test]
fn a_window_without_a_record_is_found_in_either_layer() {
    let unrecorded = |at| Violation::Unrecorded { at, opening: opening("10.9.9.9") };
    let opened =
        [host(10, "10.9.9.9", WindowChange::Opened(at(50))), host(50, "10.9.9.9", WindowChange::Closed)];
    assert_eq!(found(|history| history.hosts.extend(opened)), [unrecorded(Layer::Host)]);
    let seen = |history: &mut History| history.looks[1].open.extend([opening("10.9.9.9")]);
    assert_eq!(found(seen), [unrecorded(Layer::Cloud)]);
}

#[test]
fn flapping_is_found_in_either_layer() {
    let (closed, again) = (at(2_000), at(2_300));
    let gap = [
        host(2_000, "10.0.0.1", WindowChange::Closed),
        host(2_300, "10.0.0.1", WindowChange::Opened(at(5_000))),
    ];
    let flapped = Violation::Flapped { at: Layer::Host, opening: opening("10.0.0.1"), closed, again };
    assert_eq!(found(|history| drop(history.hosts.splice(1..1, gap))), [flapped]);
    let gap = [look(1_990, &[]), look(2_300, &["10.0.0.1"])];
    let flapped = Violation::Flapped { at: Layer::Cloud, opening: opening("10.0.0.1"), closed, again };
    assert_eq!(found(|history| drop(history.looks.splice(2..2, gap))), [flapped]);
}

#[test]
fn an_extension_that_comes_after_the_end_does_not_flap_and_one_before_it_does() {
    let extended = |opened_at: i64, gap_from: i64| {
        move |history: &mut History| {
            history.hosts[1].at = at(gap_from);
            history.hosts.extend([
                host(5_200, "10.0.0.1", WindowChange::Opened(at(9_000))),
                host(9_000, "10.0.0.1", WindowChange::Closed),
            ]);
            history.looks.clear();
            history.stored.push(grant("g2", "10.0.0.1", opened_at - 50, 9_000));
        }
    };
    assert_eq!(found(extended(5_200, 5_000)), []);
    let (closed, again) = (at(5_000), at(5_200));
    let flapped = Violation::Flapped { at: Layer::Host, opening: opening("10.0.0.1"), closed, again };
    assert_eq!(found(extended(4_500, 5_000)), [flapped]);
}

#[test]
fn a_window_that_is_closed_too_early_is_found_unless_a_caller_wanted_that() {
    let early = |history: &mut History| history.hosts[1].at = at(3_000);
    let violation = Violation::Early { opening: opening("10.0.0.1"), closed: at(3_000), end: at(5_000) };
    assert_eq!(found(early), [violation]);
    let revoked = |history: &mut History| {
        early(history);
        history.stored[0].reason = CloseReason::Revoked;
    };
    assert_eq!(found(revoked), []);
    let extended_later = |history: &mut History| history.stored.push(grant("g2", "10.0.0.1", 5_100, 9_000));
    assert_eq!(found(extended_later), [], "a window that was never open needs no close");
    let stopped = |history: &mut History| {
        early(history);
        history.faults = vec![span(Fault::StopBroker(0), -4_000, -2_000)];
    };
    assert_eq!(found(stopped), [], "the broker received the agent's last heartbeat two seconds late");
}

#[test]
fn a_grant_that_is_said_to_be_active_before_it_is_open_is_found() {
    let late = found(|history| history.hosts[0].at = at(500));
    let not_open = Violation::NotOpen { grant: "g1".into(), opening: opening("10.0.0.1"), said: at(60) };
    assert_eq!(late, [not_open]);
}

#[test]
fn a_refusal_and_an_unsound_log_are_found() {
    let refused = |history: &mut History| {
        let mut refused = asked("", "10.0.0.2", 0);
        refused.answer = Answer::Refused("PermissionDenied".into());
        history.asked.push(refused);
        history.audit_problem = Some("line 3".into());
    };
    let why = "PermissionDenied".into();
    let found = found(refused);
    assert_eq!(
        found,
        [Violation::Refused { source: "10.0.0.2".into(), why }, Violation::Audit("line 3".into())]
    );
}
