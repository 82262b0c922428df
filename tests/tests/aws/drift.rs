//! What others do to what is ours, and to what was locked down.

use postern_cloud::CloudError;
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
    let seen = |drift: Vec<postern_cloud::Drift>| {
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
fn a_rule_that_somebody_makes_in_an_own_group_goes() {
    let (lab, instance, _) = usual();
    let own = lab.cloud.own_group(&instance).unwrap();
    lab.cloud.allow(&own, &RuleSpec::tcp(0, 65535, "0.0.0.0/0"));
    assert!(matches!(&words(&lab, &instance)[..], [(true, what)] if what.contains("all tcp ports")));
    lab.repair(&lab.target(&instance)).unwrap();
    assert_eq!(words(&lab, &instance), []);
    assert_eq!(lab.cloud.windows(&instance), [(22, "192.0.2.7/32".to_owned())].into());
}

#[test]
fn i2_a_window_without_its_tags_is_nobodys_and_goes() {
    let (lab, instance, _) = usual();
    lab.cloud.untag_rules(&lab.cloud.own_group(&instance).unwrap());
    assert_eq!(words(&lab, &instance).len(), 1);
    lab.repair(&lab.target(&instance)).unwrap();
    assert!(lab.cloud.windows(&instance).is_empty());
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
fn i6_a_rule_of_the_owner_that_exposes_the_port_again_is_told_and_left_alone() {
    let (lab, instance, group) = usual();
    let again = RuleSpec::tcp(22, 22, "0.0.0.0/0").described("terraform");
    lab.cloud.allow(&group, &again);
    let told = words(&lab, &instance);
    assert!(
        matches!(&told[..], [(false, what)] if what.contains("it is not shut: tcp/22 exposed")),
        "{told:?}"
    );
    lab.repair(&lab.target(&instance)).unwrap();
    assert_eq!(lab.cloud.rules(&group), [again].into());
    // Locking down again shuts it, and the release puts back one of them: what was parked first.
    lab.close(&window(&lab.target(&instance), 1, "192.0.2.7")).unwrap();
    lab.lock(&instance);
    assert!(lab.cloud.rules(&group).is_empty());
    lab.release(&instance).unwrap();
    assert_eq!(lab.cloud.rules(&group), [RuleSpec::tcp(22, 22, "0.0.0.0/0").described("ssh")].into());
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
