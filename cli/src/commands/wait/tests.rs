use postern_proto::v1::{CloseReason, WindowState};

use super::*;

fn a_grant(state: GrantState) -> v1::Grant {
    v1::Grant { id: "g1".into(), state: state.into(), reason: "why".into(), ..v1::Grant::default() }
}

fn with_layers(mut grant: v1::Grant, layers: &[(v1::Layer, WindowState, &str)]) -> v1::Grant {
    let layers = layers.iter().map(|(layer, state, detail)| v1::WindowLayer {
        layer: (*layer).into(),
        state: (*state).into(),
        detail: (*detail).to_owned(),
    });
    grant.windows = vec![v1::Window {
        target: "host:web-1".into(),
        port: Some(v1::ProtectedPort { protocol: v1::Protocol::Tcp.into(), number: 22 }),
        source: "192.0.2.1/32".into(),
        connect_to: String::new(),
        layers: layers.collect(),
    }];
    grant
}

fn exit(goal: Goal, grant: &v1::Grant) -> Option<u8> {
    settled(goal, grant).map(|outcome| outcome.map_or_else(|failure| failure.exit() as u8, |()| 0))
}

#[test]
fn a_wait_ends_in_each_state_as_documented() {
    for (state, active, closed) in [
        (GrantState::PendingApproval, None, None),
        (GrantState::Opening, None, None),
        (GrantState::Active, Some(0), None),
        (GrantState::Closing, Some(6), None),
        (GrantState::Closed, Some(6), Some(0)),
        (GrantState::Denied, Some(3), Some(0)),
        (GrantState::Failed, Some(6), Some(0)),
    ] {
        let grant = a_grant(state);
        assert_eq!((exit(Goal::Active, &grant), exit(Goal::Closed, &grant)), (active, closed), "{state:?}");
    }
}

#[test]
fn a_grant_that_is_rolled_back_has_failed_only_once_nothing_of_it_is_open() {
    let rolling = v1::Grant { close_reason: CloseReason::CannotOpen.into(), ..a_grant(GrantState::Closing) };
    assert_eq!(exit(Goal::Active, &rolling), None);
}

#[test]
fn progress_shows_each_change_once() {
    use v1::Layer::{Cloud, Host};
    let mut progress = ShownProgress::default();
    let opening = with_layers(
        a_grant(GrantState::Opening),
        &[(Host, WindowState::Opening, ""), (Cloud, WindowState::Opening, "")],
    );
    let half = with_layers(
        a_grant(GrantState::Opening),
        &[(Host, WindowState::Open, ""), (Cloud, WindowState::Unreachable, "timed out")],
    );
    let active = with_layers(
        a_grant(GrantState::Active),
        &[(Host, WindowState::Open, ""), (Cloud, WindowState::Open, "")],
    );
    assert_eq!(
        progress.lines(&opening),
        ["grant g1 is opening", "  host:web-1 tcp/22 from 192.0.2.1/32: host opening, cloud opening"]
    );
    assert!(progress.lines(&opening).is_empty());
    assert_eq!(
        progress.lines(&half),
        ["  host:web-1 tcp/22 from 192.0.2.1/32: host open, cloud unreachable (timed out)"]
    );
    assert_eq!(
        progress.lines(&active),
        ["grant g1 is active", "  host:web-1 tcp/22 from 192.0.2.1/32: host open, cloud open"]
    );
}
