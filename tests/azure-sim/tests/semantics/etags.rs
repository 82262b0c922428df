//! The etags: each change makes a new one, and a write with a stale one is refused.

use std::collections::BTreeSet;

use reqwest::Method;
use serde_json::{Value, json};

use crate::client::{Cloud, group, named, rule};

fn etag(resource: &Value) -> String {
    resource["etag"].as_str().unwrap_or_else(|| panic!("no etag: {resource}")).to_owned()
}

impl Cloud {
    async fn etag(&self, id: &str) -> String {
        etag(&self.get(id).await.good())
    }
}

#[tokio::test]
async fn an_etag_changes_with_each_change_and_with_nothing_else() {
    let cloud = Cloud::new().await;
    let nsg = cloud.nsg();
    let mut seen = BTreeSet::from([cloud.etag(&nsg).await]);
    let (a, b) = (cloud.rule_id("a"), cloud.rule_id("b"));
    for (method, id, body) in [
        (Method::PUT, &a, rule(100)),
        (Method::PUT, &b, rule(101)),
        (Method::PUT, &a, rule(100)),
        (Method::DELETE, &b, Value::Null),
        (Method::PUT, &nsg, group(vec![named("a", rule(102))])),
    ] {
        cloud.send(method.clone(), id, Some(&body), None).await.unwrap().good();
        let now = cloud.etag(&nsg).await;
        assert!(seen.insert(now.clone()), "{method} {id}");
        // Neither a read nor what is refused.
        assert_eq!(cloud.put(&b, &rule(99)).await.status, 400);
        assert_eq!(cloud.etag(&nsg).await, now);
    }
}

#[tokio::test]
async fn a_rules_etag_is_its_own_and_changes_with_it_and_with_the_whole_group() {
    let cloud = Cloud::new().await;
    let (a, b) = (cloud.rule_id("a"), cloud.rule_id("b"));
    for (id, priority) in [(&a, 100), (&b, 101)] {
        cloud.put(id, &rule(priority)).await.good();
    }
    let mut seen = BTreeSet::from([cloud.etag(&a).await]);
    cloud.put(&b, &rule(102)).await.good();
    assert!(!seen.insert(cloud.etag(&a).await), "another rule was changed");
    cloud.put(&a, &rule(103)).await.good();
    assert!(seen.insert(cloud.etag(&a).await), "it was changed");
    // With the etags in it that it was read with.
    let mut whole = cloud.get(&cloud.nsg()).await.good();
    whole["properties"]["securityRules"][0]["properties"]["priority"] = json!(104);
    cloud.put(&cloud.nsg(), &whole).await.good();
    assert!(seen.insert(cloud.etag(&a).await), "it was changed with its group");
    cloud.sim.edit(&cloud.nsg(), |nsg| {
        nsg["properties"]["securityRules"][0]["properties"]["priority"] = json!(105);
    });
    assert!(seen.insert(cloud.etag(&a).await), "it was changed at the portal");
}

#[tokio::test]
async fn a_write_with_a_stale_etag_is_refused_and_changes_nothing() {
    let cloud = Cloud::new().await;
    let subnet = cloud.lab.subnet("net", "AzureFirewallSubnet", "10.0.1.0/26", None, None);
    let firewall = cloud.lab.firewall("fw", "10.0.1.4", "198.51.100.1", &subnet);
    cloud.put(&cloud.rule_id("a"), &rule(100)).await.good();
    for id in [cloud.nsg(), firewall, cloud.rule_id("a")] {
        let read = cloud.get(&id).await.good();
        let stale = etag(&read);
        cloud.put_if(&stale, &id, &read).await.good();
        let before = cloud.get(&id).await.good();
        assert_eq!(cloud.put_if(&stale, &id, &read).await.error(), (412, "PreconditionFailed"), "{id}");
        let gone = cloud.send(Method::DELETE, &id, None, Some(&stale)).await.unwrap();
        assert_eq!(gone.error(), (412, "PreconditionFailed"), "{id}");
        assert_eq!(cloud.get(&id).await.good(), before, "{id}");
        cloud.put_if("*", &id, &read).await.good();
        cloud.put(&id, &read).await.good();
    }
}

#[tokio::test]
async fn what_does_not_exist_matches_no_etag() {
    let cloud = Cloud::new().await;
    for etag in ["W/\"1\"", "*"] {
        for id in [cloud.rule_id("a"), cloud.lab.nsg_id("other")] {
            let reply = cloud.put_if(etag, &id, &rule(100)).await;
            assert_eq!(reply.error(), (412, "PreconditionFailed"), "{etag} {id}");
            assert!(cloud.sim.get(&id).is_none());
        }
    }
}

#[tokio::test]
async fn a_cloud_that_looks_at_no_etag_takes_every_write() {
    let cloud = Cloud::new().await;
    let read = cloud.get(&cloud.nsg()).await.good();
    let stale = etag(&read);
    cloud.put_if(&stale, &cloud.nsg(), &read).await.good();
    cloud.sim.take_any_etag(true);
    cloud.put_if(&stale, &cloud.nsg(), &read).await.good();
    cloud.sim.take_any_etag(false);
    assert_eq!(cloud.put_if(&stale, &cloud.nsg(), &read).await.error(), (412, "PreconditionFailed"));
}
