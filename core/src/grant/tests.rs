use proptest::prelude::*;

use super::*;
use crate::{DisplayName, Issuer, Layers, Name, ProtectedPort, Role, SourcePrefix, Subject};

fn start() -> Timestamp {
    "2026-01-01T00:00:00Z".parse().unwrap()
}

fn at(seconds: u64) -> Timestamp {
    start() + Duration::from_secs(seconds)
}

fn principal(name: &str) -> Principal {
    Principal::local(Role::Requester, Name::new(name).unwrap())
}

/// A grant of alice for a minute, with an id of this number.
fn a_grant(number: u128, sources: &[&str], unreachable: Unreachable, approval_required: bool) -> Grant {
    let targets: Vec<TargetId> = vec!["host:vm-1".parse().unwrap()];
    let port: ProtectedPort = "tcp/22".parse().unwrap();
    let sources: Vec<SourcePrefix> = sources.iter().map(|source| source.parse().unwrap()).collect();
    let minute = Duration::from_secs(60);
    let justification = Justification::new("a test").unwrap();
    let request =
        AccessRequest::new(targets.clone(), vec![port], sources.clone(), minute, justification).unwrap();
    let window = |source: &SourcePrefix| Window {
        target: targets[0].clone(),
        port,
        source: *source,
        layers: Layers::Host,
    };
    let windows = sources.iter().map(window).collect();
    let authorized = Authorized { windows, unreachable, approval_required };
    Grant::new(GrantId::from_parts(start(), number), principal("alice"), &request, authorized, start())
}

fn opening() -> Grant {
    a_grant(1, &["192.0.2.7"], Unreachable::Fail, false)
}

#[test]
fn the_end_is_fixed_when_opening_begins_and_waiting_for_an_approval_costs_nothing() {
    let grant = opening();
    assert_eq!((grant.state.word(), grant.not_after), ("opening", at(60)));
    let waiting = a_grant(1, &["192.0.2.7"], Unreachable::Fail, true);
    assert!(!waiting.wants_open(at(1)));
    let approved = waiting.after(Event::Approved, at(500)).unwrap();
    assert_eq!((approved.state.word(), approved.not_after), ("opening", at(560)));
}

#[test]
fn an_opening_is_given_up_after_half_a_minute_unless_its_policy_waits() {
    assert_eq!(opening().open_by, at(30));
    let opening_within = |seconds| opening().opening_within(Duration::from_secs(seconds));
    assert_eq!((opening_within(40).open_by, opening_within(900).open_by), (at(40), opening().not_after));
    assert_eq!(a_grant(1, &["192.0.2.7"], Unreachable::Wait, false).open_by, at(60));
}

#[test]
fn i5_what_cannot_open_fails_only_after_it_was_closed() {
    let reason = || "no agent".to_owned();
    let rolling_back =
        opening().after(Event::Close(CloseReason::CannotOpen { reason: reason() }), at(1)).unwrap();
    assert_eq!(rolling_back.state.word(), "closing");
    assert!(!rolling_back.wants_open(at(1)));
    let failed = rolling_back.after(Event::ClosedEverywhere, at(2)).unwrap();
    assert_eq!(failed.state, GrantState::Failed { reason: reason() });
    assert_eq!((failed.opened_at, failed.closed_at), (None, Some(at(2))));
}

#[test]
fn a_grant_has_to_close_from_its_close_event_on_and_from_its_end_at_the_latest() {
    let close =
        |grant: &Grant, seconds| grant.after(Event::Close(CloseReason::Expired), at(seconds)).unwrap();
    let active = opening().after(Event::Confirmed, at(1)).unwrap();
    for grant in [&opening(), &active] {
        assert_eq!((grant.closes_since(at(59)), grant.closes_since(at(90))), (None, Some(at(60))));
    }
    assert_eq!(close(&active, 10).closes_since(at(20)), Some(at(10)));
    assert_eq!(close(&active, 80).closes_since(at(90)), Some(at(60)), "no broker ran at its end");
    let closed = close(&active, 10).after(Event::ClosedEverywhere, at(11)).unwrap();
    assert_eq!((closed.closes_since(at(90)), closed.closing_since), (None, Some(at(10))));
    let waiting = a_grant(1, &["192.0.2.7"], Unreachable::Fail, true);
    assert_eq!(waiting.closes_since(at(90)), None, "its end is not fixed");
}

#[test]
fn a_record_that_does_not_say_when_it_was_to_close_is_read_as_closing_since_its_end() {
    let closing = opening().after(Event::Close(CloseReason::Expired), at(10)).unwrap();
    let mut record = serde_json::to_value(&closing).unwrap();
    record.as_object_mut().unwrap().remove("closing_since");
    let read: Grant = serde_json::from_value(record).unwrap();
    assert_eq!((read.closing_since, read.closes_since(at(20))), (None, Some(at(60))));
}

#[test]
fn a_grant_supersedes_what_it_covers_for_as_long() {
    let older = opening();
    let newer = |sources: &[&str], after| {
        let mut grant = a_grant(2, sources, Unreachable::Fail, false);
        grant.not_after = at(after);
        grant
    };
    assert!(newer(&["192.0.2.7"], 90).supersedes(&older));
    assert!(newer(&["192.0.2.7", "192.0.2.8"], 60).supersedes(&older));
    assert!(!newer(&["192.0.2.7"], 59).supersedes(&older), "it ends sooner");
    assert!(!newer(&["192.0.2.8"], 90).supersedes(&older), "it opens something else");
    assert!(!older.supersedes(&older));
    let mut others = newer(&["192.0.2.7"], 90);
    others.principal = principal("bob");
    assert!(!others.supersedes(&older));
}

fn close_reasons() -> [CloseReason; 4] {
    [
        CloseReason::Expired,
        CloseReason::Revoked { by: principal("alice"), reason: None },
        CloseReason::Superseded { by: GrantId::from_parts(start(), 9) },
        CloseReason::CannotOpen { reason: "a test".to_owned() },
    ]
}

fn every_event() -> Vec<Event> {
    let others = [
        Event::Approved,
        Event::Denied { reason: "a test".to_owned() },
        Event::Confirmed,
        Event::ClosedEverywhere,
    ];
    close_reasons().map(Event::Close).into_iter().chain(others).collect()
}

fn events() -> impl Strategy<Value = Event> {
    prop::sample::select(every_event())
}

/// Every state, whether or not events lead there.
fn every_state() -> Vec<GrantState> {
    let reason = || "a test".to_owned();
    let others = [
        GrantState::PendingApproval,
        GrantState::Opening,
        GrantState::Active,
        GrantState::Denied { reason: reason() },
        GrantState::Failed { reason: reason() },
    ];
    let closing = close_reasons().map(GrantState::Closing);
    others.into_iter().chain(closing).chain(close_reasons().map(GrantState::Closed)).collect()
}

/// The state that an event leads to: the whole state machine, written a second time.
fn leads_to(state: &GrantState, event: &Event) -> Option<GrantState> {
    let failed_or = |reason: &CloseReason, or: fn(CloseReason) -> GrantState| match reason {
        CloseReason::CannotOpen { reason } => GrantState::Failed { reason: reason.clone() },
        reason @ (CloseReason::Expired | CloseReason::Revoked { .. } | CloseReason::Superseded { .. }) => {
            or(reason.clone())
        }
    };
    match (state.word(), event) {
        ("pending_approval", Event::Approved) => Some(GrantState::Opening),
        ("pending_approval", Event::Denied { reason }) => Some(GrantState::Denied { reason: reason.clone() }),
        ("pending_approval", Event::Close(reason)) => Some(failed_or(reason, GrantState::Closed)),
        ("opening", Event::Confirmed) => Some(GrantState::Active),
        ("opening" | "active", Event::Close(reason)) => Some(GrantState::Closing(reason.clone())),
        ("closing", Event::ClosedEverywhere) => {
            let GrantState::Closing(reason) = state else { panic!("{state:?} is not closing") };
            Some(failed_or(reason, GrantState::Closed))
        }
        _ => None,
    }
}

#[test]
fn i5_every_event_in_every_state_leads_where_it_should_and_nowhere_else() {
    let mut allowed = 0;
    for state in every_state() {
        for event in every_event() {
            let grant = Grant { state: state.clone(), ..opening() };
            let outcome = grant.after(event.clone(), at(7));
            match leads_to(&state, &event) {
                Some(expected) => {
                    allowed += 1;
                    assert_eq!(outcome.unwrap().state, expected, "{state:?} {event:?}");
                }
                None => {
                    let refused = IllegalTransition { state: state.word(), event: event.word() };
                    assert_eq!(outcome, Err(refused), "{state:?} {event:?}");
                }
            }
        }
    }
    assert_eq!(allowed, 19, "add a new transition to the module's drawing");
}

/// The states that may follow each, as the module's own drawing has it.
fn may_follow(word: &str) -> &'static [&'static str] {
    match word {
        "pending_approval" => &["opening", "denied", "closed", "failed"],
        "opening" => &["active", "closing"],
        "active" => &["closing"],
        "closing" => &["closed", "failed"],
        _ => &[],
    }
}

proptest! {
    #[test]
    fn i5_whatever_happens_a_grant_keeps_to_its_states_and_never_leaves_a_final_one(
        approval in any::<bool>(),
        happening in prop::collection::vec(events(), 0..20),
    ) {
        let mut grant = a_grant(1, &["192.0.2.7"], Unreachable::Fail, approval);
        for (second, event) in happening.into_iter().enumerate() {
            let now = at(second as u64);
            let before = grant.clone();
            match grant.after(event.clone(), now) {
                Err(_) => {}
                Ok(next) => {
                    prop_assert!(may_follow(before.state.word()).contains(&next.state.word()), "{before:?} {event:?}");
                    prop_assert!(!before.state.is_final());
                    if next.state == GrantState::Active {
                        prop_assert_eq!(&event, &Event::Confirmed);
                    }
                    if before.state != GrantState::PendingApproval {
                        prop_assert_eq!(before.not_after, next.not_after, "the end moved");
                    }
                    prop_assert_eq!(next.state.is_final(), next.closed_at.is_some());
                    prop_assert_eq!((&next.id, &next.windows, &next.principal), (&before.id, &before.windows, &before.principal));
                    grant = next;
                }
            }
            prop_assert!(!grant.wants_open(grant.not_after), "i2");
            let may_be_open = matches!(grant.state, GrantState::Opening | GrantState::Active);
            prop_assert!(may_be_open || !grant.wants_open(now));
        }
    }

    #[test]
    fn i3_what_a_grant_supersedes_it_holds_open_for_as_long_at_every_instant(
        newer in prop::collection::vec(0usize..3, 1..4),
        older in prop::collection::vec(0usize..3, 1..4),
        ends in (1u64..4, 1u64..4),
        same_principal in any::<bool>(),
    ) {
        const SOURCES: [&str; 3] = ["192.0.2.7", "192.0.2.8", "192.0.2.0/24"];
        let made = |number, of: &[usize], end| {
            let sources: Vec<&str> = SOURCES.into_iter().enumerate().filter(|(n, _)| of.contains(n)).map(|(_, s)| s).collect();
            Grant { not_after: at(end), state: GrantState::Active, ..a_grant(number, &sources, Unreachable::Fail, false) }
        };
        let (mut newer, older) = (made(2, &newer, ends.0), made(1, &older, ends.1));
        if !same_principal {
            newer.principal = principal("bob");
        }
        let holds = |grant: &Grant, window: &Window, second| {
            grant.wants_open(at(second)) && grant.windows.iter().any(|own| own.same_opening(window))
        };
        let covers = older.windows.iter().all(|window| {
            (0..5).all(|second| holds(&newer, window, second) || !holds(&older, window, second))
        });
        prop_assert_eq!(newer.supersedes(&older), same_principal && covers);
    }

    #[test]
    fn a_grant_reads_back_as_it_was_written(happening in prop::collection::vec(events(), 0..6)) {
        let mut grant = opening();
        for event in happening {
            grant = grant.after(event, at(3)).unwrap_or(grant);
        }
        let text = serde_json::to_string(&grant).unwrap();
        prop_assert_eq!(serde_json::from_str::<Grant>(&text).unwrap(), grant);
    }
}

#[test]
fn i7_a_grant_is_superseded_by_the_key_of_its_principal_and_not_by_its_display_name() {
    let foreign = |subject: &str, shown: &str| {
        let issuer = Issuer::new("https://issuer.example").unwrap();
        let (subject, shown) = (Subject::new(subject).unwrap(), DisplayName::new(shown).unwrap());
        Principal::foreign(Role::Requester, issuer, subject, shown)
    };
    let of =
        |number, principal| Grant { principal, ..a_grant(number, &["192.0.2.7"], Unreachable::Fail, false) };
    let older = of(1, foreign("alice", "Alice"));
    assert!(of(2, foreign("alice", "Alice B.")).supersedes(&older));
    assert!(!of(2, foreign("mallory", "Alice")).supersedes(&older));
    assert!(!of(2, principal("alice")).supersedes(&older));
}

#[test]
fn i7_a_grant_as_it_was_stored_before_foreign_issuers_opens_and_is_written_the_same() {
    let text = concat!(
        r#"{"id":"01m8m2vwnfqrj9j1j29y60vbw9","principal":{"role":"requester","name":"alice"},"#,
        r#""justification":"old bytes","requested_at":"2026-11-29T16:40:29.615587082Z","#,
        r#""duration":{"secs":7200,"nanos":0},"windows":[{"target":"host:vm-2","port":"tcp/22","#,
        r#""source":"127.0.0.1/32","layers":"host"}],"unreachable":"wait","#,
        r#""not_after":"2026-11-29T18:40:29.615587082Z","open_by":"2026-11-29T18:40:29.615587082Z","#,
        r#""opened_at":null,"closing_since":"2026-11-29T16:40:29.976316647Z","closed_at":null,"#,
        r#""state":{"closing":{"revoked":{"by":{"role":"administrator","name":"admin"},"reason":"done"}}}}"#,
    );
    let grant: Grant = serde_json::from_str(text).unwrap();
    assert_eq!(grant.principal, principal("alice"));
    assert_eq!(grant.principal.key().to_text(), "alice");
    assert_eq!(grant.state.reason(), "revoked by administrator/admin: done");
    assert_eq!(serde_json::to_string(&grant).unwrap(), text);
}
