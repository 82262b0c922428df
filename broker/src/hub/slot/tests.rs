//! One slot, with time as an argument.

use postern_core::plan::desired_host;
use postern_core::policy::{Mode, Protection};

use super::*;
use crate::logged::logged;
use crate::samples::{a_grant, at};

/// A slot with a session, and the end from which its stream reads.
fn a_slot() -> (Slot, watch::Receiver<Outgoing>) {
    let (sender, receiver) = watch::channel(Outgoing::Nothing);
    let mut slot = Slot::default();
    assert_eq!(slot.connect(sender, "1.2.3".into(), at(0)), 1);
    (slot, receiver)
}

fn window(end: i64) -> HostWindow {
    let grant = a_grant().build();
    let window = &grant.windows[0];
    HostWindow { grant: grant.id, port: window.port, source: window.source, not_after: at(end) }
}

fn holding(windows: &[HostWindow]) -> DesiredHost {
    let protection = Protection { mode: Mode::Enforce, ports: ["tcp/22".parse().unwrap()].into() };
    let nothing = desired_host(&"host:vm-1".parse().unwrap(), protection, [], at(0));
    DesiredHost { windows: windows.iter().cloned().collect(), ..nothing }
}

fn generation(receiver: &mut watch::Receiver<Outgoing>) -> Option<u64> {
    if !receiver.has_changed().unwrap() {
        return None;
    }
    match &*receiver.borrow_and_update() {
        Outgoing::Tell(told) => Some(told.generation),
        Outgoing::Nothing | Outgoing::End(_) => None,
    }
}

#[test]
fn the_same_is_told_once_and_a_change_at_once() {
    let (mut slot, mut stream) = a_slot();
    slot.tell(1, holding(&[]), at(0));
    assert_eq!(generation(&mut stream), Some(1));
    slot.tell(2, holding(&[]), at(1));
    assert_eq!(generation(&mut stream), None, "something else changed in the store");
    slot.tell(3, holding(&[window(60)]), at(2));
    slot.tell(4, holding(&[window(60), window(70)]), at(3));
    assert_eq!(generation(&mut stream), Some(4), "the newest state alone is sent");
}

#[test]
fn i5_a_refusal_is_of_what_was_told_and_is_told_again_later_and_later() {
    let (alarms, _guard) = logged(tracing::Level::ERROR);
    let (mut slot, mut stream) = a_slot();
    slot.tell(1, holding(&[window(60)]), at(0));
    slot.applied(1, Some("no nftables here".into()), at(0));
    let refused = Observed::Refused { reason: "no nftables here".into() };
    assert_eq!(slot.observe(&window(60)), Some(refused));
    assert_eq!(slot.observe(&window(70)), Some(Observed::Unconfirmed), "of others it says nothing");
    generation(&mut stream);

    let mut now = at(0);
    let mut waits = Vec::new();
    for round in 2..12 {
        let retry_at = slot.tell(round, holding(&[window(60)]), now).unwrap();
        assert_eq!(generation(&mut stream), None, "not before its time");
        waits.push(retry_at.duration_since(now).as_secs());
        assert_eq!(slot.tell(round, holding(&[window(60)]), retry_at), None);
        assert_eq!(generation(&mut stream), Some(round));
        slot.applied(round, Some("no nftables here".into()), retry_at);
        assert_eq!(alarms.lines(), usize::from(round >= 3), "it alarms at the third refusal, once");
        now = retry_at;
    }
    assert!(waits[0] <= 1 && waits.iter().all(|wait| *wait <= 60), "{waits:?}");
    assert!(waits[9] >= 30, "{waits:?}");

    slot.tell(20, holding(&[]), now);
    assert_eq!(generation(&mut stream), Some(20), "something else is not made to wait");
    slot.applied(20, None, now);
    assert_eq!(slot.observe(&window(60)), Some(Observed::Absent));
    assert_eq!(slot.report().status, LayerStatus::InSync);
}

#[test]
fn i5_a_refusal_leaves_open_what_was_confirmed_before() {
    let (mut slot, _stream) = a_slot();
    slot.tell(1, holding(&[window(60)]), at(0));
    slot.applied(1, None, at(0));
    slot.tell(2, holding(&[window(60), window(70)]), at(1));
    slot.applied(2, Some("too many".into()), at(1));
    assert_eq!(slot.observe(&window(60)), Some(Observed::Open));
    assert!(matches!(slot.observe(&window(70)), Some(Observed::Refused { .. })));
    // A close that was refused is no close.
    slot.tell(3, holding(&[]), at(2));
    slot.applied(3, Some("out of memory".into()), at(2));
    assert_eq!(slot.observe(&window(60)), Some(Observed::Open));
    assert_eq!(slot.observe(&window(70)), Some(Observed::Unconfirmed));
}

#[test]
fn the_report_follows_the_session() {
    let (mut slot, _stream) = a_slot();
    let status = |slot: &Slot| (slot.report().status, slot.report().online);
    assert_eq!(status(&slot), (LayerStatus::Pending, true));
    slot.tell(1, holding(&[]), at(0));
    slot.applied(1, Some("no nftables here".into()), at(1));
    assert_eq!(status(&slot), (LayerStatus::Failed, true));
    assert_eq!(slot.report().detail, "no nftables here");
    slot.applied(1, None, at(2));
    assert_eq!(status(&slot), (LayerStatus::InSync, true));
    slot.heard(at(3));
    assert_eq!(slot.report().last_seen, Some(at(3)));
    slot.disconnect(at(4));
    assert_eq!(status(&slot), (LayerStatus::Unreachable, false));
    assert_eq!((slot.report().last_seen, slot.report().version), (Some(at(4)), "1.2.3".into()));
    assert_eq!(slot.tell(5, holding(&[window(60)]), at(5)), None);
    assert_eq!(slot.observe(&window(60)), None, "there is no session to know it");
}
