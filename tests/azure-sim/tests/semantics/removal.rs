//! The removal of resources: the parts that go along, and the parts that stay.

use serde_json::{Value, json};

use crate::client::{Cloud, rule};

#[tokio::test]
async fn a_group_takes_its_rules_along() {
    let cloud = Cloud::new().await;
    cloud.put(&cloud.rule_id("ssh"), &rule(100)).await.good();
    assert_eq!(cloud.delete(&cloud.nsg()).await.status, 202);
    assert_eq!(cloud.get(&cloud.rule_id("ssh")).await.error(), (404, "ResourceNotFound"));
    assert_eq!(cloud.get(&cloud.nsg()).await.error(), (404, "ResourceNotFound"));
    // A new group of the same name is another group, without those rules.
    cloud.lab.nsg("nsg");
    assert_eq!(cloud.get(&cloud.rule_id("ssh")).await.error(), (404, "NotFound"));
}

#[tokio::test]
async fn a_group_in_use_stays() {
    for (subnet_nsg, nsg) in [(None, Some("NSG")), (Some("NSG"), None)] {
        let cloud = Cloud::new().await;
        let vm = cloud.vm(&["10.0.0.4"], subnet_nsg, nsg);
        cloud.put(&cloud.rule_id("ssh"), &rule(100)).await.good();
        let refused = cloud.delete(&cloud.nsg()).await;
        assert_eq!(refused.error(), (400, "InUseNetworkSecurityGroupCannotBeDeleted"));
        assert_eq!(cloud.sim.rules(&cloud.nsg()), ["ssh"]);
        assert!(cloud.admits("203.0.113.7", &vm, 22));

        let net = cloud.lab.id("virtualNetworks", "net");
        for id in [&vm.interface, &net] {
            cloud.delete(id).await.good();
        }
        assert_eq!(cloud.delete(&cloud.nsg()).await.status, 202);
    }
}

#[tokio::test]
async fn a_machine_leaves_its_interface_and_its_rules_behind() {
    for by_call in [true, false] {
        let cloud = Cloud::new().await;
        let vm = cloud.vm(&["10.0.0.4"], None, Some("nsg"));
        cloud.put(&cloud.rule_id("ssh"), &rule(100)).await.good();
        let read = cloud.get(&vm.interface).await.good();
        assert_eq!(read["properties"]["virtualMachine"]["id"], json!(vm.id));
        if by_call {
            assert_eq!(cloud.delete(&vm.id).await.status, 202);
        } else {
            cloud.sim.remove(&vm.id);
        }
        assert_eq!(cloud.get(&vm.id).await.error(), (404, "ResourceNotFound"));
        let left = cloud.get(&vm.interface).await.good();
        assert_eq!(left["properties"]["virtualMachine"], Value::Null);
        assert_eq!(left["properties"]["networkSecurityGroup"]["id"], json!(cloud.nsg()));
        assert_eq!(cloud.sim.rules(&cloud.nsg()), ["ssh"]);
        assert!(cloud.admits("203.0.113.7", &vm, 22));
    }
}

#[tokio::test]
async fn one_rule_goes_alone() {
    let cloud = Cloud::new().await;
    for (name, priority) in [("a", 102), ("b", 101), ("c", 100)] {
        cloud.put(&cloud.rule_id(name), &rule(priority)).await.good();
    }
    cloud.delete(&cloud.rule_id("b")).await.good();
    assert_eq!(cloud.sim.rules(&cloud.nsg()), ["c", "a"]);
    assert_eq!(cloud.get(&cloud.rule_id("b")).await.error(), (404, "NotFound"));
}
