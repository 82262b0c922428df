//! Faults between the provider and EC2.

use std::time::Duration;

use postern_provider::{CloudError, Consent};
use postern_tests::ec2::{Fault, RuleSpec, refused, throttled};

use crate::lab::{Lab, window};

fn locked() -> (Lab, String) {
    let lab = Lab::new();
    let group = lab.cloud.group("web", &[RuleSpec::tcp(22, 22, "0.0.0.0/0")]);
    let instance = lab.cloud.instance("web", &[&[&group]]);
    lab.lock(&instance);
    (lab, instance)
}

#[test]
fn i8_an_answer_that_is_lost_is_found_out_by_looking() {
    let (lab, instance) = locked();
    let target = lab.target(&instance);
    let one = window(&target, 1, "192.0.2.7");
    lab.ec2.fail("AuthorizeSecurityGroupIngress", 1, Fault::Lost);
    assert!(matches!(lab.open(&one), Err(CloudError::Unavailable { .. })));
    assert_eq!(lab.cloud.windows(&instance).len(), 1, "it took effect");
    assert_eq!(lab.observe(&target).unwrap().windows, [one.clone()].into());
    lab.open(&one).unwrap();
    lab.ec2.fail("RevokeSecurityGroupIngress", 1, Fault::Lost);
    assert!(matches!(lab.close(&one), Err(CloudError::Unavailable { .. })));
    lab.close(&one).unwrap();
    assert!(lab.observe(&target).unwrap().windows.is_empty());
}

#[test]
fn i6_a_look_that_does_not_show_what_may_be_open_is_not_believed_at_once() {
    let (lab, instance) = locked();
    let target = lab.target(&instance);
    assert!(lab.observe(&target).unwrap().windows.is_empty());
    // The call takes effect, its answer is lost, and for a second EC2 shows what was before.
    lab.ec2.stale_reads(Duration::from_secs(1));
    lab.ec2.fail("AuthorizeSecurityGroupIngress", 1, Fault::Lost);
    let one = window(&target, 1, "192.0.2.7");
    assert!(lab.open(&one).is_err());
    let seen = lab.observe(&target).unwrap();
    assert!(
        seen.windows.contains(&one) || seen.partial.contains(&one),
        "it is not believed to be shut: {seen:?}"
    );
    lab.open(&one).unwrap();
    assert_eq!(lab.observe(&target).unwrap().windows, [one].into());
}

#[test]
fn i2_what_ec2_said_that_it_opened_is_closed_also_while_reads_do_not_show_it() {
    let (lab, instance) = locked();
    let target = lab.target(&instance);
    let (one, other) = (window(&target, 1, "192.0.2.7"), window(&target, 2, "192.0.2.7"));
    for shared in [false, true] {
        if shared {
            lab.open(&one).unwrap();
        }
        assert_eq!(lab.observe(&target).unwrap().windows.len(), usize::from(shared));
        // EC2 answers the opening, and for five seconds it shows what was before.
        lab.ec2.stale_reads(Duration::from_secs(5));
        let opened = if shared { &other } else { &one };
        lab.open(opened).unwrap();
        assert!(lab.observe(&target).unwrap().windows.contains(opened), "EC2 said that it is open");
        lab.close(opened).unwrap();
        let marks = lab.cloud.own_group(&instance).map(|group| lab.cloud.rules(&group)).unwrap_or_default();
        let key = format!("postern:grant:{}", opened.grant);
        assert!(marks.iter().all(|rule| !rule.tags.contains_key(&key)), "{marks:?}");
        assert_eq!(lab.cloud.windows(&instance).len(), usize::from(shared));
        lab.ec2.stale_reads(Duration::ZERO);
    }
}

#[test]
fn i2_closing_does_not_wait_for_what_became_of_an_opening() {
    let (lab, instance) = locked();
    let target = lab.target(&instance);
    let (one, other) = (window(&target, 1, "192.0.2.7"), window(&target, 2, "192.0.2.8"));
    lab.open(&one).unwrap();
    // EC2 fails, and has done nothing: no read will ever show the window.
    lab.ec2.fail("AuthorizeSecurityGroupIngress", 1, refused(500, "InternalError"));
    assert!(lab.open(&other).is_err());
    lab.actions();
    lab.close(&one).unwrap();
    let reads = lab.actions().into_iter().filter(|action| action == "DescribeSecurityGroupRules").count();
    assert_eq!(reads, 2, "one before the close, and the one that proves it");
    assert_eq!(lab.observe(&target).unwrap().partial, [other.clone()].into());
    lab.close(&other).unwrap();
    let seen = lab.observe(&target).unwrap();
    assert!(seen.windows.is_empty() && seen.partial.is_empty(), "{seen:?}");
}

#[test]
fn i2_what_an_opening_without_an_answer_wrote_is_closed_though_no_read_shows_it() {
    let (lab, instance) = locked();
    let target = lab.target(&instance);
    let (one, sharing) = (window(&target, 1, "192.0.2.7"), window(&target, 2, "192.0.2.7"));
    for (lost, action, left) in [(&one, "AuthorizeSecurityGroupIngress", 0), (&sharing, "CreateTags", 1)] {
        if left == 1 {
            lab.ec2.stale_reads(Duration::ZERO);
            lab.open(&one).unwrap();
        }
        lab.observe(&target).unwrap();
        lab.ec2.stale_reads(Duration::from_secs(60));
        lab.ec2.fail(action, 1, Fault::Lost);
        assert!(lab.open(lost).is_err());
        lab.close(lost).unwrap();
        assert_eq!(lab.cloud.windows(&instance).len(), left);
        let key = format!("postern:grant:{}", lost.grant);
        let own = lab.cloud.own_group(&instance).unwrap();
        assert!(lab.cloud.rules(&own).iter().all(|rule| !rule.tags.contains_key(&key)));
    }
}

#[test]
fn a_read_is_tried_again_and_a_change_is_left_to_a_caller_that_looks_first() {
    let (lab, instance) = locked();
    let target = lab.target(&instance);
    lab.ec2.fail("DescribeSecurityGroups", 2, throttled());
    lab.ec2.fail("DescribeNetworkInterfaces", 1, refused(500, "InternalError"));
    lab.ec2.fail("DescribeSecurityGroupRules", 1, Fault::Dropped);
    lab.observe(&target).unwrap();
    lab.actions();
    let one = window(&target, 1, "192.0.2.7");
    for fault in [throttled(), refused(400, "AuthFailure"), Fault::Dropped] {
        lab.ec2.fail("AuthorizeSecurityGroupIngress", 1, fault);
        assert!(matches!(lab.open(&one), Err(CloudError::Unavailable { .. })));
    }
    lab.ec2.fail("AuthorizeSecurityGroupIngress", 1, refused(400, "ExpiredToken"));
    assert!(matches!(lab.open(&one), Err(CloudError::Unavailable { .. })));
    lab.open(&one).unwrap();
    let writes = lab.actions().into_iter().filter(|action| action == "AuthorizeSecurityGroupIngress").count();
    assert_eq!(writes, 5);
}

#[test]
fn a_permission_that_is_missing_is_refused_with_the_remedy() {
    let (lab, instance) = locked();
    lab.ec2.fail("AuthorizeSecurityGroupIngress", 1, refused(403, "UnauthorizedOperation"));
    let Err(CloudError::Refused { reason }) = lab.open(&window(&lab.target(&instance), 1, "192.0.2.7"))
    else {
        panic!("not refused")
    };
    assert!(reason.contains("packaging/aws/policy.json"), "{reason}");
}

#[test]
fn the_rule_that_is_one_too_many_is_refused_and_the_others_stay() {
    let (lab, instance) = locked();
    let target = lab.target(&instance);
    let one = |number: u128| window(&target, number, &format!("198.51.100.{number}"));
    let own = lab.cloud.own_group(&instance).unwrap();
    (1..=58).for_each(|port| lab.cloud.allow(&own, &RuleSpec::tcp(port, port, "192.0.2.0/24")));
    (59..=60).for_each(|number| lab.open(&one(number)).unwrap());
    let Err(CloudError::Refused { reason }) = lab.open(&one(61)) else { panic!("not refused") };
    assert!(reason.contains("quota of rules per security group"), "{reason}");
    assert_eq!(lab.observe(&target).unwrap().windows.len(), 2);
    lab.close(&one(60)).unwrap();
    lab.open(&one(61)).unwrap();
}

#[test]
fn a_lockdown_of_an_interface_that_is_full_is_refused_and_leaves_nothing_behind() {
    let lab = Lab::new();
    let groups: Vec<String> = (0..5)
        .map(|number| lab.cloud.group(&format!("web-{number}"), &[RuleSpec::tcp(22, 22, "10.0.0.0/8")]))
        .collect();
    let five: Vec<&str> = groups.iter().map(String::as_str).collect();
    let instance = lab.cloud.instance("full", &[&[&groups[0]], &five]);
    let Err(CloudError::Refused { reason }) = lab.try_lock(&instance, Consent::all()) else {
        panic!("not refused")
    };
    assert!(reason.contains("detach a group that is not needed"), "{reason}");
    assert!(lab.cloud.groups_of_postern().is_empty());
    assert!(groups.iter().all(|group| lab.cloud.rules(group).len() == 1));
    assert!(lab.cloud.interfaces(&instance).values().any(|groups| groups.len() == 1));
}

#[test]
fn a_sweep_that_cannot_read_a_place_says_which_and_reads_the_others() {
    let (lab, instance) = locked();
    lab.ec2.fail("DescribeSecurityGroups", 1, refused(403, "UnauthorizedOperation"));
    let sweep = lab.sweep();
    assert_eq!(sweep.unread.len(), 1);
    assert!(sweep.unread[0].place.starts_with("account "), "{:?}", sweep.unread);
    let again = lab.sweep();
    assert_eq!((again.unread.len(), again.sightings.len()), (0, 1));
    assert_eq!(again.sightings[0].target, lab.target(&instance));
}
