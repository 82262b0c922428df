//! Drift: other principals change Postern's groups and rules, and rules under lockdown.

use postern_core::plan::LayerWindow;
use postern_provider::{CloudError, Consent};
use postern_tests::ec2::RuleSpec;

use crate::lab::{Lab, window};

/// A locked instance with one window, as a lab's usual beginning. The instance and its customer's group.
fn usual() -> (Lab, String, String) {
    let lab = Lab::new();
    let group = lab.cloud.group("web", &[RuleSpec::tcp(22, 22, "0.0.0.0/0").described("ssh")]);
    let instance = lab.cloud.instance("web", &[&[&group]]);
    let target = lab.lock(&instance);
    lab.open(&window(&target, 1, "192.0.2.7")).unwrap();
    (lab, instance, group)
}

fn words(lab: &Lab, instance: &str) -> Vec<(bool, String)> {
    let seen = |drift: Vec<postern_provider::Drift>| {
        drift.into_iter().map(|drift| (drift.repairable, drift.what)).collect()
    };
    let target = lab.target(instance);
    let sweep = lab.sweep();
    let sighting = sweep.sightings.into_iter().find(|sighting| sighting.target == target).unwrap();
    let swept: Vec<(bool, String)> = seen(sighting.held.unwrap().drift);
    assert_eq!(swept, seen(lab.observe(&target).unwrap().drift), "a sweep and a look agree");
    swept
}

#[test]
fn a_rule_that_another_principal_makes_in_an_own_group_goes() {
    let (lab, instance, _) = usual();
    let own = lab.cloud.own_group(&instance).unwrap();
    lab.cloud.allow(&own, &RuleSpec::tcp(0, 65535, "0.0.0.0/0"));
    assert!(matches!(&words(&lab, &instance)[..], [(true, what)] if what.contains("all tcp ports")));
    lab.repair(&lab.target(&instance)).unwrap();
    assert_eq!(words(&lab, &instance), []);
    assert_eq!(lab.cloud.windows(&instance), [(22, "192.0.2.7/32".to_owned())].into());
}

#[test]
fn i2_a_window_without_its_tags_belongs_to_no_grant_and_goes() {
    let (lab, instance, _) = usual();
    lab.cloud.untag_rules(&lab.cloud.own_group(&instance).unwrap());
    assert_eq!(words(&lab, &instance).len(), 1);
    lab.repair(&lab.target(&instance)).unwrap();
    assert!(lab.cloud.windows(&instance).is_empty());
}

#[test]
fn an_own_group_that_another_principal_lets_send_is_shut_again() {
    let (lab, instance, _) = usual();
    let own = lab.cloud.own_group(&instance).unwrap();
    lab.cloud.allow_egress(&own);
    assert!(matches!(&words(&lab, &instance)[..], [(true, what)] if what.contains("send: all traffic")));
    lab.repair(&lab.target(&instance)).unwrap();
    assert_eq!((words(&lab, &instance), lab.cloud.egress(&own)), (vec![], 0));
}

#[test]
fn i2_an_end_that_another_principal_puts_off_is_a_window_that_no_grant_wants() {
    let (lab, instance, _) = usual();
    let own = lab.cloud.own_group(&instance).unwrap();
    let target = lab.target(&instance);
    let mine = window(&target, 1, "192.0.2.7");
    let rule = lab.cloud.rule_ids(&own).pop().unwrap().0;
    lab.cloud.tag(&rule, &format!("postern:grant:{}", mine.grant), "2200-01-01T00:00:00Z");
    let later = LayerWindow { not_after: "2200-01-01T00:00:00Z".parse().unwrap(), ..mine.clone() };
    assert_eq!(lab.observe(&target).unwrap().windows, [later.clone()].into());
    lab.close(&later).unwrap();
    lab.open(&mine).unwrap();
    assert_eq!(lab.observe(&target).unwrap().windows, [mine].into());
    assert_eq!(lab.cloud.rules(&own).first().unwrap().tags["postern:not-after"], crate::lab::END);
}

#[test]
fn an_own_group_that_was_deleted_is_made_again() {
    let (lab, instance, group) = usual();
    let interface = lab.cloud.interfaces(&instance).into_keys().next().unwrap();
    lab.cloud.set_groups(&interface, &[&group]);
    lab.cloud.delete_group(&lab.cloud.own_group(&instance).unwrap());
    assert!(matches!(&words(&lab, &instance)[..], [(true, what)] if what.contains("its own group is gone")));
    lab.repair(&lab.target(&instance)).unwrap();
    assert_eq!(words(&lab, &instance), []);
    let own = lab.cloud.own_group(&instance).unwrap();
    assert!(lab.cloud.interfaces(&instance)[&interface].contains(&own));
    assert_eq!(lab.cloud.egress(&own), 0);
    lab.open(&window(&lab.target(&instance), 2, "192.0.2.7")).unwrap();
}

#[test]
fn i6_an_own_group_that_loses_tags_keeps_its_windows_and_gets_them_back() {
    let (lab, instance, group) = usual();
    let target = lab.target(&instance);
    let own = lab.cloud.own_group(&instance).unwrap();
    let mine = window(&target, 1, "192.0.2.7");
    let tags = lab.cloud.tags(&own);
    assert_eq!(tags.len(), 7, "{tags:?}");
    for lost in tags.keys().map(|key| vec![key]).chain([tags.keys().collect()]) {
        lost.iter().for_each(|key| lab.cloud.untag(&own, key));
        let drift = words(&lab, &instance);
        assert!(matches!(&drift[..], [(true, _)]), "{lost:?}: {drift:?}");
        assert_eq!(lab.observe(&target).unwrap().windows, [mine.clone()].into(), "{lost:?}");
        lab.repair(&target).unwrap();
        assert_eq!((words(&lab, &instance), lab.cloud.tags(&own)), (vec![], tags.clone()), "{lost:?}");
    }
    // Before anything is put right, a window closes, and is not taken for closed.
    tags.keys().for_each(|key| lab.cloud.untag(&own, key));
    lab.close(&mine).unwrap();
    assert!(lab.cloud.windows(&instance).is_empty());
    lab.release(&instance).unwrap();
    assert_eq!(lab.cloud.rules(&group).len(), 1);
    assert!(lab.cloud.group_named(&format!("postern-{instance}")).is_none());
}

#[test]
fn i6_a_release_finds_what_is_parked_by_its_name_and_keeps_what_was_deleted_out_of_it() {
    let (lab, instance, group) = usual();
    lab.close(&window(&lab.target(&instance), 1, "192.0.2.7")).unwrap();
    let parked = lab.cloud.group_named(&format!("postern-parked-{group}")).unwrap();
    lab.cloud.tags(&parked).keys().for_each(|key| lab.cloud.untag(&parked, key));
    lab.release(&instance).unwrap();
    assert_eq!(lab.cloud.rules(&group), [RuleSpec::tcp(22, 22, "0.0.0.0/0").described("ssh")].into());
    assert_eq!(lab.cloud.group_named(&format!("postern-parked-{group}")), None);

    // Where another principal has deleted what is parked, the pieces in the owner's group are all that is left of its rules.
    lab.cloud.allow(&group, &RuleSpec::tcp(20, 25, "10.0.0.0/8"));
    lab.lock(&instance);
    lab.cloud.delete_group(&lab.cloud.group_named(&format!("postern-parked-{group}")).unwrap());
    let ports = |rules: postern_tests::ec2::Snapshot| -> Vec<(i32, i32)> {
        rules.into_iter().map(|rule| (rule.from, rule.to)).collect()
    };
    assert_eq!(ports(lab.cloud.rules(&group)), [(20, 21), (23, 25)]);
    lab.try_lock(&instance, Consent::all()).unwrap();
    lab.release(&instance).unwrap();
    assert_eq!(ports(lab.cloud.rules(&group)), [(20, 21), (23, 25)]);
}

#[test]
fn a_piece_of_a_split_rule_that_another_principal_widens_is_narrow_again() {
    let lab = Lab::new();
    let group = lab.cloud.group("web", &[RuleSpec::tcp(20, 22, "10.0.0.0/8").described("old")]);
    let instance = lab.cloud.instance("web", &[&[&group]]);
    let before = lab.cloud.rules(&group);
    lab.lock(&instance);
    let locked = lab.cloud.rules(&group);
    assert_eq!(locked.len(), 1, "20 and 21 are left");
    lab.cloud.widen_rules(&group);
    let customers = RuleSpec::tcp(22, 22, "192.0.2.0/24");
    lab.cloud.allow(&group, &customers);
    let drift: Vec<bool> = words(&lab, &instance).into_iter().map(|(repairable, _)| repairable).collect();
    assert_eq!(
        drift.iter().filter(|repairable| **repairable).count(),
        1,
        "the other is not Postern's: {drift:?}"
    );
    lab.repair(&lab.target(&instance)).unwrap();
    assert_eq!(lab.cloud.rules(&group), locked.into_iter().chain([customers.clone()]).collect());
    lab.release(&instance).unwrap();
    assert_eq!(lab.cloud.rules(&group), before.into_iter().chain([customers]).collect());
}

#[test]
fn an_interface_that_is_plugged_in_later_gets_the_windows_and_is_reported_where_it_is_not_shut() {
    let (lab, instance, _) = usual();
    let open = lab.cloud.group("open", &[RuleSpec::tcp(22, 22, "0.0.0.0/0")]);
    let interface = lab.cloud.plug_in(&instance, 1, &[&open]);
    let drift = words(&lab, &instance);
    assert!(drift.iter().any(|(repairable, what)| *repairable && what.contains(&interface)), "{drift:?}");
    assert!(
        drift.iter().any(|(repairable, what)| !repairable && what.contains("it is not shut")),
        "{drift:?}"
    );
    lab.repair(&lab.target(&instance)).unwrap();
    assert!(lab.cloud.interfaces(&instance)[&interface].contains(&lab.cloud.own_group(&instance).unwrap()));
    assert_eq!(lab.cloud.rules(&open).len(), 1, "no administrator asked for it to be shut");
}

#[test]
fn an_own_group_that_was_taken_off_is_put_back_beside_what_else_is_there() {
    let (lab, instance, group) = usual();
    let interface = lab.cloud.interfaces(&instance).into_keys().next().unwrap();
    let more = lab.cloud.group("more", &[]);
    lab.cloud.set_groups(&interface, &[&group, &more]);
    assert!(matches!(&words(&lab, &instance)[..], [(true, what)] if what.contains(&interface)));
    lab.repair(&lab.target(&instance)).unwrap();
    let own = lab.cloud.own_group(&instance).unwrap();
    assert_eq!(lab.cloud.interfaces(&instance)[&interface], [group, more, own].into());
}

#[test]
fn i6_an_own_group_that_finds_no_room_any_more_is_kept_with_its_windows() {
    let (lab, instance, group) = usual();
    let interface = lab.cloud.interfaces(&instance).into_keys().next().unwrap();
    let more: Vec<String> = (0..4).map(|number| lab.cloud.group(&format!("more-{number}"), &[])).collect();
    let five: Vec<&str> = more.iter().chain([&group]).map(String::as_str).collect();
    lab.cloud.set_groups(&interface, &five);
    let Err(CloudError::Refused { reason }) = lab.repair(&lab.target(&instance)) else {
        panic!("not refused")
    };
    assert!(reason.contains("detach a group that is not needed"), "{reason}");
    assert_eq!(lab.cloud.windows(&instance).len(), 1, "what is open can still be closed");
    lab.cloud.set_groups(&interface, &five[1..]);
    lab.repair(&lab.target(&instance)).unwrap();
    assert_eq!(words(&lab, &instance), []);
}

#[test]
fn i6_a_rule_of_the_owner_that_exposes_the_port_again_is_reported_and_left_alone() {
    let (lab, instance, group) = usual();
    // Terraform puts back a rule that the lockdown parked, and another administrator makes a new one.
    lab.cloud.allow(&group, &RuleSpec::tcp(22, 22, "0.0.0.0/0").described("terraform"));
    let own = RuleSpec::tcp(22, 22, "10.0.0.0/8").described("hers");
    lab.cloud.allow(&group, &own);
    let mut drift = words(&lab, &instance);
    drift.sort();
    assert!(
        matches!(&drift[..], [(false, hers), (true, parked)] if hers.contains("10.0.0.0/8") && parked.contains("it is not shut: tcp/22 exposed")),
        "{drift:?}"
    );
    lab.repair(&lab.target(&instance)).unwrap();
    assert_eq!(lab.cloud.rules(&group), [own.clone()].into());
    // Locking down again shuts hers, too, and the release puts back both: of the rules for everyone, what was parked first.
    lab.close(&window(&lab.target(&instance), 1, "192.0.2.7")).unwrap();
    lab.lock(&instance);
    assert!(lab.cloud.rules(&group).is_empty());
    lab.release(&instance).unwrap();
    assert_eq!(lab.cloud.rules(&group), [RuleSpec::tcp(22, 22, "0.0.0.0/0").described("ssh"), own].into());
}

#[test]
fn what_is_left_of_an_instance_that_is_gone_goes_but_for_what_waits_for_its_release() {
    let (lab, instance, group) = usual();
    let target = lab.target(&instance);
    lab.cloud.terminate(&instance);
    assert!(matches!(lab.observe(&target), Err(CloudError::NotFound { .. })));
    let sighting = lab.sweep().sightings.pop().unwrap();
    assert_eq!(sighting.held, None);
    lab.repair(&target).unwrap();
    assert_eq!(lab.cloud.own_group(&instance), None);
    let sighting = lab.sweep().sightings.pop().unwrap();
    let drift = sighting.held.unwrap().drift;
    assert!(
        matches!(&drift[..], [drift] if !drift.repairable && drift.what.contains("still parked")),
        "{drift:?}"
    );
    assert!(
        lab.cloud.rules(&group).is_empty(),
        "the next instance of the group must not start with an open port"
    );
    lab.release(&instance).unwrap();
    assert_eq!(lab.cloud.rules(&group).len(), 1);
    assert!(lab.cloud.groups_of_postern().is_empty());
}
