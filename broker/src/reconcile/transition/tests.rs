//! The step that is due, for each observation in each layer and for every moment that matters.

use postern_core::Layers;

use super::*;
use crate::testing::builders::{GrantBuilder, a_grant, at};

const VM: &str = "aws:123456789012/eu-central-1/i-0123456789abcdef0";

/// An observation of one layer.
#[derive(Debug, Clone, Copy)]
enum Seen {
    Open,
    Absent,
    Unconfirmed,
    /// The layer cannot be reached, and the window was never pushed to it.
    Away,
    /// The layer cannot be reached, and it may hold the window.
    Lost,
    Refused,
}

use Seen::{Absent, Away, Lost, Open, Refused, Unconfirmed};

fn observed(seen: Seen) -> Observed {
    let away = |may_hold| Observed::Unreachable { reason: "away".into(), may_hold };
    match seen {
        Open => Observed::Open,
        Absent => Observed::Absent,
        Unconfirmed => Observed::Unconfirmed,
        Away => away(false),
        Lost => away(true),
        Refused => Observed::Refused { reason: "no".into() },
    }
}

/// A grant of 60 s in both layers.
fn in_both() -> GrantBuilder {
    a_grant().on(VM).layers(Layers::Both)
}

fn kept(record: Grant, version: u64) -> Versioned<Grant> {
    Versioned { record, version }
}

fn after(grant: Grant, events: &[Event]) -> Grant {
    events.iter().fold(grant, |grant, event| grant.after(event.clone(), at(1)).unwrap())
}

fn revoked() -> Event {
    Event::Close(CloseReason::Revoked { by: crate::testing::builders::principal("alice"), reason: None })
}

/// The state that the grant goes to, with its reason; none where it stays.
fn next(grant: &Grant, host: Seen, cloud: Seen, seconds: i64) -> Option<(&'static str, String)> {
    let observe = |_: &Grant, _: &Window, layer| match layer {
        Layer::Host => observed(host),
        Layer::Cloud => observed(cloud),
    };
    let steps = due(&[kept(grant.clone(), 7)], observe, at(seconds));
    assert!(steps.len() <= 1, "{steps:?}");
    let after = written(steps.first()?);
    Some((after.state.word(), after.state.reason()))
}

/// The grant as the step writes it, on version 7 and with its audit record.
fn written(step: &GrantStep) -> Grant {
    let changes: Vec<(&Grant, Expect)> = step.transaction.puts().collect();
    let [(grant, Expect::Version(7))] = changes[..] else { panic!("{changes:?}") };
    assert_eq!(step.transaction.writes(), 1);
    let [event] = &step.transaction.audit[..] else { panic!("{:?}", step.transaction) };
    assert_eq!((grant.id, event.grant), (step.grant, Some(step.grant)));
    assert_eq!(event.details["state"], grant.state.word());
    grant.clone()
}

#[test]
fn i5_a_grant_that_opens_moves_as_its_layers_say() {
    let grant = in_both().build();
    for (host, cloud, seconds, expected) in [
        (Unconfirmed, Unconfirmed, 0, None),
        (Open, Unconfirmed, 0, None),
        (Unconfirmed, Open, 29, None),
        (Open, Absent, 29, None),
        (Open, Open, 0, Some(("active", ""))),
        // Confirmed at the last moment is confirmed.
        (Open, Open, 30, Some(("active", ""))),
        (Open, Open, 59, Some(("active", ""))),
        (Open, Open, 60, Some(("closing", "its end passed before every layer had confirmed"))),
        (Open, Unconfirmed, 30, Some(("closing", "not confirmed in time by the cloud layer of VM"))),
        (
            Absent,
            Unconfirmed,
            30,
            Some(("closing", "not confirmed in time by the host layer of VM, the cloud layer of VM")),
        ),
        (Refused, Open, 0, Some(("closing", "the host layer of VM refused: no"))),
        (Open, Refused, 0, Some(("closing", "the cloud layer of VM refused: no"))),
        (Away, Open, 0, Some(("closing", "the host layer of VM cannot be reached: away"))),
        (Lost, Open, 0, Some(("closing", "the host layer of VM cannot be reached: away"))),
    ] {
        let expected = expected.map(|(word, reason): (_, &str)| (word, reason.replace("VM", VM)));
        assert_eq!(next(&grant, host, cloud, seconds), expected, "{host:?}, {cloud:?} after {seconds} s");
    }
}

#[test]
fn a_grant_that_may_wait_for_its_agent_waits_to_its_end() {
    let grant = in_both().waiting().build();
    for (host, cloud, seconds, expected) in [
        (Away, Open, 0, None),
        (Lost, Open, 59, None),
        (Unconfirmed, Open, 31, None),
        (Open, Open, 59, Some("active")),
        (Away, Open, 60, Some("closing")),
        (Refused, Open, 0, Some("closing")),
    ] {
        let word = next(&grant, host, cloud, seconds).map(|(word, _)| word);
        assert_eq!(word, expected, "{host:?}, {cloud:?} after {seconds} s");
    }
}

#[test]
fn i2_an_active_grant_closes_at_its_end_whatever_is_observed_and_not_before() {
    let grant = after(in_both().build(), &[Event::Confirmed]);
    for seen in [Open, Absent, Unconfirmed, Away, Lost, Refused] {
        assert_eq!(next(&grant, seen, seen, 59), None, "{seen:?}: nothing closes it before its end");
        assert_eq!(next(&grant, seen, seen, 60), Some(("closing", "expired".into())), "{seen:?}");
    }
}

#[test]
fn i6_a_closing_grant_is_closed_only_once_no_layer_may_hold_it() {
    let closing = |events: &[Event]| after(in_both().build(), events);
    let grant = closing(&[Event::Confirmed, revoked()]);
    for seen in [Open, Unconfirmed, Lost, Refused] {
        assert_eq!(next(&grant, seen, Absent, 10_000), None, "the host layer is {seen:?}");
        assert_eq!(next(&grant, Absent, seen, 10_000), None, "the cloud layer is {seen:?}");
    }
    for host in [Absent, Away] {
        let closed = next(&grant, host, Absent, 10).map(|(word, _)| word);
        assert_eq!(closed, Some("closed"), "{host:?}");
    }
    // One that is rolled back ends as failed, with the reason that it had.
    let rolled_back = Event::Close(CloseReason::CannotOpen { reason: "the quota is used up".into() });
    let failed = next(&closing(&[rolled_back]), Absent, Absent, 10);
    assert_eq!(failed, Some(("failed", "the quota is used up".into())));
}

#[test]
fn what_has_ended_or_waits_for_an_approval_stays() {
    let closed = after(in_both().build(), &[revoked(), Event::ClosedEverywhere]);
    let pending = Grant { state: GrantState::PendingApproval, ..in_both().build() };
    for grant in [closed, pending] {
        for seen in [Open, Absent, Lost, Refused] {
            assert_eq!(next(&grant, seen, seen, 10_000), None, "{:?}", grant.state);
        }
    }
}

/// The grants that take a step, by number, and the state that each goes to.
fn steps(grants: &[Grant], seen: impl Fn(&Grant) -> Seen) -> Vec<(usize, &'static str)> {
    let kept: Vec<_> = grants.iter().map(|grant| kept(grant.clone(), 7)).collect();
    let steps = due(&kept, |grant, _, _| observed(seen(grant)), at(2));
    let number = |id| grants.iter().position(|grant| grant.id == id).unwrap() + 1;
    steps.iter().map(|step| (number(step.grant), written(step).state.word())).collect()
}

#[test]
fn the_older_grant_closes_in_the_same_look_in_which_the_newer_is_active() {
    let older = after(in_both().build(), &[Event::Confirmed]);
    let newer = || in_both().number(2).seconds(120);
    let second = |grant: GrantBuilder| steps(&[older.clone(), grant.build()], |_| Open);
    assert_eq!(second(newer()), [(2, "active"), (1, "closing")]);
    for (other, why) in [
        (newer().seconds(30), "it ends earlier"),
        (newer().of("bob"), "it is another's"),
        (newer().from("192.0.2.8"), "it opens for another source"),
        (newer().on("host:vm-1").layers(Layers::Host), "it is on another target"),
    ] {
        assert_eq!(second(other), [(2, "active")], "{why}");
    }
    let opening =
        steps(
            &[older.clone(), newer().build()],
            |grant| {
                if grant.id == older.id { Open } else { Unconfirmed }
            },
        );
    assert!(opening.is_empty(), "while the newer one opens, the older one stays");
    let failing =
        steps(&[older.clone(), newer().build()], |grant| if grant.id == older.id { Open } else { Refused });
    assert_eq!(failing, [(2, "closing")], "the newer one fails, and the older one stays");
}

#[test]
fn one_grant_takes_one_step_at_a_time() {
    // The older is confirmed and superseded in the same look: it takes the first of the two.
    let grants = [in_both().build(), in_both().number(2).seconds(120).build()];
    assert_eq!(steps(&grants, |_| Open), [(1, "active"), (2, "active")]);
    // The one in the middle supersedes and is superseded.
    let grants = [
        after(in_both().build(), &[Event::Confirmed]),
        in_both().number(2).seconds(90).build(),
        in_both().number(3).seconds(120).build(),
    ];
    assert_eq!(steps(&grants, |_| Open), [(2, "active"), (3, "active"), (1, "closing")]);
}

#[test]
fn i8_a_broker_that_stopped_between_two_steps_takes_the_second_later() {
    let active = |grant: GrantBuilder| after(grant.build(), &[Event::Confirmed]);
    let grants = [
        active(in_both()),
        active(in_both().number(2).seconds(90)),
        active(in_both().number(3).seconds(120)),
    ];
    assert_eq!(steps(&grants, |_| Open), [(1, "closing"), (2, "closing")]);
    assert!(steps(&grants[2..], |_| Open).is_empty());
    let closing = after(in_both().number(2).seconds(120).build(), &[Event::Confirmed, revoked()]);
    assert!(steps(&[active(in_both()), closing], |_| Open).is_empty(), "one that closes supersedes nothing");
}

#[test]
fn a_step_names_every_target_and_its_audit_record_says_what_happened() {
    let grant = a_grant().on(VM).and_on("aws:123456789012/eu-central-1/i-0123456789abcdef1");
    let grant = kept(grant.layers(Layers::Both).build(), 7);
    let steps = due(&[grant], |_, _, _| observed(Refused), at(2));
    let [step] = &steps[..] else { panic!("{steps:?}") };
    assert_eq!((step.targets.len(), step.state), (2, "closing"));
    let event = &step.transaction.audit[0];
    assert_eq!(
        (event.action.as_str(), event.actor.as_str(), event.at),
        ("grant.rolled_back", "broker", at(2))
    );
    assert!(event.details["reason"].ends_with("refused: no"), "{:?}", event.details);
}
