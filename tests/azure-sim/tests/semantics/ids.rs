//! The ids of resources, and the answers for those that name no resource.

use serde_json::json;

use crate::client::{Cloud, SUBSCRIPTION, group, named, rule};

/// An id in another letter case throughout.
fn shouted(id: &str) -> String {
    id.to_ascii_uppercase()
}

#[tokio::test]
async fn an_id_is_the_same_in_any_letter_case() {
    let cloud = Cloud::new().await;
    cloud.put(&shouted(&cloud.rule_id("ssh")), &rule(100)).await.good();
    for id in [cloud.rule_id("ssh"), shouted(&cloud.rule_id("ssh")), cloud.rule_id("SsH").to_lowercase()] {
        assert_eq!(cloud.get(&id).await.good()["properties"]["priority"], json!(100), "{id}");
    }
    assert_eq!(cloud.put(&cloud.rule_id("ssh"), &rule(101)).await.status, 200);
    assert_eq!(cloud.delete(&cloud.rule_id("sSh")).await.status, 202);
    assert_eq!(cloud.get(&cloud.rule_id("ssh")).await.status, 404);
}

#[tokio::test]
async fn an_id_keeps_the_case_that_it_was_first_written_in() {
    let cloud = Cloud::new().await;
    cloud.put(&cloud.rule_id("Ssh"), &rule(100)).await.good();
    cloud.put(&shouted(&cloud.rule_id("Ssh")), &rule(101)).await.good();
    let read = cloud.get(&shouted(&cloud.rule_id("Ssh"))).await.good();
    assert_eq!(read["name"], json!("Ssh"));
    assert_eq!(read["id"], json!(cloud.rule_id("Ssh")));

    let whole = group(vec![named("New", rule(102))]);
    let written = cloud.put(&shouted(&cloud.nsg()), &whole).await.good();
    for group in [written, cloud.get(&cloud.nsg()).await.good()] {
        assert_eq!(group["id"], json!(cloud.nsg()));
        assert_eq!(group["name"], json!("nsg"));
        assert_eq!(group["type"], json!("Microsoft.Network/networkSecurityGroups"));
        assert_eq!(group["properties"]["securityRules"][0]["id"], json!(cloud.rule_id("New")));
    }
}

#[tokio::test]
async fn what_is_not_there_is_told_apart_by_what_it_is_missing_in() {
    let cloud = Cloud::new().await;
    cloud.put(&cloud.rule_id("ssh"), &rule(100)).await.good();
    let of = |subscription: &str, group: &str, rest: &str| {
        format!("/subscriptions/{subscription}/resourceGroups/{group}/providers/{rest}")
    };
    let cases = [
        (cloud.rule_id("other"), "NotFound"),
        (format!("{}/subnets/other", cloud.lab.id("virtualNetworks", "net")), "NotFound"),
        (cloud.lab.nsg_id("other"), "ResourceNotFound"),
        (format!("{}/securityRules/ssh", cloud.lab.nsg_id("other")), "ResourceNotFound"),
        (of(SUBSCRIPTION, "Web", "Microsoft.Compute/virtualMachines/vm"), "ResourceNotFound"),
        (of(SUBSCRIPTION, "Other", "Microsoft.Network/networkSecurityGroups/nsg"), "ResourceGroupNotFound"),
        // Another group whose name begins with the same letters is another group.
        (of(SUBSCRIPTION, "We", "Microsoft.Network/networkSecurityGroups/nsg"), "ResourceGroupNotFound"),
        (of("other", "Web", "Microsoft.Network/networkSecurityGroups/nsg"), "SubscriptionNotFound"),
        (of(SUBSCRIPTION, "Other", "Microsoft.Network/networkSecurityGroups"), "ResourceGroupNotFound"),
        (
            "/subscriptions/other/providers/Microsoft.Network/networkSecurityGroups".into(),
            "SubscriptionNotFound",
        ),
        (format!("/subscriptions/{SUBSCRIPTION}"), "InvalidResourceType"),
    ];
    for (id, code) in cases {
        assert_eq!(cloud.get(&id).await.error(), (404, code), "{id}");
    }
}

#[tokio::test]
async fn a_rule_of_no_group_cannot_be_written_and_its_removal_is_done_already() {
    let cloud = Cloud::new().await;
    let id = format!("{}/securityRules/ssh", cloud.lab.nsg_id("other"));
    assert_eq!(cloud.put(&id, &rule(100)).await.error(), (404, "ParentResourceNotFound"));
    for id in [id, cloud.rule_id("ssh"), cloud.lab.nsg_id("other")] {
        let reply = cloud.delete(&id).await;
        assert_eq!((reply.status, reply.header("location")), (204, None), "{id}");
    }
    assert!(cloud.sim.get(&cloud.lab.nsg_id("other")).is_none());
}
