//! The shipped policy of least privilege.

use std::collections::BTreeSet;

use postern_aws::TrialOutcome;
use postern_provider::{CloudError, Consent, Provider as _};
use postern_tests::ec2::{ACCOUNT, REGION, RuleSpec};
use serde_json::Value;

use crate::lab::{Lab, window};

const POLICY: &str = include_str!("../../../packaging/aws/policy.json");

/// Starts two instances behind one group, all of them tagged as the policy asks for, and the policy enforced.
fn enforced() -> (Lab, String, [String; 2]) {
    let lab = Lab::new();
    let rules = [RuleSpec::tcp(20, 25, "0.0.0.0/0").described("ssh and more").tagged("team", "infra")];
    let group = lab.cloud.group("web", &rules);
    let instances = ["one", "other"].map(|name| lab.cloud.instance(name, &[&[&group]]));
    lab.cloud.tag(&group, "postern:lockdown", "allowed");
    let interfaces = instances.iter().flat_map(|instance| lab.cloud.interfaces(instance).into_keys());
    interfaces.for_each(|interface| lab.cloud.tag(&interface, "postern:protected", "yes"));
    lab.ec2.enforce(POLICY);
    (lab, group, instances)
}

#[test]
fn the_shipped_policy_is_enough_for_everything_where_the_tags_are_as_it_asks() {
    let (mut lab, group, [one, other]) = enforced();
    let before = lab.cloud.rules(&group);
    let target = lab.lock(&one);
    lab.lock(&other);
    let windows =
        [window(&target, 1, "192.0.2.7"), window(&target, 2, "192.0.2.7"), window(&target, 3, "::/0")];
    windows.iter().for_each(|window| lab.open(window).unwrap());
    // Drift of every kind, and what a sweep of another broker makes of it.
    let own = lab.cloud.own_group(&one).unwrap();
    lab.cloud.allow(&own, &RuleSpec::tcp(0, 65535, "0.0.0.0/0"));
    lab.cloud.allow_egress(&own);
    lab.cloud.untag(&own, "postern:role");
    let interface = lab.cloud.interfaces(&one).into_keys().next().unwrap();
    lab.cloud.set_groups(&interface, &[&group]);
    lab.restart();
    assert_eq!(lab.sweep().unread, []);
    lab.repair(&target).unwrap();
    let found = lab.observe(&target).unwrap();
    assert_eq!((found.windows.len(), found.drift), (3, vec![]));
    windows.iter().for_each(|window| lab.close(window).unwrap());
    lab.release(&one).unwrap();
    lab.release(&other).unwrap();
    assert_eq!((lab.cloud.rules(&group), lab.cloud.groups_of_postern()), (before, BTreeSet::new()));
}

/// Tries every permission, and returns the actions by their outcome.
fn tried(lab: &Lab) -> [Vec<String>; 3] {
    let mut by_outcome = [const { Vec::new() }; 3];
    let place = format!("account {ACCOUNT} in {REGION}");
    let trials = lab.with(|aws| async move { aws.try_permissions().await });
    for trial in trials.into_iter().filter(|trial| trial.place == place) {
        let (of, more) = match trial.outcome {
            TrialOutcome::Allowed => (0, String::new()),
            TrialOutcome::Denied(why) => {
                assert!(why.contains("UnauthorizedOperation"), "{why}");
                (1, String::new())
            }
            TrialOutcome::Unknown(why) | TrialOutcome::Unreachable(why) => (2, why),
        };
        by_outcome[of].push(format!("{}{more}", trial.action));
    }
    by_outcome
}

#[test]
fn i6_a_trial_of_the_permissions_names_what_is_denied_and_changes_nothing() {
    let (lab, group, [one, _]) = enforced();
    let [allowed, denied, unknown] = tried(&lab);
    assert_eq!((allowed.len(), denied.len(), unknown.len()), (6, 0, 5), "{allowed:?} {denied:?} {unknown:?}");
    assert!(unknown.iter().all(|action| action.contains("no target is under lockdown")), "{unknown:?}");
    lab.lock(&one);
    let own = lab.cloud.own_group(&one).unwrap();
    let state = || {
        (
            lab.cloud.rules(&group),
            lab.cloud.rules(&own),
            lab.cloud.groups_of_postern(),
            lab.cloud.interfaces(&one),
        )
    };
    let before = state();
    let [allowed, denied, unknown] = tried(&lab);
    assert_eq!(
        (allowed.len(), denied.len(), unknown.len()),
        (10, 0, 1),
        "{allowed:?} {denied:?} {unknown:?}"
    );
    // moto judges the group's interfaces before the dry run, which EC2 does not.
    assert!(unknown[0].starts_with("DeleteSecurityGroup"), "{unknown:?}");
    assert_eq!(state(), before);

    lab.ec2.enforce(
        &POLICY
            .replace("\"ec2:CreateSecurityGroup\"", "\"ec2:CreateVpc\"")
            .replace("ec2:DescribeInstances", "ec2:DescribeVpcs"),
    );
    assert_eq!(tried(&lab)[1], ["DescribeInstances"], "without a read, no change is tried");
    lab.ec2.enforce(&POLICY.replace("\"ec2:CreateSecurityGroup\"", "\"ec2:CreateVpc\""));
    assert_eq!(tried(&lab)[1], ["CreateSecurityGroup"]);
}

#[test]
fn i6_the_shipped_policy_lets_no_caller_touch_what_is_not_tagged_for_it() {
    let (lab, group, [one, other]) = enforced();
    let before = lab.cloud.rules(&group);
    // An interface whose owner has not marked it.
    let interface = lab.cloud.interfaces(&one).into_keys().next().unwrap();
    lab.cloud.untag(&interface, "postern:protected");
    let Err(CloudError::Refused { reason }) = lab.try_lock(&one, Consent::all()) else {
        panic!("not refused")
    };
    assert!(reason.contains("packaging/aws/policy.json") && reason.contains("network-interface"), "{reason}");
    assert_eq!((lab.cloud.rules(&group), lab.cloud.groups_of_postern()), (before.clone(), BTreeSet::new()));
    // A group whose owner does not let its rules be split.
    lab.cloud.untag(&group, "postern:lockdown");
    let Err(CloudError::Refused { reason }) = lab.try_lock(&other, Consent::all()) else {
        panic!("not refused")
    };
    assert!(reason.contains("security-group"), "{reason}");
    assert_eq!(lab.cloud.rules(&group), before);
    // A rule that has lost the tag that makes it Postern's is reported as open, and not taken for closed.
    lab.cloud.tag(&group, "postern:lockdown", "allowed");
    let target = lab.target(&other);
    lab.try_lock(&other, Consent::all()).unwrap();
    let open = window(&target, 1, "192.0.2.7");
    lab.open(&open).unwrap();
    lab.cloud.untag(&lab.cloud.own_group(&other).unwrap(), "postern:managed-by");
    assert!(matches!(lab.close(&open), Err(CloudError::Refused { .. })));
    assert_eq!(lab.observe(&target).unwrap().windows, [open].into());
}

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
    let policy: Value = serde_json::from_str(POLICY).unwrap();
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
