//! Changes that take their time.

use std::time::Duration;

use postern_azure_sim::{OperationLinks, operation_failed};
use serde_json::json;

use crate::client::{Cloud, Reply, but, group, named, rule};

const GROUPS: &str = "Microsoft.Network/networkSecurityGroups";
const SPAN: Duration = Duration::from_secs(240);

/// A link to the state of an operation.
fn link<'a>(reply: &'a Reply, header: &str) -> &'a str {
    reply.header(header).unwrap_or_else(|| panic!("no {header}: {reply:?}"))
}

#[tokio::test(start_paused = true)]
async fn a_rule_is_in_force_once_its_operation_has_succeeded() {
    let cloud = Cloud::new().await;
    let vm = cloud.vm(&["10.0.0.4"], None, Some("nsg"));
    cloud.sim.settle(GROUPS, SPAN);
    let reply = cloud.put(&cloud.rule_id("ssh"), &rule(100)).await;
    assert_eq!((reply.status, reply.state()), (201, "Updating"));
    let operation = link(&reply, "azure-asyncoperation").to_owned();
    assert!(reply.header("location").is_none());
    assert!(reply.header("retry-after").is_some());

    tokio::time::advance(SPAN - Duration::from_millis(1)).await;
    assert_eq!(cloud.follow(&operation).await.good(), json!({"status": "InProgress"}));
    assert_eq!(cloud.get(&cloud.nsg()).await.state(), "Updating");
    assert_eq!(cloud.get(&cloud.rule_id("ssh")).await.state(), "Updating");
    assert!(!cloud.admits("203.0.113.7", &vm, 22));

    tokio::time::advance(Duration::from_millis(1)).await;
    assert!(cloud.admits("203.0.113.7", &vm, 22));
    assert_eq!(cloud.follow(&operation).await.good(), json!({"status": "Succeeded"}));
    assert_eq!(cloud.get(&cloud.nsg()).await.state(), "Succeeded");
    assert_eq!(cloud.get(&cloud.rule_id("ssh")).await.state(), "Succeeded");
}

#[tokio::test(start_paused = true)]
async fn a_changed_and_a_removed_rule_hold_until_the_operation_has_succeeded() {
    let cloud = Cloud::new().await;
    let vm = cloud.vm(&["10.0.0.4"], None, Some("nsg"));
    cloud.lab.rule("nsg", "ssh", 100, "Allow", "*", "*", "22");
    cloud.sim.settle(GROUPS, SPAN);
    let moved =
        cloud.put(&cloud.rule_id("ssh"), &but(rule(100), json!({"destinationPortRange": "80"}))).await;
    assert_eq!(moved.status, 200);
    assert!(cloud.admits("203.0.113.7", &vm, 22) && !cloud.admits("203.0.113.7", &vm, 80));
    tokio::time::advance(SPAN).await;
    assert!(!cloud.admits("203.0.113.7", &vm, 22) && cloud.admits("203.0.113.7", &vm, 80));

    let removed = cloud.delete(&cloud.rule_id("ssh")).await;
    assert_eq!((removed.status, &removed.body), (202, &json!(null)));
    let (operation, place) = (link(&removed, "azure-asyncoperation"), link(&removed, "location"));
    assert_eq!(cloud.follow(operation).await.good(), json!({"status": "InProgress"}));
    assert_eq!(cloud.follow(place).await.status, 202);
    assert!(cloud.admits("203.0.113.7", &vm, 80));
    tokio::time::advance(SPAN).await;
    assert_eq!(cloud.follow(operation).await.good(), json!({"status": "Succeeded"}));
    assert_eq!(cloud.follow(place).await.status, 204);
    assert!(!cloud.admits("203.0.113.7", &vm, 80));
}

#[tokio::test(start_paused = true)]
async fn a_whole_group_is_in_force_once_its_operation_has_succeeded() {
    let cloud = Cloud::new().await;
    let vm = cloud.vm(&["10.0.0.4"], None, Some("new"));
    cloud.sim.settle(GROUPS, SPAN);
    let whole = group(vec![named("ssh", rule(100))]);
    // A new one, then one without rules, whether it says so or not.
    for (body, before, after) in [
        (whole.clone(), false, true),
        (group(vec![]), true, false),
        (whole, false, true),
        (json!({"location": "westeurope"}), true, false),
    ] {
        let reply = cloud.put(&cloud.lab.nsg_id("new"), &body).await;
        assert_eq!(reply.state(), "Updating");
        assert_eq!(cloud.admits("203.0.113.7", &vm, 22), before, "{body}");
        tokio::time::advance(SPAN).await;
        assert_eq!(cloud.admits("203.0.113.7", &vm, 22), after, "{body}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_operation_says_why_and_nothing_of_it_is_in_force() {
    let cloud = Cloud::new().await;
    let vm = cloud.vm(&["10.0.0.4"], None, Some("nsg"));
    cloud.lab.rule("nsg", "ssh", 100, "Allow", "*", "*", "22");
    cloud.sim.settle(GROUPS, SPAN);
    let (known, unknown) = (cloud.nsg(), cloud.lab.nsg_id("unknown"));
    let mut before = cloud.sim.get(&known);
    let deny = but(rule(100), json!({"access": "Deny"}));
    for (id, body) in [
        (cloud.rule_id("ssh"), Some(deny.clone())),
        (cloud.rule_id("new"), Some(rule(101))),
        (known.clone(), Some(group(vec![named("deny", deny)]))),
        (unknown.clone(), Some(group(vec![]))),
        (cloud.rule_id("ssh"), None),
    ] {
        cloud.sim.fail("*", &id, 1, operation_failed("InternalServerError"));
        let reply = match &body {
            Some(body) => cloud.put(&id, body).await,
            None => cloud.delete(&id).await,
        };
        assert!(reply.status < 300, "{reply:?}");
        let operation = link(&reply, "azure-asyncoperation");
        assert_eq!(cloud.follow(operation).await.good(), json!({"status": "InProgress"}));
        tokio::time::advance(SPAN).await;
        let status = cloud.follow(operation).await.good();
        assert_eq!(status["status"], json!("Failed"), "{id}");
        assert_eq!(status["error"]["code"], json!("InternalServerError"));
        assert!(!status["error"]["message"].as_str().unwrap().is_empty());
        if let Some(place) = reply.header("location") {
            assert_eq!(cloud.follow(place).await.error().1, "InternalServerError");
        }
        if body.is_some() && id.contains("/securityRules/") {
            assert_eq!(cloud.get(&id).await.state(), "Failed", "Azure does not undo the write of a rule");
            cloud.sim.edit(&known, |group| *group = before.clone().unwrap());
        } else {
            assert_eq!(cloud.sim.get(&known), before, "{id}");
        }
        before = cloud.sim.get(&known);
        assert!(cloud.sim.get(&unknown).is_none());
        assert!(cloud.admits("203.0.113.7", &vm, 22), "{id}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_operation_is_followed_by_its_location_or_by_the_resource_itself() {
    for links in [OperationLinks::Location, OperationLinks::None] {
        let cloud = Cloud::new().await;
        cloud.sim.settle(GROUPS, SPAN);
        cloud.sim.link_operations(links, 7);
        for _ in 0..2 {
            let reply = match cloud.get(&cloud.rule_id("ssh")).await.status {
                404 => cloud.put(&cloud.rule_id("ssh"), &rule(100)).await,
                _ => cloud.delete(&cloud.rule_id("ssh")).await,
            };
            assert_eq!(reply.header("retry-after"), Some("7"));
            assert!(reply.header("azure-asyncoperation").is_none());
            assert_eq!(reply.header("location").is_some(), links == OperationLinks::Location);
            assert_eq!(cloud.get(&cloud.nsg()).await.state(), "Updating");
            if links == OperationLinks::Location {
                assert_eq!(cloud.follow(link(&reply, "location")).await.status, 202);
            }
            tokio::time::advance(SPAN).await;
            assert_eq!(cloud.get(&cloud.nsg()).await.state(), "Succeeded");
            if links == OperationLinks::Location {
                assert_eq!(cloud.follow(link(&reply, "location")).await.status, 204);
            }
        }
    }
}

#[tokio::test]
async fn a_rule_that_failed_is_out_of_force_until_it_is_written_again() {
    let cloud = Cloud::new().await;
    let vm = cloud.vm(&["10.0.0.4"], None, Some("nsg"));
    cloud.lab.rule("nsg", "ssh", 100, "Allow", "*", "*", "22");
    cloud.put(&cloud.rule_id("deny"), &but(rule(101), json!({"access": "Deny"}))).await.good();
    cloud.sim.set_state(&cloud.nsg(), "ssh", "Updating");
    assert!(cloud.admits("203.0.113.7", &vm, 22), "it is in force as it was");
    cloud.sim.set_state(&cloud.nsg(), "", "Succeeded");
    cloud.sim.fail("PUT", "/securityRules/ssh", 1, operation_failed("InternalServerError"));
    let shut = but(rule(100), json!({"access": "Deny"}));
    cloud.put(&cloud.rule_id("ssh"), &shut).await;
    assert_eq!(cloud.get(&cloud.rule_id("ssh")).await.state(), "Failed");
    assert!(cloud.admits("203.0.113.7", &vm, 22), "what failed is not in force");
    cloud.put(&cloud.rule_id("other"), &but(rule(200), json!({"access": "Deny"}))).await.good();
    assert_eq!(cloud.get(&cloud.rule_id("ssh")).await.state(), "Failed", "another write does not cure it");
    cloud.put(&cloud.rule_id("ssh"), &shut).await.good();
    assert_eq!(cloud.get(&cloud.rule_id("ssh")).await.state(), "Succeeded");
    assert!(!cloud.admits("203.0.113.7", &vm, 22));
}

#[tokio::test(start_paused = true)]
async fn a_machine_whose_removal_fails_keeps_its_interface() {
    let cloud = Cloud::new().await;
    let vm = cloud.vm(&["10.0.0.4"], None, Some("nsg"));
    let before = (cloud.sim.get(&vm.id), cloud.sim.get(&vm.interface));
    cloud.sim.fail("DELETE", "/virtualMachines/", 1, operation_failed("Conflict"));
    assert_eq!(cloud.delete(&vm.id).await.status, 202);
    assert_eq!((cloud.sim.get(&vm.id), cloud.sim.get(&vm.interface)), before);
}

#[tokio::test(start_paused = true)]
async fn a_kind_settles_at_its_own_pace() {
    let cloud = Cloud::new().await;
    cloud.sim.settle("microsoft.network/NETWORKSECURITYGROUPS", SPAN);
    let slow = cloud.put(&cloud.rule_id("a"), &rule(100)).await;
    let address = json!({"location": "westeurope", "properties": {"ipAddress": "198.51.100.1"}});
    let quick = cloud.put(&cloud.lab.id("publicIPAddresses", "ip"), &address).await;
    for (reply, status) in [(slow, "InProgress"), (quick, "Succeeded")] {
        let operation = link(&reply, "azure-asyncoperation");
        assert_eq!(cloud.follow(operation).await.good(), json!({"status": status}));
    }
}

#[tokio::test]
async fn an_unknown_operation_is_not_found() {
    let cloud = Cloud::new().await;
    let reply = cloud.put(&cloud.rule_id("a"), &rule(100)).await;
    let operation = link(&reply, "azure-asyncoperation");
    let (place, rest) = operation.rsplit_once('/').unwrap();
    let version = rest.split_once('?').unwrap().1;
    for number in ["4711", "x"] {
        let reply = cloud.follow(&format!("{place}/{number}?{version}")).await;
        assert_eq!(reply.error(), (404, "OperationNotFound"), "{number:?}");
    }
}
