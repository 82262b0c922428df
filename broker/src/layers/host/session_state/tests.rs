//! The state of one session, with time as an argument.

use postern_core::plan::desired_host;
use postern_core::policy::{Mode, Protection};

use super::*;
use crate::testing::builders::{a_grant, at};
use crate::testing::captured_log::capture_log;

/// A state with a session, and the end from which its stream reads.
fn a_session() -> (SessionState, watch::Receiver<Outgoing>) {
    let (sender, receiver) = watch::channel(Outgoing::Nothing);
    let mut state = SessionState::default();
    assert_eq!(state.connect(sender, "1.2.3".into(), SessionOrigin::default(), at(0)), 1);
    (state, receiver)
}

fn number(generation: u64) -> StateNumber {
    StateNumber { generation, policies: 0 }
}

fn window(end: i64) -> LayerWindow {
    let grant = a_grant().build();
    let window = &grant.windows[0];
    LayerWindow { not_after: at(end), ..LayerWindow::of(&grant, window) }
}

fn holding(windows: &[LayerWindow]) -> DesiredHost {
    let protection = Protection { mode: Mode::Enforce, ports: ["tcp/22".parse().unwrap()].into() };
    let nothing = desired_host(&"host:vm-1".parse().unwrap(), Some(protection), [], at(0));
    DesiredHost { windows: windows.iter().cloned().collect(), ..nothing }
}

fn generation(receiver: &mut watch::Receiver<Outgoing>) -> Option<u64> {
    if !receiver.has_changed().unwrap() {
        return None;
    }
    match &*receiver.borrow_and_update() {
        Outgoing::Push(pushed) => Some(pushed.generation),
        Outgoing::Nothing | Outgoing::End(_) => None,
    }
}

#[test]
fn the_same_state_is_pushed_once_and_a_change_at_once() {
    let (mut state, mut stream) = a_session();
    state.push(number(1), holding(&[]), at(0));
    assert_eq!(generation(&mut stream), Some(1));
    state.push(number(2), holding(&[]), at(1));
    assert_eq!(generation(&mut stream), None, "something else changed in the store");
    state.push(number(3), holding(&[window(60)]), at(2));
    state.push(number(4), holding(&[window(60), window(70)]), at(3));
    assert_eq!(generation(&mut stream), Some(4), "the newest state alone is sent");
}

#[test]
fn i1_newer_policies_are_pushed_once_though_they_ask_for_the_same() {
    let (mut state, mut stream) = a_session();
    let of = |generation, policies| StateNumber { generation, policies };
    state.push(of(1, 4), holding(&[window(60)]), at(0));
    state.applied(1, None, at(0), true);
    assert_eq!(generation(&mut stream), Some(1));
    state.push(of(2, 4), holding(&[window(60)]), at(1));
    assert_eq!(generation(&mut stream), None);
    for policies in [5, 6, 7] {
        state.push(of(policies, policies), holding(&[window(60)]), at(2));
    }
    assert_eq!(generation(&mut stream), Some(7), "the newest alone is sent");
    assert_eq!(state.observe(&window(60)), Some(Observed::Open), "the window is open all the time");
    assert_eq!(state.report().status, LayerStatus::Pending);
    state.applied(7, None, at(3), true);
    assert_eq!(state.report().status, LayerStatus::InSync);
    state.push(of(8, 7), holding(&[window(60)]), at(4));
    assert_eq!(generation(&mut stream), None);
    // The agent has followed 7, and the store went back while it is connected.
    state.push(of(9, 6), holding(&[window(60)]), at(5));
    state.applied(9, None, at(5), true);
    assert!(state.report().detail.contains("the store went back"), "{}", state.report().detail);
}

#[test]
fn i5_a_refusal_is_of_the_pushed_state_and_is_pushed_again_later_and_later() {
    let (alarms, _guard) = capture_log(tracing::Level::ERROR);
    let (mut state, mut stream) = a_session();
    state.push(number(1), holding(&[window(60)]), at(0));
    state.applied(1, Some("no nftables here".into()), at(0), true);
    let refused = Observed::Refused { reason: "no nftables here".into() };
    assert_eq!(state.observe(&window(60)), Some(refused));
    assert_eq!(state.observe(&window(70)), Some(Observed::Unconfirmed), "of others it says nothing");
    generation(&mut stream);

    let mut now = at(0);
    let mut waits = Vec::new();
    for round in 2..12 {
        let retry_at = state.push(number(round), holding(&[window(60)]), now).unwrap();
        assert_eq!(generation(&mut stream), None, "not before its time");
        waits.push(retry_at.duration_since(now).as_secs());
        assert_eq!(state.push(number(round), holding(&[window(60)]), retry_at), None);
        assert_eq!(generation(&mut stream), Some(round));
        state.applied(round, Some("no nftables here".into()), retry_at, true);
        assert_eq!(alarms.lines(), usize::from(round >= 3), "it alarms at the third refusal, once");
        now = retry_at;
    }
    assert!(waits[0] <= 1 && waits.iter().all(|wait| *wait <= 60), "{waits:?}");
    assert!(waits[9] >= 30, "{waits:?}");

    state.push(number(20), holding(&[]), now);
    assert_eq!(generation(&mut stream), Some(20), "something else is not made to wait");
    state.applied(20, None, now, true);
    assert_eq!(state.observe(&window(60)), Some(Observed::Absent));
    assert_eq!(state.report().status, LayerStatus::InSync);
}

#[test]
fn an_alarm_that_is_due_at_a_refusal_without_a_line_comes_with_the_next_line() {
    let (alarms, _guard) = capture_log(tracing::Level::ERROR);
    let (mut state, _stream) = a_session();
    let mut refuse = |round: u64, is_logged| {
        let now = at(i64::try_from(round).unwrap() * 100);
        state.push(number(round), holding(&[window(60)]), now);
        state.applied(round, Some("no nftables here".into()), now, is_logged);
        alarms.lines()
    };
    for (round, is_logged, lines) in [(1, true, 0), (2, false, 0), (3, false, 0), (4, true, 1), (5, true, 1)]
    {
        assert_eq!(refuse(round, is_logged), lines, "refusal {round}");
    }
}

#[test]
fn i5_a_refusal_leaves_open_what_was_confirmed_before() {
    let (mut state, _stream) = a_session();
    state.push(number(1), holding(&[window(60)]), at(0));
    state.applied(1, None, at(0), true);
    state.push(number(2), holding(&[window(60), window(70)]), at(1));
    state.applied(2, Some("too many".into()), at(1), true);
    assert_eq!(state.observe(&window(60)), Some(Observed::Open));
    assert!(matches!(state.observe(&window(70)), Some(Observed::Refused { .. })));
    // A close that was refused is no close.
    state.push(number(3), holding(&[]), at(2));
    state.applied(3, Some("out of memory".into()), at(2), true);
    assert_eq!(state.observe(&window(60)), Some(Observed::Open));
    assert_eq!(state.observe(&window(70)), Some(Observed::Unconfirmed));
}

#[test]
fn the_report_follows_the_session() {
    let (mut state, _stream) = a_session();
    let status = |state: &SessionState| (state.report().status, state.report().online);
    assert_eq!(status(&state), (LayerStatus::Pending, true));
    state.push(number(1), holding(&[]), at(0));
    state.applied(1, Some("no nftables here".into()), at(1), true);
    assert_eq!(status(&state), (LayerStatus::Failed, true));
    assert_eq!(state.report().detail, "no nftables here");
    state.applied(1, None, at(2), true);
    assert_eq!(status(&state), (LayerStatus::InSync, true));
    state.mark_seen(at(3));
    assert_eq!(state.report().last_seen, Some(at(3)));
    state.disconnect(at(4));
    assert_eq!(status(&state), (LayerStatus::Unreachable, false));
    assert_eq!((state.report().last_seen, state.report().version), (Some(at(4)), "1.2.3".into()));
    assert_eq!(state.push(number(5), holding(&[window(60)]), at(5)), None);
    assert_eq!(state.observe(&window(60)), None, "there is no session to know it");
}

/// The machine that booted so.
fn machine(boot: &str) -> SessionOrigin {
    SessionOrigin { boot_id: boot.to_owned(), address: Some([192, 0, 2, 10].into()) }
}

/// Begins a session of a machine, and returns the end from which its stream reads.
fn begin(state: &mut SessionState, boot: &str, now: Timestamp) -> watch::Receiver<Outgoing> {
    let (sender, receiver) = watch::channel(Outgoing::Nothing);
    state.connect(sender, "1".into(), machine(boot), now);
    receiver
}

#[test]
fn i7_a_session_that_another_machine_displaces_again_and_again_stays() {
    let mut state = SessionState::default();
    let mut streams = Vec::new();
    for (second, boot) in [(0, "a"), (1, "b"), (2, "a"), (3, "b")] {
        assert_eq!(state.rival(&machine(boot), at(second)), Rival::None);
        streams.push(begin(&mut state, boot, at(second)));
    }
    assert_eq!(state.rival(&machine("a"), at(4)), Rival::Here);
    assert_eq!(state.rival(&machine("b"), at(4)), Rival::None, "the machine of the session itself");
    // While the other keeps trying, and the session is alive, it stays.
    for second in 5..200 {
        state.mark_seen(at(second));
        assert_eq!(state.rival(&machine("a"), at(second)), Rival::Here, "{second}");
    }
    // A minute without an attempt ends it.
    assert_eq!(state.rival(&machine("a"), at(300)), Rival::None);
}

#[test]
fn i7_a_session_that_is_silent_gives_way() {
    let mut state = SessionState::default();
    let streams: Vec<_> = [(0, "a"), (1, "b"), (2, "a"), (3, "b")]
        .map(|(second, boot)| begin(&mut state, boot, at(second)))
        .into();
    assert_eq!(state.rival(&machine("a"), at(9)), Rival::Here);
    assert_eq!(state.rival(&machine("a"), at(11)), Rival::Elsewhere, "unless another broker has it");
    drop(streams);
}

#[test]
fn i8_reboots_and_reconnects_are_no_rivals() {
    let mut state = SessionState::default();
    for second in (0..2000).step_by(20) {
        // Each boot takes longer than a session is alive without a word.
        let boot = format!("boot {second}");
        assert_eq!(state.rival(&machine(&boot), at(second)), Rival::None);
        drop(begin(&mut state, &boot, at(second)));
    }
    let mut state = SessionState::default();
    for second in 0..100 {
        assert_eq!(state.rival(&machine("a"), at(second)), Rival::None);
        drop(begin(&mut state, "a", at(second)));
    }
}

#[test]
fn i7_sessions_that_another_broker_takes_away_count_as_well() {
    let mut state = SessionState::default();
    for second in 0..3 {
        assert_eq!(state.rival(&machine("a"), at(second)), Rival::None);
        drop(begin(&mut state, "a", at(second)));
        state.displace_elsewhere(at(second));
        state.disconnect(at(second));
    }
    assert_eq!(state.rival(&machine("a"), at(3)), Rival::Elsewhere);
    assert_eq!(state.rival(&machine("a"), at(62)), Rival::None, "the question alone makes no rival");
    state.note_rival(at(62));
    assert_eq!(state.rival(&machine("a"), at(100)), Rival::Elsewhere);
    assert_eq!(state.rival(&machine("a"), at(123)), Rival::None);
}

/// A machine that booted so, at an address.
fn machine_at(boot: &str, address: &str) -> SessionOrigin {
    SessionOrigin { boot_id: boot.to_owned(), address: Some(address.parse().unwrap()) }
}

/// Begins sessions from these origins, one each second while the one before is alive.
fn sessions_from(origins: &[SessionOrigin]) -> (SessionState, Vec<watch::Receiver<Outgoing>>) {
    let (mut state, mut streams) = (SessionState::default(), Vec::new());
    for (second, origin) in (0..).zip(origins) {
        let (sender, receiver) = watch::channel(Outgoing::Nothing);
        state.connect(sender, "1".into(), origin.clone(), at(second));
        streams.push(receiver);
    }
    (state, streams)
}

#[test]
fn i8_a_machine_with_an_address_of_each_family_is_no_rival_of_itself() {
    let (v4, v6) = (machine_at("a", "192.0.2.10"), machine_at("a", "2001:db8::10"));
    let origins = [&v4, &v6].repeat(10);
    let (mut state, _streams) = sessions_from(&origins.into_iter().cloned().collect::<Vec<_>>());
    assert_eq!(state.rival(&v4, at(20)), Rival::None);
    // Nor while another machine does have its key.
    let (mut state, _streams) =
        sessions_from(&["a", "b", "a", "b", "a"].map(|boot| machine_at(boot, "192.0.2.10")));
    assert_eq!(state.rival(&v6, at(5)), Rival::None, "the machine of the session itself");
    assert_eq!(state.rival(&machine_at("b", "2001:db8::10"), at(5)), Rival::Here);
}

#[test]
fn i7_without_a_boot_id_the_address_tells_machines_apart() {
    let (machine, other) = (machine_at("", "192.0.2.10"), machine_at("a", "192.0.2.66"));
    let origins = [&machine, &other].repeat(2);
    let (mut state, _streams) = sessions_from(&origins.into_iter().cloned().collect::<Vec<_>>());
    assert_eq!(state.rival(&machine, at(4)), Rival::Here);
    assert_eq!(state.rival(&machine_at("", "192.0.2.66"), at(4)), Rival::None);
}

#[test]
fn a_host_on_trial_or_not_confirmed_says_so_and_its_windows_stay_open() {
    let (mut state, _stream) = a_session();
    state.push(number(1), holding(&[window(60)]), at(0));
    assert!(state.applied(1, None, at(1), true));
    for (phase, status, part) in [
        (EnforcementPhase::Trial, LayerStatus::InSync, "postern-agent confirm"),
        (EnforcementPhase::Lapsed, LayerStatus::Failed, "not confirmed"),
        (EnforcementPhase::Follows, LayerStatus::InSync, ""),
    ] {
        state.set_phase(phase);
        let report = state.report();
        assert!(report.status == status && report.detail.contains(part), "{report:?}");
        assert_eq!(state.observe(&window(60)), Some(Observed::Open));
    }
    state.set_phase(EnforcementPhase::Lapsed);
    let (sender, _stream) = watch::channel(Outgoing::Nothing);
    state.connect(sender, "1.2.3".into(), SessionOrigin::default(), at(2));
    state.push(number(1), holding(&[]), at(3));
    assert!(state.applied(1, None, at(4), true));
    assert_eq!(
        state.report().status,
        LayerStatus::InSync,
        "the next session begins as that of a confirmed host"
    );
}
