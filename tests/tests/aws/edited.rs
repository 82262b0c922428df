//! Edits of windows' rules in an own group, field by field, while the window is open and after its end.

use std::collections::BTreeSet;
use std::time::Duration;

use postern_core::TargetId;
use postern_core::plan::LayerWindow;
use postern_proto::v1::{Grant, GrantState, Layers};
use postern_provider::{CloudError, Health};
use postern_tests::clock::{sleep_until, wait_until};
use postern_tests::ec2::{AwsWorld, Edit, RuleSpec, Snapshot, refused};
use postern_tests::{STEP_TIMEOUT, a_request, end_of};

use crate::lab::{Lab, window};

/// Every field of a window's rule, each edited in the ways that matter. No two of them end as the same rule.
const EDITS: [(&str, Edit); 24] = [
    ("every IPv4 address", Edit::Modify(|rule| rule.source = "0.0.0.0/0".into())),
    ("half of all addresses", Edit::Modify(|rule| rule.source = "0.0.0.0/1".into())),
    ("a wider source", Edit::Modify(|rule| rule.source = "10.0.0.0/8".into())),
    ("a narrower source", Edit::Modify(|rule| rule.source = "192.0.2.99/32".into())),
    ("another port", Edit::Modify(|rule| (rule.from, rule.to) = (3389, 3389))),
    ("a range of ports", Edit::Modify(|rule| rule.to = 23)),
    ("every port", Edit::Modify(|rule| (rule.from, rule.to) = (0, 65535))),
    ("udp", Edit::Modify(|rule| rule.protocol = "udp".into())),
    ("every protocol", Edit::Modify(|rule| (rule.protocol, rule.from, rule.to) = ("-1".into(), -1, -1))),
    ("icmp", Edit::Modify(|rule| (rule.protocol, rule.from, rule.to) = ("icmp".into(), -1, -1))),
    ("another description", Edit::Modify(|rule| rule.description = "for the contractor".into())),
    ("no description", Edit::Modify(|rule| rule.description = String::new())),
    ("every IPv6 address", Edit::Replace(|rule| rule.source = "::/0".into())),
    ("an IPv6 network", Edit::Replace(|rule| rule.source = "2001:db8::/32".into())),
    (
        "every protocol over IPv6",
        Edit::Replace(|rule| {
            (rule.protocol, rule.from, rule.to) = ("-1".into(), -1, -1);
            rule.source = "::/0".into();
        }),
    ),
    ("another deployment", Edit::Tag("postern:managed-by", "another")),
    ("no deployment", Edit::Untag("postern:managed-by")),
    ("no grant", Edit::Untag("postern:grant:")),
    ("a later end", Edit::Tag("postern:grant:", "2200-01-01T00:00:00Z")),
    ("an end that is no time", Edit::Tag("postern:grant:", "for ever")),
    ("half of a window", Edit::Tag("postern:grant:", "2200-01-01T00:00:00Z half")),
    ("a second grant that cannot be read", Edit::Tag("postern:grant:x", "2200-01-01T00:00:00Z")),
    ("a second grant", Edit::Tag("postern:grant:00000000000000000000000009", "2200-01-01T00:00:00Z")),
    ("another end for people", Edit::Tag("postern:not-after", "2200-01-01T00:00:00Z")),
];

/// Opens one window for each edit, each from an address of its own.
fn open_one_for_each(world: &AwsWorld, seconds: u64) -> Vec<Grant> {
    let requests: Vec<_> = (0..EDITS.len())
        .map(|number| {
            let ask = a_request().on(&world.target()).port("tcp/22").from(format!("198.51.100.{number}"));
            world.alice.start_request(&ask.seconds(seconds).waiting(STEP_TIMEOUT))
        })
        .collect();
    let grants: Vec<_> = requests.into_iter().map(|request| request.join().unwrap().grant.unwrap()).collect();
    for grant in &grants {
        world.alice.wait_for_state(&grant.id, GrantState::Active);
    }
    grants
}

fn edit_each(world: &AwsWorld, own: &str) {
    let rules = world.cloud.rule_ids(own);
    for (number, (name, edit)) in EDITS.iter().enumerate() {
        let source = format!("198.51.100.{number}/32");
        let (id, rule) =
            rules.iter().find(|(_, rule)| rule.source == source).unwrap_or_else(|| panic!("{name}"));
        world.cloud.edit_rule(own, id, rule, *edit);
    }
}

/// Asserts that every verdict says that all is well.
fn all_is_well(world: &AwsWorld) -> bool {
    let cli = world.admin.cli();
    let targets = cli.run(&["targets"]);
    let assessed = cli.run(&["assess"]);
    targets.out.contains("in_sync")
        && assessed.out.contains("healthy")
        && !assessed.out.contains("unhealthy")
        && cli.run(&["status", "--check"]).succeeded()
}

/// The lines of the audit log that the cloud layer wrote.
fn recorded(world: &AwsWorld) -> Vec<String> {
    world.admin.audit().into_iter().filter(|line| line.contains("\"action\":\"cloud.")).collect()
}

/// The audit log stays as it is over several sweeps: what was done is recorded once.
fn says_no_more(world: &AwsWorld) {
    let lines = recorded(world);
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(recorded(world), lines);
}

#[test]
fn i2_a_rule_of_a_window_that_is_edited_in_any_field_is_as_it_was_before_the_window_ends() {
    let world = AwsWorld::new(Layers::Cloud);
    let grants = open_one_for_each(&world, 600);
    let own = world.cloud.own_group(&world.instance).unwrap();
    let before = world.cloud.rules(&own);
    assert_eq!(before.len(), EDITS.len());
    edit_each(&world, &own);
    wait_until("every rule to be as it was", STEP_TIMEOUT, || world.cloud.rules(&own) == before);
    wait_until("every verdict to say so", STEP_TIMEOUT, || all_is_well(&world));
    for grant in &grants {
        assert_eq!(world.alice.grant(&grant.id).unwrap().state(), GrantState::Active);
    }
    says_no_more(&world);
    assert!(!world.admin.audited("cloud.foreign_rule_removed").is_empty());
    for grant in &grants {
        world.alice.revoke(&grant.id).unwrap();
    }
    wait_until("every window to close", STEP_TIMEOUT, || world.cloud.rules(&own).is_empty());
}

/// Edits every rule while no broker runs, and starts one after the windows' end.
fn edited_and_ended(empties_store: bool) {
    let mut world = AwsWorld::new(Layers::Cloud);
    let grants = open_one_for_each(&world, if empties_store { 600 } else { 8 });
    let own = world.cloud.own_group(&world.instance).unwrap();
    world.broker.process().kill9();
    edit_each(&world, &own);
    if empties_store {
        world.broker.empty_store();
    } else {
        grants.iter().for_each(|grant| sleep_until(end_of(grant)));
    }
    world.broker.serve();
    wait_until("every rule to go", STEP_TIMEOUT, || world.cloud.rules(&own).is_empty());
    wait_until("every verdict to say so", STEP_TIMEOUT, || all_is_well(&world));
    if !empties_store {
        for grant in &grants {
            world.alice.wait_for_state(&grant.id, GrantState::Closed);
        }
    }
    says_no_more(&world);
    let removed = world.admin.audited("cloud.foreign_rule_removed");
    let names = |words: &str| removed.iter().filter(|line| line.contains(words)).count();
    assert_eq!(
        (names("lets tcp/22 in from anyone (0.0.0.0/0)"), names("all traffic")),
        (1, 2),
        "{removed:?}"
    );
    let released = world.admin.cli().run(&["release", &world.target()]);
    assert!(released.succeeded(), "{released:?}");
    assert_eq!(world.cloud.own_group(&world.instance), None);
}

#[test]
fn i2_a_rule_of_a_window_that_is_edited_in_any_field_goes_after_the_end_of_the_window() {
    edited_and_ended(false);
}

#[test]
fn i2_a_rule_of_a_window_that_is_edited_in_any_field_goes_where_the_store_was_emptied() {
    edited_and_ended(true);
}

#[test]
fn i6_a_rule_that_ec2_keeps_is_in_every_verdict_and_its_grant_stays_closing_until_it_is_gone() {
    let world = AwsWorld::new(Layers::Cloud);
    let (cli, target) = (world.admin.cli(), world.target());
    let grant = world.alice.open(&a_request().on(&target).port("tcp/22").from("192.0.2.7").seconds(600));
    let own = world.cloud.own_group(&world.instance).unwrap();
    world.ec2.fail("RevokeSecurityGroupIngress", 100_000, refused(403, "UnauthorizedOperation"));
    let (id, rule) = world.cloud.rule_ids(&own).pop().unwrap();
    world.cloud.edit_rule(&own, &id, &rule, EDITS[0].1);
    wait_until("the target to be out of sync", STEP_TIMEOUT, || {
        !cli.run(&["targets"]).out.contains("in_sync")
    });
    let assessed = cli.run(&["assess"]);
    assert!(assessed.out.contains("unhealthy") && assessed.out.contains(&id), "{assessed:?}");
    wait_until("the check to fail", STEP_TIMEOUT, || !cli.run(&["status", "--check"]).succeeded());

    let revoke = cli.run(&["revoke", &grant.id, "--timeout", "2s"]);
    let refused = cli.run(&["release", &target]);
    assert!(!refused.succeeded(), "{revoke:?} {refused:?}");
    assert_eq!(world.alice.grant(&grant.id).unwrap().state(), GrantState::Closing, "{revoke:?}");
    assert_eq!(world.cloud.rules(&own).len(), 1);

    world.ec2.forgive();
    world.alice.wait_for_state(&grant.id, GrantState::Closed);
    assert_eq!(world.cloud.rules(&own), Snapshot::new());
    wait_until("every verdict to be good", STEP_TIMEOUT, || all_is_well(&world));
    let removed = || world.admin.audited("cloud.foreign_rule_removed");
    wait_until("the removal to be recorded", STEP_TIMEOUT, || removed().len() == 1);
    assert!(
        removed()[0].contains(&id) && removed()[0].contains("anyone (0.0.0.0/0)"),
        "{removed:?}",
        removed = removed()
    );
    says_no_more(&world);
    assert!(cli.run(&["release", &target]).succeeded());
}

/// A locked instance with one window, whose rule is then edited.
fn edited(edit: Edit) -> (Lab, TargetId, String, LayerWindow) {
    let lab = Lab::new();
    let group = lab.cloud.group("web", &[RuleSpec::tcp(22, 22, "10.0.0.0/8")]);
    let instance = lab.cloud.instance("web", &[&[&group]]);
    let target = lab.lock(&instance);
    let one = window(&target, 1, "192.0.2.7");
    lab.open(&one).unwrap();
    let own = lab.cloud.own_group(&instance).unwrap();
    let (id, rule) = lab.cloud.rule_ids(&own).pop().unwrap();
    lab.cloud.edit_rule(&own, &id, &rule, edit);
    (lab, target, instance, one)
}

#[test]
fn i2_a_close_takes_the_rule_of_a_window_away_whatever_it_says_now() {
    let lab = Lab::new();
    let group = lab.cloud.group("web", &[]);
    let instance = lab.cloud.instance("web", &[&[&group]]);
    let target = lab.lock(&instance);
    let source = |number: usize| format!("198.51.100.{number}");
    let all: BTreeSet<LayerWindow> =
        (0..EDITS.len()).zip(1..).map(|(number, grant)| window(&target, grant, &source(number))).collect();
    lab.open_all(&target, &all).unwrap();
    let own = lab.cloud.own_group(&instance).unwrap();
    let rules = lab.cloud.rule_ids(&own);
    let in_place = EDITS.iter().enumerate().filter(|(_, (_, edit))| !matches!(edit, Edit::Replace(_)));
    for (number, (name, edit)) in in_place {
        let source = format!("{}/32", source(number));
        let (id, rule) =
            rules.iter().find(|(_, rule)| rule.source == source).unwrap_or_else(|| panic!("{name}"));
        lab.cloud.edit_rule(&own, id, rule, *edit);
    }
    lab.close_all(&target, &all).unwrap();
    assert_eq!(lab.cloud.rules(&own), Snapshot::new());
}

#[test]
fn i2_a_close_by_a_broker_that_starts_takes_away_what_became_of_the_window() {
    for (name, edit) in [EDITS[0], EDITS[8], EDITS[12], EDITS[17], EDITS[19]] {
        let (mut lab, _, instance, one) = edited(edit);
        lab.restart();
        lab.close(&one).unwrap();
        assert!(lab.cloud.windows(&instance).is_empty(), "{name}");
    }
}

#[test]
fn i6_another_lockdown_and_a_release_take_away_what_is_no_window() {
    for (name, edit) in [EDITS[0], EDITS[8], EDITS[17]] {
        let (mut lab, _, instance, _) = edited(edit);
        lab.restart();
        let report = lab.try_lock(&instance, postern_provider::Consent::all()).unwrap();
        assert!(
            report.changes.iter().any(|change| change.detail.contains("rule sgr-")),
            "{name}: {report:?}"
        );
        assert!(lab.cloud.windows(&instance).is_empty(), "{name}");
        let (mut lab, _, instance, _) = edited(edit);
        lab.restart();
        lab.release(&instance).unwrap();
        assert!(lab.cloud.groups_of_postern().is_empty(), "{name}");
    }
}

#[test]
fn an_assessment_names_the_rule_of_an_own_group_that_exposes_a_protected_port() {
    let (lab, target, instance, _) = edited(EDITS[0].1);
    let own = lab.cloud.own_group(&instance).unwrap();
    // Locked down for tcp/3389, too, which the assessment does not ask about.
    lab.cloud.allow(&own, &RuleSpec::tcp(3389, 3389, "0.0.0.0/0"));
    let management = BTreeSet::from(["tcp/22".parse().unwrap()]);
    let survey =
        lab.with(|aws| async move { postern_provider::Provider::assess(aws.as_ref(), &management).await });
    let judged = survey.assessments.into_iter().find(|judged| judged.target == target).unwrap();
    let Health::Unhealthy { reasons } = judged.health else { panic!("{:?}", judged.health) };
    let exposed: BTreeSet<&str> =
        reasons.iter().filter_map(|reason| reason.split(" exposed").next()).collect();
    assert_eq!(exposed, ["tcp/22", "tcp/3389"].into(), "{reasons:?}");
}

#[test]
fn i6_a_window_is_closed_once_a_read_shows_that_its_rule_is_gone() {
    let lab = Lab::new();
    let group = lab.cloud.group("web", &[]);
    let instance = lab.cloud.instance("web", &[&[&group]]);
    let target = lab.lock(&instance);
    let windows = [1, 2, 3].map(|grant| window(&target, grant, &format!("192.0.2.{grant}")));
    lab.open_all(&target, &windows.iter().cloned().collect()).unwrap();
    let [first, second, third] = &windows;
    // The read after this close shows the other two, and is what EC2 shows for a second after the next one.
    lab.close(first).unwrap();
    lab.ec2.stale_reads(Duration::from_secs(1));
    lab.close(second).unwrap();
    assert_eq!(lab.observe(&target).unwrap().windows, [third.clone()].into());
    // A rule that EC2 goes on showing is not believed to be gone.
    lab.ec2.stale_reads(Duration::from_secs(60));
    let Err(CloudError::Unavailable { reason }) = lab.close(third) else { panic!("it was believed") };
    assert!(reason.contains("still shows"), "{reason}");
}
