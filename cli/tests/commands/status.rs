//! `status`.

use postern_core::Invalid;
use postern_proto::status::invalid;
use postern_proto::v1;
use postern_testkit::Script;

use super::world::CommandWorld;

/// A script with one broker in this state, and this number of stuck closes.
fn status_of(ready: bool, stuck: u64) -> Script {
    let replica = v1::Replica { name: "broker-1".to_owned(), answers: true, ..v1::Replica::default() };
    let status = v1::GetStatusResponse {
        replica: "broker-1".to_owned(),
        ready,
        not_ready: if ready { vec![] } else { vec!["reconciler: it has not gone round yet".to_owned()] },
        replicas: vec![replica],
        stuck_closes_total: stuck,
        ..v1::GetStatusResponse::default()
    };
    Script { status, ..Script::default() }
}

#[tokio::test]
async fn a_check_passes_only_if_nothing_needs_attention() {
    for (ready, stuck, code) in [(true, 0, 0), (false, 0, 9), (true, 1, 9)] {
        let broker = CommandWorld::with(status_of(ready, stuck)).await;
        let ran = broker.postern(&["status", "--check"]).await.exits(code);
        assert_eq!(ran.err.contains("error: 1 problem needs attention"), code == 9, "{ran:?}");
        let json = broker.postern(&["status", "--check", "--output", "json"]).await.exits(code).json();
        assert_eq!(json["attention"].as_array().map(Vec::len), Some(usize::from(code == 9)));
    }
}

#[tokio::test]
async fn without_a_check_the_command_only_reports() {
    let broker = CommandWorld::with(status_of(false, 3)).await;
    let ran = broker.postern(&["status"]).await.exits(0);
    assert!(ran.out.contains("needs attention:\n  broker-1 is not ready: reconciler"), "{ran:?}");
    assert!(ran.out.contains("3 grants have not closed in time"), "{ran:?}");
}

#[tokio::test]
async fn a_broker_that_refuses_is_no_broker_that_needs_attention() {
    let broker = CommandWorld::with(status_of(true, 0)).await;
    broker.broker.refuse(invalid(&Invalid::new("field", "is wrong", "write another")));
    broker.postern(&["status", "--check"]).await.exits(5);
}
