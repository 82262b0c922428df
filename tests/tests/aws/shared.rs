//! Groups that several instances hold: who holds them, and when their rules go back.

use std::collections::BTreeSet;

use postern_provider::{CloudError, ConcernKind, Consent, LockdownOrder, Provider as _};
use postern_tests::ec2::{RuleSpec, refused, throttled};

use crate::lab::{Lab, order, window};

/// A laboratory with two instances behind one group, which lets everyone in on port 22.
fn sharing() -> (Lab, String, [String; 2]) {
    let lab = Lab::new();
    let group = lab.cloud.group("web", &[ssh()]);
    let instances = ["one", "two"].map(|name| lab.cloud.instance(name, &[&[&group]]));
    (lab, group, instances)
}

fn ssh() -> RuleSpec {
    RuleSpec::tcp(22, 22, "0.0.0.0/0").described("ssh")
}

fn parked(lab: &Lab, group: &str) -> String {
    lab.cloud.group_named(&format!("postern-parked-{group}")).unwrap()
}

#[test]
fn i6_a_group_has_any_number_of_holders() {
    let (lab, group, [one, two]) = sharing();
    let before = lab.cloud.rules(&group);
    lab.lock(&one);
    // As many more as a group has tags for (EC2 User Guide, "Tag restrictions": 50).
    let first = parked(&lab, &group);
    let others: Vec<String> =
        (10..56).map(|number| format!("postern:holder:i-0123456789abcde{number}")).collect();
    others.iter().for_each(|key| lab.cloud.tag(&first, key, "tcp/22"));
    let target = lab.lock(&two);
    lab.open(&window(&target, 1, "192.0.2.7")).unwrap();
    lab.close(&window(&target, 1, "192.0.2.7")).unwrap();
    assert_eq!(lab.observe(&target).unwrap().drift, []);
    lab.release(&one).unwrap();
    assert!(lab.cloud.rules(&group).is_empty(), "others need it shut");
    others.iter().for_each(|key| lab.cloud.untag(&first, key));
    lab.release(&two).unwrap();
    assert_eq!((lab.cloud.rules(&group), lab.cloud.groups_of_postern()), (before, BTreeSet::new()));
}

#[test]
fn i6_a_stale_read_of_the_holders_neither_leaves_rules_parked_nor_opens_another_instance() {
    let (lab, group, [one, two]) = sharing();
    let before = lab.cloud.rules(&group);
    lab.lock(&one);
    lab.lock(&two);
    // The read by which this release finds the holders does not show yet that the other one holds it.
    lab.ec2.stale_once("postern-parked");
    lab.release(&one).unwrap();
    assert!(lab.ec2.was_stale());
    assert!(lab.cloud.rules(&group).is_empty(), "the other instance is under lockdown");
    lab.lock(&one);
    lab.release(&one).unwrap();
    // This one still shows the tag of the instance that was released before.
    lab.ec2.stale_once("postern-parked");
    lab.release(&two).unwrap();
    assert!(lab.ec2.was_stale());
    assert_eq!((lab.cloud.rules(&group), lab.cloud.groups_of_postern()), (before, BTreeSet::new()));
}

#[test]
fn i6_a_holder_whose_tag_was_removed_stays_shut_when_another_is_released() {
    let (mut lab, group, [one, two]) = sharing();
    lab.lock(&one);
    lab.lock(&two);
    lab.cloud.untag(&parked(&lab, &group), &format!("postern:holder:{two}"));
    lab.restart();
    lab.release(&one).unwrap();
    assert!(lab.cloud.rules(&group).is_empty(), "its own group says that it is under lockdown");
    lab.release(&two).unwrap();
    assert_eq!((lab.cloud.rules(&group).len(), lab.cloud.groups_of_postern()), (1, BTreeSet::new()));
}

#[test]
fn i6_rules_that_are_parked_for_no_instance_are_given_back_by_the_sweep() {
    let (mut lab, group, [one, _]) = sharing();
    let before = lab.cloud.rules(&group);
    lab.lock(&one);
    let (own, parked) = (lab.cloud.own_group(&one).unwrap(), parked(&lab, &group));
    lab.restart();
    lab.cloud.untag(&parked, &format!("postern:holder:{one}"));
    let swept = lab.sweep();
    assert_eq!(swept.given_back, [""; 0], "the instance is under lockdown");
    assert!(lab.cloud.rules(&group).is_empty());
    lab.cloud.interfaces(&one).keys().for_each(|interface| lab.cloud.set_groups(interface, &[&group]));
    lab.cloud.delete_group(&own);
    let swept = lab.sweep();
    assert!(matches!(&swept.given_back[..], [what] if what.contains(&group)), "{swept:?}");
    assert_eq!((lab.cloud.rules(&group), lab.cloud.groups_of_postern()), (before, BTreeSet::new()));
}

#[test]
fn i1_an_original_that_is_put_back_in_a_locked_group_is_shut_again() {
    let (lab, group, [one, two]) = sharing();
    let target = lab.lock(&one);
    lab.lock(&two);
    lab.cloud.allow(&group, &ssh());
    let drift = lab.observe(&target).unwrap().drift;
    assert!(
        matches!(&drift[..], [drift] if drift.repairable && drift.what.contains("it is not shut")),
        "{drift:?}"
    );
    lab.repair(&target).unwrap();
    assert!(lab.cloud.rules(&group).is_empty());
    assert_eq!(lab.observe(&target).unwrap().drift, []);
    // A rule that no lockdown recorded is the customer's (I6).
    lab.cloud.allow(&group, &RuleSpec::tcp(22, 22, "10.0.0.0/8"));
    let drift = lab.observe(&target).unwrap().drift;
    assert!(matches!(&drift[..], [drift] if !drift.repairable), "{drift:?}");
}

#[test]
fn a_lockdown_that_was_refused_stays_undone_whatever_its_clean_up_meets() {
    let (mut lab, group, [one, two]) = sharing();
    let before = lab.cloud.rules(&group);
    lab.ec2.fail(
        "ModifyNetworkInterfaceAttribute",
        1,
        refused(400, "SecurityGroupsPerInterfaceLimitExceeded"),
    );
    lab.ec2.fail("DeleteSecurityGroup", 1, throttled());
    assert!(matches!(lab.try_lock(&one, Consent::all()), Err(CloudError::Refused { .. })));
    assert!(lab.cloud.own_group(&one).is_some(), "the clean-up failed");
    lab.restart();
    let target = lab.target(&one);
    let sighting = lab.sweep().sightings.into_iter().find(|sighting| sighting.target == target).unwrap();
    let drift = sighting.held.unwrap().drift;
    assert!(matches!(&drift[..], [drift] if drift.repairable), "{drift:?}");
    lab.repair(&target).unwrap();
    assert_eq!((lab.cloud.rules(&group), lab.cloud.groups_of_postern()), (before, BTreeSet::new()));
    drop(two);
}

#[test]
fn a_lockdown_that_is_resumed_does_not_go_beyond_what_was_accepted() {
    let lab = Lab::new();
    let group = lab.cloud.group("web", &[ssh()]);
    let instance = lab.cloud.instance("one", &[&[&group]]);
    let target = lab.target(&instance);
    lab.ec2.fail("AuthorizeSecurityGroupIngress", 1, throttled());
    assert!(lab.try_lock(&instance, Consent([ConcernKind::Cut].into())).is_err());
    // Meanwhile another machine comes behind the group.
    let other = lab.cloud.instance("other", &[&[&group]]);
    let Err(CloudError::Refused { reason }) = lab.repair(&target) else { panic!("not refused") };
    assert!(reason.contains(&other) && reason.contains("shared"), "{reason}");
    assert_eq!(lab.cloud.rules(&group).len(), 1, "nothing was shut");
    lab.try_lock(&instance, Consent([ConcernKind::Cut, ConcernKind::Shared].into())).unwrap();
    assert!(lab.cloud.rules(&group).is_empty());
}

#[test]
fn a_machine_of_the_same_command_that_protects_other_ports_is_asked_about() {
    let (lab, _, [one, two]) = sharing();
    let only = |instance: &str, port: &str, together: &[(&str, &str)]| LockdownOrder {
        ports: [port.parse().unwrap()].into(),
        together: together
            .iter()
            .map(|(instance, port)| (lab.target(instance), [port.parse().unwrap()].into()))
            .collect(),
        ..order(&lab.target(instance), Consent::all())
    };
    let shared = |order: LockdownOrder| {
        let planned = lab.with(|aws| async move { aws.plan_lockdown(&order).await }).unwrap();
        let shared = planned.concerns.into_iter().filter(|concern| concern.kind == ConcernKind::Shared);
        shared.map(|concern| concern.what).collect::<Vec<_>>()
    };
    assert_eq!(shared(only(&one, "tcp/22", &[(&two, "tcp/22")])), [""; 0]);
    let asked = shared(only(&one, "tcp/22", &[(&two, "tcp/3389")]));
    assert!(
        matches!(&asked[..], [what] if what.contains(&two) && what.ends_with("but not for tcp/22")),
        "{asked:?}"
    );
}

#[test]
fn an_interface_that_a_service_manages_is_left_alone_and_refused_where_it_is_the_machines() {
    let lab = Lab::new();
    let group = lab.cloud.group("web", &[ssh()]);
    let tasks = lab.cloud.group("tasks", &[ssh()]);
    let instance = lab.cloud.instance("container host", &[&[&group]]);
    let task = lab.cloud.plug_in(&instance, 1, &[&tasks]);
    lab.ec2.manage(&task);
    let target = lab.lock(&instance);
    assert_eq!(lab.observe(&target).unwrap().drift, []);
    assert_eq!((lab.cloud.rules(&group).len(), lab.cloud.rules(&tasks).len()), (0, 1));
    lab.release(&instance).unwrap();

    let appliance = lab.cloud.instance("appliance", &[&[&tasks]]);
    lab.cloud.interfaces(&appliance).keys().for_each(|interface| lab.ec2.manage(interface));
    let order = order(&lab.target(&appliance), Consent::all());
    let planned = lab.with(|aws| async move { aws.plan_lockdown(&order).await });
    assert!(
        matches!(&planned, Err(CloudError::Refused { reason }) if reason.contains("managed by a service")),
        "{planned:?}"
    );
}

#[test]
fn the_dry_run_refuses_what_the_run_would_find_no_room_for() {
    let lab = Lab::new();
    let groups: Vec<String> =
        (0..5).map(|number| lab.cloud.group(&format!("web-{number}"), &[ssh()])).collect();
    let five: Vec<&str> = groups.iter().map(String::as_str).collect();
    let full = lab.cloud.instance("full", &[&five]);
    let refused = |instance: &str| {
        let order = order(&lab.target(instance), Consent::all());
        lab.actions();
        let planned = lab.with(|aws| async move { aws.plan_lockdown(&order).await });
        assert!(lab.ec2.calls().iter().all(|call| !call.is_change()));
        let Err(CloudError::Refused { reason }) = planned else { panic!("not refused: {planned:?}") };
        reason
    };
    assert!(refused(&full).contains("groups_per_interface"));

    // Two machines of one command, each of which would find room alone.
    let crowded = lab.cloud.group("crowded", &[RuleSpec::tcp(0, 65535, "10.0.0.0/8")]);
    (1..=58)
        .for_each(|port| lab.cloud.allow(&crowded, &RuleSpec::tcp(port + 100, port + 100, "192.0.2.0/24")));
    let pair = ["left", "right"].map(|name| lab.cloud.instance(name, &[&[&crowded]]));
    let [ssh, rdp] = ["tcp/22", "tcp/3389"].map(|port| [port.parse().unwrap()].into());
    let alone = LockdownOrder { ports: ssh, ..order(&lab.target(&pair[0]), Consent::all()) };
    let both = LockdownOrder { together: [(lab.target(&pair[1]), rdp)].into(), ..alone.clone() };
    assert!(lab.with(|aws| async move { aws.plan_lockdown(&alone).await }).is_ok());
    let planned = lab.with(|aws| async move { aws.plan_lockdown(&both).await });
    assert!(
        matches!(&planned, Err(CloudError::Refused { reason }) if reason.contains("61 rules")),
        "{planned:?}"
    );

    // A release whose rules find no room any more.
    let target = lab.lock(&lab.cloud.instance("one", &[&[&groups[0]]]));
    (1..=60)
        .for_each(|port| lab.cloud.allow(&groups[0], &RuleSpec::tcp(port + 100, port + 100, "10.0.0.0/8")));
    let planned = lab.with(|aws| async move { aws.plan_release(&target).await });
    assert!(
        matches!(&planned, Err(CloudError::Refused { reason }) if reason.contains("61 rules")),
        "{planned:?}"
    );
}
