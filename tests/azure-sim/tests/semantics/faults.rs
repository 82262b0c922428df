//! Faults on demand.

use std::sync::Arc;
use std::time::Duration;

use postern_azure_sim::{Call, CrashPoint, Fault, When, refused};
use postern_testkit::clock::until;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::client::{Cloud, Reply, rule};

impl Cloud {
    /// Writes a rule; none where there is no answer.
    async fn try_put(&self, name: &str, priority: u16) -> Option<Reply> {
        self.send(Method::PUT, &self.rule_id(name), Some(&rule(priority)), None).await.ok()
    }

    fn rules(&self) -> Vec<String> {
        self.sim.rules(&self.nsg())
    }
}

#[tokio::test]
async fn a_lost_answer_is_of_a_call_that_took_effect_and_a_dropped_call_took_none() {
    let cloud = Cloud::new().await;
    cloud.sim.forget_calls();
    cloud.sim.fail("PUT", "/securityRules/lost", 1, Fault::Lost);
    cloud.sim.fail("PUT", "/securityRules/dropped", 1, Fault::Dropped);
    assert!(cloud.try_put("lost", 100).await.is_none());
    assert!(cloud.try_put("dropped", 101).await.is_none());
    assert_eq!(cloud.rules(), ["lost"]);
    assert_eq!(cloud.try_put("lost", 100).await.unwrap().status, 200);
    assert_eq!(cloud.try_put("dropped", 101).await.unwrap().status, 201);

    cloud.sim.fail("DELETE", "/securityRules/lost", 1, Fault::Lost);
    assert!(cloud.send(Method::DELETE, &cloud.rule_id("lost"), None, None).await.is_err());
    assert_eq!(cloud.rules(), ["dropped"]);
    assert_eq!(cloud.delete(&cloud.rule_id("lost")).await.status, 204);
    let statuses: Vec<_> = cloud.sim.calls().iter().map(|call| call.status).collect();
    assert_eq!(statuses, [None, None, Some(200), Some(201), None, Some(204)]);
}

#[tokio::test]
async fn a_fault_is_for_so_many_calls_of_its_method_and_path() {
    let cloud = Cloud::new().await;
    cloud.put(&cloud.rule_id("a"), &rule(100)).await.good();
    let before = cloud.get(&cloud.nsg()).await.good();
    cloud.sim.fail("PUT", "/SECURITYrules/A", 2, refused(429, "TooManyRequests"));
    for _ in 0..2 {
        // Neither another method nor another path uses them up.
        assert_eq!(cloud.get(&cloud.rule_id("a")).await.status, 200);
        assert_eq!(cloud.put(&cloud.lab.nsg_id("b"), &json!({})).await.status / 100, 2);
        let reply = cloud.put(&cloud.rule_id("a"), &rule(101)).await;
        assert_eq!(reply.error(), (429, "TooManyRequests"));
        assert!(reply.header("retry-after").is_some());
        assert_eq!(cloud.get(&cloud.nsg()).await.good(), before);
    }
    assert_eq!(cloud.put(&cloud.rule_id("a"), &rule(101)).await.status, 200);

    cloud.sim.fail("*", "", 1, refused(500, "First"));
    cloud.sim.fail("*", "", 5, refused(503, "Second"));
    assert_eq!(cloud.get(&cloud.nsg()).await.error(), (500, "First"));
    assert_eq!(cloud.delete(&cloud.nsg()).await.error(), (503, "Second"));
    cloud.sim.forgive();
    assert_eq!(cloud.get(&cloud.nsg()).await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn a_slow_call_is_served_after_its_while() {
    const WHILE: Duration = Duration::from_secs(40);
    let cloud = Cloud::new().await;
    cloud.sim.fail("PUT", "/securityRules/", 1, Fault::Slow(WHILE));
    let start = Instant::now();
    assert_eq!(cloud.try_put("a", 100).await.unwrap().status, 201);
    assert!(start.elapsed() >= WHILE);
}

#[tokio::test]
async fn an_outage_answers_nothing_and_does_nothing() {
    let cloud = Cloud::new().await;
    cloud.sim.outage(true);
    assert!(cloud.try_put("a", 100).await.is_none());
    assert!(cloud.send(Method::GET, &cloud.nsg(), None, None).await.is_err());
    assert!(cloud.rules().is_empty());
    cloud.sim.outage(false);
    assert_eq!(cloud.try_put("a", 100).await.unwrap().status, 201);
}

#[tokio::test]
async fn the_world_halts_at_a_change_that_is_done_or_not_and_nothing_is_answered_from_there_on() {
    for (change, when, expected) in [
        (1, When::Before, &[][..]),
        (1, When::After, &["a"]),
        (2, When::Before, &["a"]),
        (2, When::After, &["a", "b"]),
        (3, When::Before, &["a", "b"]),
    ] {
        let cloud = Arc::new(Cloud::new().await);
        cloud.sim.halt_at(Some(CrashPoint { change, when }));
        assert!(!cloud.sim.has_halted());
        let mut world = JoinSet::new();
        let writer = Arc::clone(&cloud);
        world.spawn(async move {
            let mut answered = 0;
            for (name, priority) in [("a", 100), ("b", 101), ("c", 102)] {
                // Reads are no changes.
                writer.send(Method::GET, &writer.nsg(), None, None).await.ok();
                answered += usize::from(writer.try_put(name, priority).await.is_some());
            }
            answered
        });
        until("the point", || cloud.sim.has_halted()).await;
        assert_eq!(cloud.rules(), expected, "{change} {when:?}");
        let reader = Arc::clone(&cloud);
        world.spawn(
            async move { usize::from(reader.send(Method::GET, &reader.nsg(), None, None).await.is_ok()) },
        );
        let silence = tokio::time::timeout(Duration::from_millis(50), world.join_next()).await;
        assert!(silence.is_err(), "{change} {when:?}: something was answered");
        assert_eq!(cloud.rules(), expected, "{change} {when:?}");
        world.shutdown().await;

        cloud.sim.halt_at(None);
        assert!(!cloud.sim.has_halted());
        assert_eq!(cloud.rules(), expected, "what was held back is not done later");
        assert_eq!(cloud.get(&cloud.nsg()).await.status, 200);
    }
}

#[tokio::test]
async fn what_a_halt_held_back_is_never_answered() {
    for when in [When::Before, When::After] {
        let cloud = Arc::new(Cloud::new().await);
        cloud.sim.halt_at(Some(CrashPoint { change: 1, when }));
        let mut world = JoinSet::new();
        for _ in 0..2 {
            let writer = Arc::clone(&cloud);
            world.spawn(async move { writer.try_put("a", 100).await.is_none() });
        }
        let changes = || cloud.sim.calls().iter().filter(|call| call.is_change()).count();
        until("both changes to arrive", || changes() == 2).await;
        cloud.sim.halt_at(None);
        assert_eq!(world.join_all().await, [true, true]);
        assert_eq!(cloud.rules().len(), usize::from(when == When::After));
    }
}

#[tokio::test]
async fn every_call_is_written_down_with_what_became_of_it() {
    let cloud = Cloud::new().await;
    cloud.sim.forget_calls();
    let reply = cloud.put(&cloud.rule_id("a"), &rule(100)).await;
    cloud.follow(reply.header("azure-asyncoperation").unwrap()).await.good();
    cloud.get(&cloud.lab.nsg_id("other")).await;
    cloud.sim.outage(true);
    cloud.send(Method::DELETE, &cloud.rule_id("a"), None, None).await.unwrap_err();
    cloud.sim.outage(false);
    cloud.login("tenant", &[]).await;

    let calls = cloud.sim.calls();
    let kinds: Vec<_> = calls
        .iter()
        .map(|call: &Call| {
            (call.method.as_str(), call.status, call.is_change(), call.is_poll(), call.is_login())
        })
        .collect();
    let expected = [
        ("PUT", Some(201), true, false, false),
        ("GET", Some(200), false, true, false),
        ("GET", Some(404), false, false, false),
        ("DELETE", None, true, false, false),
        ("POST", Some(400), false, false, true),
    ];
    assert_eq!(kinds, expected);
    assert_eq!(calls[0].path, cloud.rule_id("a"));
    let written =
        ["securityRules/write", "read"].map(|end| format!("Microsoft.Network/networkSecurityGroups/{end}"));
    assert_eq!(cloud.sim.actions(), [written[1].clone(), written[0].clone()]);
    cloud.sim.forget_calls();
    assert!(cloud.sim.calls().is_empty() && cloud.sim.actions().is_empty());
}

#[tokio::test]
async fn a_change_at_the_portal_is_in_force_at_once_and_no_call() {
    let cloud = Cloud::new().await;
    let vm = cloud.vm(&["10.0.0.4"], None, Some("nsg"));
    cloud.sim.forget_calls();
    cloud.lab.rule("nsg", "ssh", 100, "Allow", "*", "*", "22");
    assert!(cloud.admits("203.0.113.7", &vm, 22));
    cloud.sim.edit(&cloud.nsg(), |nsg| nsg["properties"]["securityRules"] = Value::Null);
    assert!(!cloud.admits("203.0.113.7", &vm, 22));
    assert!(cloud.sim.calls().is_empty());
}
