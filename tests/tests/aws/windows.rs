//! Windows: opened and closed by the provider alone.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use postern_core::plan::LayerWindow;
use postern_provider::conformance::{self, Subject};
use postern_provider::{CloudError, Provider as _};
use postern_tests::STEP_TIMEOUT;
use postern_tests::clock::wait_until;
use postern_tests::ec2::{OTHER_ACCOUNT, REGION, RuleSpec};

use crate::lab::{END, Lab, window};

fn ssh_for_everyone() -> RuleSpec {
    RuleSpec::tcp(22, 22, "0.0.0.0/0").described("ssh")
}

#[test]
fn aws_conforms() {
    let lab = Lab::new();
    let targets = ["one", "two"].map(|name| {
        let group = lab.cloud.group(name, &[ssh_for_everyone()]);
        lab.lock(&lab.cloud.instance(name, &[&[&group]]))
    });
    let missing = lab.target("i-00000000000000000");
    lab.with(|aws| async move {
        conformance::run(&Subject { provider: aws.as_ref(), targets, missing }).await;
    });
}

#[test]
fn a_window_costs_one_call_to_open_and_one_to_close_besides_the_read_that_shows_it_gone() {
    let lab = Lab::new();
    let group = lab.cloud.group("web", &[]);
    let target = lab.lock(&lab.cloud.instance("web", &[&[&group]]));
    lab.observe(&target).unwrap();
    lab.actions();
    let one = window(&target, 1, "192.0.2.7");
    lab.open(&one).unwrap();
    assert_eq!(lab.actions(), ["AuthorizeSecurityGroupIngress"]);
    lab.open(&one).unwrap();
    assert_eq!(lab.actions(), [""; 0], "it is open already");
    // Another grant from behind the same NAT shares the rule, and each closes its own part of it.
    let other = window(&target, 2, "192.0.2.7");
    lab.open(&other).unwrap();
    assert_eq!(lab.actions(), ["CreateTags"]);
    lab.close(&other).unwrap();
    assert_eq!(lab.actions()[0], "DeleteTags");
    lab.close(&one).unwrap();
    assert_eq!(lab.actions(), ["RevokeSecurityGroupIngress", "DescribeSecurityGroupRules"]);
    lab.close(&one).unwrap();
    assert_eq!(lab.actions(), [""; 0], "it is closed already");
}

#[test]
fn all_windows_of_a_grant_cost_one_call_to_open_and_one_to_close_besides_the_read_that_shows_them_gone() {
    let lab = Lab::new();
    let group = lab.cloud.group("web", &[]);
    let instance = lab.cloud.instance("web", &[&[&group]]);
    let target = lab.lock(&instance);
    lab.observe(&target).unwrap();
    lab.actions();
    let on =
        |port: &str, source: &str| LayerWindow { port: port.parse().unwrap(), ..window(&target, 1, source) };
    let windows: BTreeSet<LayerWindow> =
        [on("tcp/22", "192.0.2.7"), on("tcp/22", "2001:db8::/64"), on("tcp/3389", "192.0.2.7")].into();
    lab.open_all(&target, &windows).unwrap();
    assert_eq!(lab.actions(), ["AuthorizeSecurityGroupIngress"]);
    assert_eq!(lab.cloud.windows(&instance).len(), 3);
    assert_eq!(lab.observe(&target).unwrap().windows, windows);
    lab.actions();
    lab.close_all(&target, &windows).unwrap();
    assert_eq!(lab.actions(), ["RevokeSecurityGroupIngress", "DescribeSecurityGroupRules"]);
    assert!(lab.observe(&target).unwrap().windows.is_empty());

    // One of the rules is gone already when the call comes: the others go all the same.
    lab.open_all(&target, &windows).unwrap();
    let own = lab.cloud.own_group(&instance).unwrap();
    lab.cloud.revoke(&own, &RuleSpec::tcp(3389, 3389, "192.0.2.7/32"));
    lab.close_all(&target, &windows).unwrap();
    assert!(lab.cloud.windows(&instance).is_empty());
}

#[test]
fn more_calls_than_ec2_takes_at_once_wait_and_none_is_one_too_many() {
    let lab = Lab::new();
    let targets = ["one", "two", "three"].map(|name| {
        let group = lab.cloud.group(name, &[]);
        lab.lock(&lab.cloud.instance(name, &[&[&group]]))
    });
    lab.ec2.meter();
    // More openings, one after the other, than the bucket of their action holds.
    for number in 1..=60 {
        lab.open(&window(&targets[number % 2], 1, &format!("198.51.100.{number}"))).unwrap();
    }
    let many = (1..=50).map(|number| window(&targets[2], 2, &format!("203.0.113.{number}"))).collect();
    lab.open_all(&targets[2], &many).unwrap();
    // And a sweep that reads many pages.
    lab.ec2.short_pages(1);
    lab.actions();
    let sweep = lab.sweep();
    assert_eq!(sweep.unread, []);
    let pages = lab.actions().iter().filter(|action| *action == "DescribeSecurityGroupRules").count();
    assert!(pages > 105, "{pages}");
    assert_eq!(lab.ec2.throttled(), 0);
}

#[test]
fn i2_a_window_names_its_grant_and_its_end_in_its_tags_and_in_its_description() {
    let lab = Lab::new();
    let group = lab.cloud.group("web", &[]);
    let instance = lab.cloud.instance("web", &[&[&group]]);
    let target = lab.lock(&instance);
    let (one, other) = (window(&target, 1, "2001:db8::/64"), window(&target, 2, "2001:db8::/64"));
    let later = LayerWindow { not_after: "2100-01-01T01:00:00Z".parse().unwrap(), ..other };
    let own = lab.cloud.own_group(&instance).unwrap();
    let tags = || lab.cloud.rules(&own).into_iter().next().unwrap().tags;

    lab.open(&one).unwrap();
    let rule = lab.cloud.rules(&own).into_iter().next().unwrap();
    assert_eq!((rule.from, rule.to, rule.source.as_str()), (22, 22, "2001:db8::/64"));
    assert_eq!(rule.description, format!("Postern: grant {} until {END}", one.grant));
    assert_eq!(rule.tags["postern:managed-by"], "postern");
    assert_eq!(rule.tags[&format!("postern:grant:{}", one.grant)], END);
    assert_eq!(
        (&rule.tags["postern:grant"], &rule.tags["postern:not-after"]),
        (&one.grant.to_string(), &END.into())
    );

    // The rule that two share ends with the later of them, in place.
    lab.open(&later).unwrap();
    assert_eq!((tags()["postern:grant"].clone(), lab.cloud.rules(&own).len()), (later.grant.to_string(), 1));
    lab.close(&later).unwrap();
    assert_eq!(
        (&tags()["postern:grant"], &tags()["postern:not-after"]),
        (&one.grant.to_string(), &END.into())
    );
    lab.close(&one).unwrap();
    assert_eq!(lab.cloud.rules(&own).len(), 0);
}

#[test]
fn i3_every_address_is_never_one_rule() {
    let lab = Lab::new();
    let group = lab.cloud.group("web", &[]);
    let instance = lab.cloud.instance("web", &[&[&group]]);
    let target = lab.lock(&instance);
    let (v4, v6) = (window(&target, 1, "0.0.0.0/0"), window(&target, 1, "::/0"));
    lab.open(&v4).unwrap();
    lab.open(&v6).unwrap();
    let sources: BTreeSet<String> =
        lab.cloud.windows(&instance).into_iter().map(|(_, source)| source).collect();
    assert_eq!(sources, ["0.0.0.0/1", "128.0.0.0/1", "::/1", "8000::/1"].map(str::to_owned).into());
    assert_eq!(lab.observe(&target).unwrap().windows, [v4.clone(), v6.clone()].into());

    // Another principal takes half of one away: the rest belongs to no window, and closes; then the whole opens again.
    lab.cloud.revoke(&lab.cloud.own_group(&instance).unwrap(), &RuleSpec::tcp(22, 22, "128.0.0.0/1"));
    let half = window(&target, 1, "0.0.0.0/1");
    // EC2 said a moment ago that it opened both halves: a read is believed once it must be newer than that.
    let left = [half.clone(), v6.clone()].into();
    wait_until("the half to be missed", STEP_TIMEOUT, || lab.observe(&target).unwrap().windows == left);
    lab.close(&half).unwrap();
    lab.open(&v4).unwrap();
    assert_eq!(lab.observe(&target).unwrap().windows, [v4, v6].into());
}

#[test]
fn twenty_windows_at_once_are_all_there() {
    let lab = Lab::new();
    let group = lab.cloud.group("web", &[]);
    let target = lab.lock(&lab.cloud.instance("web", &[&[&group]]));
    let of = |grants: RangeInclusive<u128>| -> BTreeSet<LayerWindow> {
        grants.map(|grant| window(&target, grant, &format!("198.51.100.{}", grant % 15))).collect()
    };
    let (gone, left) = (of(1..=10), of(11..=20));
    lab.open_all(&target, &(&gone | &left)).unwrap();
    assert_eq!(lab.observe(&target).unwrap().windows, &gone | &left);
    lab.close_all(&target, &gone).unwrap();
    assert_eq!(lab.observe(&target).unwrap().windows, left);
}

#[test]
fn i2_regions_and_accounts_are_swept_and_kept_apart() {
    let lab = Lab::new();
    let places =
        [lab.cloud.clone(), lab.ec2.cloud("123456789012", "us-east-1"), lab.ec2.cloud(OTHER_ACCOUNT, REGION)];
    let mut open = BTreeSet::new();
    for (place, grant) in places.iter().zip(1..) {
        let group = place.group("web", &[ssh_for_everyone()]);
        let instance = place.instance("web", &[&[&group]]);
        let target = place.target(&instance).parse().unwrap();
        let order = crate::lab::order(&target, postern_provider::Consent::all());
        lab.with(|aws| async move { aws.lockdown(&order).await }).unwrap();
        let window = window(&target, grant, "192.0.2.7");
        lab.open(&window).unwrap();
        assert_eq!(place.windows(&instance).len(), 1);
        open.insert(window);
    }
    let sweep = lab.sweep();
    assert_eq!(sweep.unread, []);
    let seen: BTreeSet<LayerWindow> =
        sweep.sightings.iter().flat_map(|sighting| sighting.held.clone().unwrap().windows).collect();
    assert_eq!(seen, open);
}

#[test]
fn i2_what_comes_in_pages_is_read_to_the_last() {
    let lab = Lab::new();
    let instances: Vec<String> = (0..5)
        .map(|number| {
            let group = lab.cloud.group(&format!("web-{number}"), &[ssh_for_everyone()]);
            lab.cloud.instance("web", &[&[&group]])
        })
        .collect();
    lab.ec2.short_pages(2);
    let open: BTreeSet<LayerWindow> = instances
        .iter()
        .zip(1..)
        .map(|(instance, grant)| window(&lab.lock(instance), grant, "192.0.2.7"))
        .collect();
    open.iter().for_each(|window| lab.open(window).unwrap());
    let sweep = lab.sweep();
    let seen: BTreeSet<LayerWindow> =
        sweep.sightings.iter().flat_map(|sighting| sighting.held.clone().unwrap().windows).collect();
    assert_eq!((seen, sweep.unread), (open, vec![]));
    let survey = lab.with(|aws| async move { aws.assess(&["tcp/22".parse().unwrap()].into()).await });
    assert_eq!(survey.assessments.iter().filter(|found| found.locked).count(), instances.len());
}

#[test]
fn a_target_outside_the_configuration_is_refused_in_words() {
    let lab = Lab::new();
    let target = "aws:123456789012/eu-north-1/i-0123456789abcdef0".parse().unwrap();
    let Err(CloudError::Refused { reason }) = lab.observe(&target) else { panic!("not refused") };
    assert!(reason.contains("aws.accounts"), "{reason}");
}

#[test]
fn i6_credentials_of_another_account_are_refused_and_what_they_do_not_show_is_not_gone() {
    let mut lab = Lab::new();
    // These are the credentials of ACCOUNT: in them, nothing of this account exists.
    lab.aws = lab.provider(&[("333333333333", None)]);
    let target = "aws:333333333333/eu-central-1/i-0123456789abcdef0".parse().unwrap();
    let answers = [
        lab.observe(&target).map(drop),
        lab.open(&window(&target, 1, "192.0.2.7")),
        lab.close(&window(&target, 1, "192.0.2.7")),
    ];
    for answer in answers {
        let Err(CloudError::Refused { reason }) = answer else { panic!("not refused: {answer:?}") };
        assert!(reason.contains("are those of 123456789012"), "{reason}");
    }
    let sweep = lab.sweep();
    assert_eq!((sweep.sightings.len(), sweep.unread.len()), (0, 1), "{sweep:?}");
}

#[test]
fn i8_a_restart_in_between_changes_nothing() {
    let mut lab = Lab::new();
    let group = lab.cloud.group("web", &[]);
    let target = lab.lock(&lab.cloud.instance("web", &[&[&group]]));
    let (one, other) = (window(&target, 1, "192.0.2.7"), window(&target, 2, "192.0.2.7"));
    lab.open(&one).unwrap();
    lab.restart();
    lab.open(&one).unwrap();
    lab.open(&other).unwrap();
    lab.restart();
    lab.close(&one).unwrap();
    assert_eq!(lab.observe(&target).unwrap().windows, [other.clone()].into());
    lab.restart();
    lab.close(&other).unwrap();
    lab.close(&other).unwrap();
    assert!(lab.observe(&target).unwrap().windows.is_empty());
}
