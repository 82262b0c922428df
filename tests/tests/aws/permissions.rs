//! The policy of least privilege that we ship.

use std::collections::BTreeSet;

use postern_cloud::{Consent, Provider as _};
use postern_tests::ec2::RuleSpec;
use serde_json::Value;

use crate::lab::{Lab, window};

#[test]
fn the_shipped_policy_allows_every_call_that_is_made_and_no_other() {
    let lab = Lab::new();
    let list = lab.cloud.prefix_list(&["203.0.113.0/24"]);
    let rules = [RuleSpec::tcp(20, 25, "0.0.0.0/0"), RuleSpec::tcp(22, 22, &list)];
    let group = lab.cloud.group("web", &rules);
    let [one, other] = ["one", "other"].map(|name| lab.cloud.instance(name, &[&[&group]]));
    lab.ec2.forget_calls();
    let target = lab.lock(&one);
    lab.lock(&other);
    let windows = [window(&target, 1, "192.0.2.7"), window(&target, 2, "192.0.2.7")];
    windows.iter().for_each(|window| lab.open(window).unwrap());
    windows.iter().for_each(|window| lab.close(window).unwrap());
    lab.with(|aws| async move { aws.assess(&["tcp/22".parse().unwrap()].into()).await });
    lab.sweep();
    assert!(lab.try_lock("i-00000000000000000", Consent::all()).is_err());
    lab.release(&one).unwrap();
    lab.release(&other).unwrap();

    let called: BTreeSet<String> = lab
        .actions()
        .into_iter()
        // STS's own; every principal may ask who it is, and the role is assumed by the broker's own policy.
        .filter(|action| action != "GetCallerIdentity" && action != "AssumeRole")
        .map(|action| format!("ec2:{action}"))
        .collect();
    let policy: Value = serde_json::from_str(include_str!("../../../packaging/aws/policy.json")).unwrap();
    let actions = |statement: &Value| -> Vec<String> {
        let actions = &statement["Action"];
        let several = actions.as_array().cloned().unwrap_or_else(|| vec![actions.clone()]);
        several.iter().map(|action| action.as_str().unwrap().to_owned()).collect()
    };
    let allowed: BTreeSet<String> =
        policy["Statement"].as_array().unwrap().iter().flat_map(actions).collect();
    assert_eq!(called, allowed);
    for statement in policy["Statement"].as_array().unwrap() {
        let changes = actions(statement).iter().any(|action| !action.starts_with("ec2:Describe"));
        assert!(!changes || statement["Resource"] != "*", "{statement}");
    }
}
