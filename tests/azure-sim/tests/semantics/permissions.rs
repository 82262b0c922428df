//! The actions that each token allows.

use reqwest::Method;
use serde_json::json;

use crate::client::{Cloud, SUBSCRIPTION, rule};

impl Cloud {
    fn may(&self, actions: &[&str]) {
        self.sim.permissions(Some(actions.iter().map(|action| (*action).to_owned()).collect()));
    }
}

#[tokio::test]
async fn an_application_takes_the_actions_that_it_may_take() {
    let cloud = Cloud::new().await;
    let vm = cloud.vm(&["10.0.0.4"], None, None);
    let rule_id = cloud.rule_id("ssh");
    let groups = format!("/subscriptions/{SUBSCRIPTION}/providers/Microsoft.Network/networkSecurityGroups");
    let effective = format!("{}/effectiveNetworkSecurityGroups", vm.interface);
    let body = rule(100);
    let calls = [
        (Method::GET, &rule_id, "Microsoft.Network/networkSecurityGroups/securityRules/read"),
        (Method::PUT, &rule_id, "Microsoft.Network/networkSecurityGroups/securityRules/write"),
        (Method::DELETE, &rule_id, "Microsoft.Network/networkSecurityGroups/securityRules/delete"),
        (Method::GET, &groups, "Microsoft.Network/networkSecurityGroups/read"),
        (Method::GET, &vm.id, "Microsoft.Compute/virtualMachines/read"),
        (
            Method::POST,
            &effective,
            "Microsoft.Network/networkInterfaces/effectiveNetworkSecurityGroups/action",
        ),
    ];
    for (method, id, action) in &calls {
        cloud.sim.put(&cloud.nsg(), crate::client::group(vec![crate::client::named("ssh", rule(100))]));
        let before = cloud.sim.get(&cloud.nsg());
        let all_others: Vec<_> = calls.iter().map(|call| call.2).filter(|other| other != action).collect();
        let call = || cloud.send(method.clone(), id, Some(&body), None);
        for denied in [&all_others[..], &[], &["Microsoft.Storage/*"], &["*/nothing"]] {
            cloud.may(denied);
            cloud.sim.forget_calls();
            assert_eq!(call().await.unwrap().error(), (403, "AuthorizationFailed"), "{method} {id}");
            assert!(cloud.sim.actions().is_empty(), "it was not taken");
            assert_eq!(cloud.sim.get(&cloud.nsg()), before, "{method} {id}");
        }
        let (_, verb) = action.rsplit_once('/').unwrap();
        let last = format!("Microsoft.*/{verb}");
        for allowed in [&[*action][..], &[&action.to_uppercase()], &["*"], &[&last]] {
            cloud.may(allowed);
            let reply = call().await.unwrap();
            assert!(reply.status < 300, "{allowed:?}: {method} {id}: {reply:?}");
        }
        assert_eq!(cloud.sim.actions(), [*action]);
    }
    cloud.sim.permissions(None);
    cloud.put(&rule_id, &body).await.good();
}

#[tokio::test]
async fn a_rule_that_names_an_application_security_group_needs_the_permission_to_join_it() {
    let cloud = Cloud::new().await;
    let mut body = rule(100);
    body["properties"].as_object_mut().unwrap().remove("destinationAddressPrefix");
    let role = cloud.lab.id("applicationSecurityGroups", "web");
    body["properties"]["destinationApplicationSecurityGroups"] = json!([{"id": role}]);
    let write = "Microsoft.Network/networkSecurityGroups/securityRules/write";
    let join = "Microsoft.Network/applicationSecurityGroups/joinNetworkSecurityRule/action";
    cloud.may(&[write]);
    assert_eq!(cloud.put(&cloud.rule_id("new"), &body).await.error(), (403, "LinkedAuthorizationFailed"));
    cloud.may(&[write, join]);
    cloud.put(&cloud.rule_id("new"), &body).await.good();
}

#[tokio::test]
async fn a_firewall_needs_the_permission_to_join_its_subnet_and_its_address() {
    let cloud = Cloud::new().await;
    let subnet = cloud.lab.subnet("net", "AzureFirewallSubnet", "10.0.1.0/26", None, None);
    let firewall = cloud.lab.firewall("fw", "10.0.1.4", "198.51.100.1", &subnet);
    let before = cloud.get(&firewall).await.good();
    let write = "Microsoft.Network/azureFirewalls/write";
    let join_address = "Microsoft.Network/publicIPAddresses/join/action";
    let join_subnet = "Microsoft.Network/virtualNetworks/subnets/join/action";
    for (actions, code) in [
        (&[join_address, join_subnet][..], "AuthorizationFailed"),
        (&[write], "LinkedAuthorizationFailed"),
        (&[write, join_address], "LinkedAuthorizationFailed"),
        (&[write, join_subnet], "LinkedAuthorizationFailed"),
    ] {
        cloud.may(actions);
        assert_eq!(cloud.put(&firewall, &before).await.error(), (403, code), "{actions:?}");
        assert_eq!(cloud.sim.get(&firewall).as_ref(), Some(&before));
    }
    cloud.may(&[write, join_address, join_subnet]);
    cloud.sim.forget_calls();
    cloud.put(&firewall, &before).await.good();
    assert_eq!(cloud.sim.actions(), [write, join_address, join_subnet]);
}

#[tokio::test]
async fn a_caller_reads_its_own_machines_and_changes_nothing() {
    let cloud = Cloud::new().await;
    let vm = cloud.vm(&["10.0.0.4"], None, None);
    let permissions = json!({"value": [{"actions": ["*/read"], "notActions": ["Microsoft.Storage/*"]}]});
    cloud.sim.caller("alice", permissions.clone(), &[&vm.id]);
    for id in [vm.id.clone(), vm.id.to_uppercase()] {
        assert_eq!(cloud.get_as("alice", &id).await.good()["id"], json!(vm.id));
    }
    for id in [&vm.interface, &cloud.nsg()] {
        assert_eq!(cloud.get_as("alice", id).await.error(), (403, "AuthorizationFailed"), "{id}");
    }
    for method in [Method::PUT, Method::DELETE] {
        let reply = cloud.send_as(Some("alice"), method, &vm.id, Some(&json!({})), None).await.unwrap();
        assert_eq!(reply.error(), (403, "AuthorizationFailed"));
    }
    assert!(cloud.sim.get(&vm.id).is_some());

    let of = |id: &str| format!("{id}/providers/Microsoft.Authorization/permissions");
    assert_eq!(cloud.get_as("alice", &of(&vm.id)).await.good(), permissions);
    assert_eq!(cloud.get(&of(&vm.id)).await.good()["value"][0]["actions"], json!(["*"]));
    assert_eq!(cloud.get_as("bob", &of(&vm.id)).await.error(), (401, "InvalidAuthenticationToken"));
    // Revoking the applications' tokens leaves the callers their own.
    cloud.sim.forget_tokens();
    assert_eq!(cloud.get_as("alice", &vm.id).await.status, 200);
}
