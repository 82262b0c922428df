//! Writes at the same time.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::client::{Cloud, Reply, group, rule};

const SPAN: Duration = Duration::from_secs(60);

/// Reports whether an answer says that another operation is under way: by one of two codes.
fn is_busy(reply: &Reply) -> bool {
    match reply.error() {
        (429, "RetryableErrorDueToAnotherOperation") => {
            assert!(reply.header("retry-after").unwrap().parse::<u32>().is_ok());
            true
        }
        (409, "AnotherOperationInProgress") => true,
        _ => false,
    }
}

#[tokio::test(start_paused = true)]
async fn a_group_takes_one_write_at_a_time() {
    let cloud = Cloud::new().await;
    cloud.lab.rule("nsg", "customer", 200, "Allow", "*", "*", "80");
    cloud.sim.settle("Microsoft.Network/networkSecurityGroups", SPAN);
    cloud.put(&cloud.rule_id("a"), &rule(100)).await.good();
    let before = cloud.get(&cloud.nsg()).await.good();
    let mut codes = BTreeSet::new();
    // Its rules are written with it, in whatever letter case.
    for reply in [
        cloud.put(&cloud.rule_id("b"), &rule(101)).await,
        cloud.put(&cloud.rule_id("a"), &rule(100)).await,
        cloud.delete(&cloud.rule_id("customer")).await,
        cloud.put(&cloud.nsg().to_uppercase(), &group(vec![])).await,
        cloud.delete(&cloud.nsg()).await,
    ] {
        assert!(is_busy(&reply), "{reply:?}");
        codes.insert(reply.status);
    }
    assert_eq!(codes, BTreeSet::from([409, 429]), "Azure says it in either way");
    assert_eq!(cloud.get(&cloud.nsg()).await.good(), before);
    tokio::time::advance(SPAN).await;
    assert_eq!(cloud.put(&cloud.rule_id("b"), &rule(101)).await.status, 201);
}

#[tokio::test(start_paused = true)]
async fn groups_do_not_disturb_each_other() {
    let cloud = Cloud::new().await;
    cloud.lab.nsg("other");
    cloud.sim.settle("Microsoft.Network/networkSecurityGroups", SPAN);
    cloud.put(&cloud.rule_id("a"), &rule(100)).await.good();
    let other = format!("{}/securityRules/a", cloud.lab.nsg_id("other"));
    assert_eq!(cloud.put(&other, &rule(100)).await.status, 201);
    let address = json!({"location": "westeurope", "properties": {"ipAddress": "198.51.100.1"}});
    assert_eq!(cloud.put(&cloud.lab.id("publicIPAddresses", "ip"), &address).await.status, 201);
}

#[tokio::test(start_paused = true)]
async fn a_firewall_takes_one_write_at_a_time() {
    let cloud = Cloud::new().await;
    let subnet = cloud.lab.subnet("net", "AzureFirewallSubnet", "10.0.1.0/26", None, None);
    let ids = ["fw-1", "fw-2"].map(|name| cloud.lab.firewall(name, "10.0.1.4", "198.51.100.1", &subnet));
    cloud.sim.settle("Microsoft.Network/azureFirewalls", SPAN);
    let body: Vec<Value> = vec![cloud.get(&ids[0]).await.good(), cloud.get(&ids[1]).await.good()];
    cloud.put(&ids[0], &body[0]).await.good();
    let before = cloud.get(&ids[0]).await.good();
    assert!(is_busy(&cloud.put(&ids[0], &body[0]).await));
    assert_eq!(cloud.get(&ids[0]).await.good(), before);
    assert_eq!(cloud.put(&ids[1], &body[1]).await.status, 200);
    tokio::time::advance(SPAN).await;
    assert_eq!(cloud.put(&ids[0], &body[0]).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_writes_at_once_one_is_taken() {
    let cloud = Arc::new(Cloud::new().await);
    cloud.sim.settle("Microsoft.Network/networkSecurityGroups", SPAN);
    let mut writes = JoinSet::new();
    for at in 0..30_u16 {
        let cloud = Arc::clone(&cloud);
        writes.spawn(async move { cloud.put(&cloud.rule_id(&format!("rule-{at}")), &rule(100 + at)).await });
    }
    let replies = writes.join_all().await;
    let (taken, refused): (Vec<_>, Vec<_>) = replies.iter().partition(|reply| reply.status == 201);
    assert_eq!(taken.len(), 1);
    assert!(refused.iter().all(|reply| is_busy(reply)));
    assert_eq!(cloud.sim.rules(&cloud.nsg()), [taken[0].body["name"].as_str().unwrap()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_that_settle_at_once_lose_none() {
    let cloud = Arc::new(Cloud::new().await);
    let mut writes = JoinSet::new();
    for at in 0..30_u16 {
        let cloud = Arc::clone(&cloud);
        writes.spawn(async move {
            cloud.put(&cloud.rule_id(&format!("rule-{at}")), &rule(100 + at)).await.good();
        });
    }
    writes.join_all().await;
    let expected: Vec<_> = (0..30).map(|at| format!("rule-{at}")).collect();
    assert_eq!(cloud.sim.rules(&cloud.nsg()), expected);
}
