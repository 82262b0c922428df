use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::policy::{Authorized, Mode};
use crate::{AccessRequest, Justification, Layers, Name, Principal, Role};

const TARGET: &str = "aws:123456789012/eu-central-1/i-0123456789abcdef0";

fn at(seconds: u64) -> Timestamp {
    let start: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
    start + Duration::from_secs(seconds)
}

fn target() -> TargetId {
    TARGET.parse().unwrap()
}

/// A grant for a minute in these layers.
fn a_grant(number: u8, layers: Layers, unreachable: Unreachable) -> Grant {
    asked_for(number, layers, unreachable, false)
}

fn asked_for(number: u8, layers: Layers, unreachable: Unreachable, approval_required: bool) -> Grant {
    let (port, source): (ProtectedPort, SourcePrefix) =
        ("tcp/22".parse().unwrap(), format!("192.0.2.{number}").parse().unwrap());
    let justification = Justification::new("a test").unwrap();
    let minute = Duration::from_secs(60);
    let request =
        AccessRequest::new(vec![target()], vec![port], vec![source], minute, justification).unwrap();
    let windows = vec![Window { target: target(), port, source, layers }];
    let authorized = Authorized { windows, unreachable, approval_required };
    let who = Principal::local(Role::Requester, Name::new("alice").unwrap());
    Grant::new(GrantId::from_parts(at(0), number.into()), who, &request, authorized, at(0))
}

fn absent_agent(may_hold: bool) -> Observed {
    Observed::Unreachable { reason: "away".into(), may_hold }
}

/// The next event of a grant for these observations of host and cloud.
fn next(grant: &Grant, host: &Observed, cloud: &Observed, now: u64) -> Option<Event> {
    let observe = |_: &Window, layer| match layer {
        Layer::Host => host.clone(),
        Layer::Cloud => cloud.clone(),
    };
    next_event(grant, observe, at(now))
}

fn is_rollback(event: Option<Event>, part: &str) -> bool {
    matches!(event, Some(Event::Close(CloseReason::CannotOpen { reason })) if reason.contains(part))
}

#[test]
fn i5_both_layers_have_to_confirm_and_only_those_that_are_required_count() {
    let both = a_grant(1, Layers::Both, Unreachable::Fail);
    assert_eq!(next(&both, &Observed::Open, &Observed::Open, 1), Some(Event::Confirmed));
    for waiting in [Observed::Absent, Observed::Unconfirmed] {
        assert_eq!(next(&both, &Observed::Open, &waiting, 1), None);
        assert_eq!(next(&both, &waiting, &Observed::Open, 1), None);
    }
    let host = a_grant(1, Layers::Host, Unreachable::Fail);
    assert_eq!(next(&host, &Observed::Open, &Observed::Absent, 1), Some(Event::Confirmed));
    let cloud = a_grant(1, Layers::Cloud, Unreachable::Fail);
    assert_eq!(next(&cloud, &absent_agent(true), &Observed::Open, 1), Some(Event::Confirmed));
}

#[test]
fn i5_what_stands_in_the_way_is_named_and_rolls_the_whole_back() {
    let refused = Observed::Refused { reason: "the quota is used up".into() };
    let fail = a_grant(1, Layers::Both, Unreachable::Fail);
    let wait = a_grant(1, Layers::Both, Unreachable::Wait);
    assert!(is_rollback(next(&fail, &Observed::Open, &refused, 1), "the cloud layer of aws:"));
    assert!(is_rollback(next(&wait, &refused, &Observed::Open, 1), "the quota is used up"));
    assert!(is_rollback(next(&fail, &absent_agent(false), &Observed::Open, 1), "cannot be reached: away"));
    assert_eq!(next(&wait, &absent_agent(false), &Observed::Open, 1), None);
    assert!(is_rollback(next(&fail, &Observed::Unconfirmed, &Observed::Open, 30), "not confirmed in time"));
    assert_eq!(next(&wait, &Observed::Unconfirmed, &Observed::Open, 59), None);
    assert!(is_rollback(next(&wait, &Observed::Open, &Observed::Open, 60), "its end passed"));
    // The reason that a requester reads is made of the reason that the plan writes.
    let Some(Event::Close(CloseReason::CannotOpen { reason })) = next(&fail, &Observed::Open, &refused, 1)
    else {
        panic!("it is rolled back");
    };
    let plain = reason_without_cloud_text(&reason);
    assert!(
        plain.starts_with("the cloud layer of aws:")
            && plain.ends_with("refused; ask an operator for the cause"),
        "{plain}"
    );
    assert!(!plain.contains("quota"));
    for whole in ["the host layer of host:vm-1 refused: no room", "revoked by administrator/root: refused: x"]
    {
        assert_eq!(reason_without_cloud_text(whole), whole);
    }
}

#[test]
fn i6_a_close_is_done_once_every_layer_is_known_to_hold_nothing() {
    let closing =
        a_grant(1, Layers::Both, Unreachable::Fail).after(Event::Close(CloseReason::Expired), at(9)).unwrap();
    assert_eq!(next(&closing, &Observed::Absent, &Observed::Absent, 9), Some(Event::ClosedEverywhere));
    let never_sent = absent_agent(false);
    assert_eq!(next(&closing, &never_sent, &Observed::Absent, 9), Some(Event::ClosedEverywhere));
    let refused = Observed::Refused { reason: "no".into() };
    for unknown in [Observed::Open, Observed::Unconfirmed, absent_agent(true), refused] {
        assert_eq!(next(&closing, &unknown, &Observed::Absent, 999), None, "{unknown:?}");
        assert_eq!(next(&closing, &Observed::Absent, &unknown, 999), None, "{unknown:?}");
    }
}

#[test]
fn i2_an_active_grant_expires_at_its_end_whatever_is_observed() {
    let active = a_grant(1, Layers::Both, Unreachable::Fail).after(Event::Confirmed, at(1)).unwrap();
    assert_eq!(
        next(&active, &Observed::Absent, &absent_agent(true), 59),
        None,
        "drift is repaired, not punished"
    );
    assert_eq!(next(&active, &Observed::Open, &Observed::Open, 60), Some(Event::Close(CloseReason::Expired)));
    assert_eq!(next_deadline(&active), Some(at(60)));
}

fn observations() -> impl Strategy<Value = Observed> {
    prop_oneof![
        Just(Observed::Open),
        Just(Observed::Absent),
        Just(Observed::Unconfirmed),
        Just(absent_agent(true)),
        Just(absent_agent(false)),
        Just(Observed::Refused { reason: "no".into() }),
    ]
}

/// Everything that can happen to a grant, a refusal and a rollback among it.
fn events() -> impl Strategy<Value = Event> {
    let by = Principal::local(Role::Requester, Name::new("alice").unwrap());
    prop::sample::select(vec![
        Event::Approved,
        Event::Denied { reason: "no".into() },
        Event::Confirmed,
        Event::Close(CloseReason::Expired),
        Event::Close(CloseReason::Revoked { by, reason: None }),
        Event::Close(CloseReason::CannotOpen { reason: "a test".into() }),
        Event::ClosedEverywhere,
    ])
}

/// A grant in any state that can be reached, and some that ended later because their approval took a while.
fn grant() -> impl Strategy<Value = Grant> {
    let layers = prop::sample::select(vec![Layers::Host, Layers::Cloud, Layers::Both]);
    let unreachable = prop::sample::select(vec![Unreachable::Fail, Unreachable::Wait]);
    let happened = prop::collection::vec((events(), 0u64..9), 0..5);
    (1u8..9, layers, unreachable, any::<bool>(), happened).prop_map(
        |(number, layers, unreachable, approval, happened)| {
            let asked = asked_for(number, layers, unreachable, approval);
            happened
                .into_iter()
                .fold(asked, |grant, (event, now)| grant.after(event, at(now)).unwrap_or(grant))
        },
    )
}

fn grants() -> impl Strategy<Value = Vec<Grant>> {
    prop::collection::vec(grant(), 0..6)
}

#[test]
fn i4_what_waits_for_an_approval_is_held_nowhere_and_never_moves_by_itself() {
    let waiting = asked_for(1, Layers::Both, Unreachable::Fail, true);
    let protection = Protection { mode: Mode::Enforce, ports: BTreeSet::default() };
    for now in [0, 30, 60, 999] {
        assert!(desired_host(&target(), Some(protection.clone()), [&waiting], at(now)).windows.is_empty());
        assert!(desired_cloud(&target(), [&waiting], at(now)).is_empty());
        assert_eq!(next(&waiting, &Observed::Open, &Observed::Open, now), None);
        assert_eq!(next(&waiting, &Observed::Absent, &Observed::Absent, now), None);
    }
    assert_eq!(next_deadline(&waiting), None);
}

proptest! {
    #[test]
    fn every_step_that_is_planned_can_be_taken(grants in grants(), host in observations(), cloud in observations(), now in 0u64..120) {
        for grant in grants {
            if let Some(event) = next(&grant, &host, &cloud, now) {
                prop_assert!(grant.after(event.clone(), at(now)).is_ok(), "{:?} {event:?}", grant.state);
                prop_assert!(!grant.state.is_final());
            }
        }
    }

    #[test]
    fn i8_planning_comes_to_rest(grants in grants(), host in observations(), cloud in observations(), now in 0u64..120) {
        for mut grant in grants {
            let mut steps = 0;
            while let Some(event) = next(&grant, &host, &cloud, now) {
                grant = grant.after(event, at(now)).unwrap();
                steps += 1;
                prop_assert!(steps <= 3, "it goes round: {:?}", grant.state);
            }
        }
    }

    #[test]
    fn i2_whatever_time_alone_brings_about_comes_at_the_deadline_and_not_before(grant in grant(), host in observations(), cloud in observations(), now in 0u64..80, later in 0u64..80) {
        let event = |now| next(&grant, &host, &cloud, now);
        if event(now).is_none() {
            let deadline = next_deadline(&grant);
            prop_assert!(deadline.is_none_or(|deadline| deadline > at(now)), "it has passed: {deadline:?}");
            if later > now && deadline.is_none_or(|deadline| at(later) < deadline) {
                prop_assert_eq!(event(later), None);
            }
            if deadline.is_some_and(|deadline| deadline <= at(later)) {
                prop_assert!(event(later).is_some(), "woken for nothing at {:?}", deadline);
            }
        }
    }

    #[test]
    fn i2_i4_layers_hold_the_windows_of_open_grants_before_their_end_and_no_others(grants in grants(), now in 0u64..120) {
        let open = |layer: Layer| -> BTreeSet<(GrantId, Timestamp)> {
            let wanted = |grant: &&Grant| matches!(grant.state, GrantState::Opening | GrantState::Active) && at(now) < grant.not_after;
            let here = grants.iter().filter(wanted).filter(|grant| layer.required_by(&grant.windows[0]));
            here.map(|grant| (grant.id, grant.not_after)).collect()
        };
        let protection = Protection { mode: Mode::Enforce, ports: BTreeSet::default() };
        let host = desired_host(&target(), Some(protection.clone()), &grants, at(now));
        prop_assert_eq!(host.windows.iter().map(|w| (w.grant, w.not_after)).collect::<BTreeSet<_>>(), open(Layer::Host));
        let cloud = desired_cloud(&target(), &grants, at(now));
        prop_assert_eq!(cloud.iter().map(|w| (w.grant, w.not_after)).collect::<BTreeSet<_>>(), open(Layer::Cloud));
        let other: TargetId = "host:vm-2".parse().unwrap();
        prop_assert!(desired_host(&other, Some(protection), &grants, at(now)).windows.is_empty());
        prop_assert!(desired_cloud(&other, &grants, at(now)).is_empty());
    }

    #[test]
    fn i8_cloud_steps_lead_to_the_desired_state_and_then_to_none(before in grants(), begun in grants(), after in grants()) {
        let desired = desired_cloud(&target(), &after, at(1));
        let mut observed = desired_cloud(&target(), &before, at(1));
        let mut partial: BTreeSet<_> = &desired_cloud(&target(), &begun, at(1)) - &observed;
        let steps = cloud_steps(&desired, &observed, &partial);
        let opens_after_closes = steps.is_sorted_by_key(|step| matches!(step, CloudStep::Open(_)));
        prop_assert!(opens_after_closes);
        for step in steps {
            let (CloudStep::Close(windows) | CloudStep::Open(windows)) = &step;
            let grants: BTreeSet<_> = windows.iter().map(|window| window.grant).collect();
            prop_assert_eq!(grants.len(), 1, "a step is of one grant");
            for window in windows {
                let (was_open, was_begun) = (observed.remove(window), partial.remove(window));
                match step {
                    CloudStep::Close(_) => prop_assert!(was_open || was_begun),
                    CloudStep::Open(_) => prop_assert!(!was_open && observed.insert(window.clone())),
                }
            }
        }
        prop_assert_eq!(&observed, &desired);
        prop_assert!(partial.is_empty());
        prop_assert!(cloud_steps(&desired, &observed, &partial).is_empty());
    }
}
