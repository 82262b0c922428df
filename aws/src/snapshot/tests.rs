//! Tests of the conclusions for an instance that is locked down and that other principals change.

use jiff::Timestamp;
use postern_core::plan::LayerWindow;
use postern_core::{GrantId, Protocol};

use super::*;
use crate::rule::{Ec2Traffic, RuleSource, Tags};
use crate::tags::Mark;

const INSTANCE: &str = "i-0123456789abcdef0";

fn target() -> TargetId {
    format!("aws:123456789012/eu-central-1/{INSTANCE}").parse().unwrap()
}

fn owned(role: &str, more: &[(&str, &str)]) -> Tags {
    let ports = ["tcp/22".parse().unwrap()].into();
    let fixed = [(tags::MANAGED_BY, "postern"), (tags::ROLE, role)];
    let pairs = fixed.iter().chain(more).map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    pairs.chain([tags::of_holder(INSTANCE, &ports)]).collect()
}

fn own(state: &str) -> Ec2Group {
    let tags = owned(
        tags::WINDOWS,
        &[
            (tags::INSTANCE, INSTANCE),
            (tags::STATE, state),
            (tags::INTERFACES, tags::ALL),
            ("postern:shuts:sg-web", ""),
        ],
    );
    let (id, name) = ("sg-own".into(), names::own(INSTANCE));
    Ec2Group { id, name, vpc: "vpc-1".into(), tags, rules: 1 }
}

fn parked() -> Ec2Group {
    let tags = owned(tags::PARKED, &[(tags::PARKED_FOR, "sg-web")]);
    Ec2Group {
        id: "sg-parked".into(),
        name: "postern-parked-sg-web".into(),
        vpc: "vpc-1".into(),
        tags,
        rules: 1,
    }
}

fn interface(index: i32, groups: &[&str]) -> Ec2Interface {
    Ec2Interface {
        id: format!("eni-{index}"),
        instance: Some(INSTANCE.into()),
        index,
        vpc: "vpc-1".into(),
        groups: groups.iter().map(|group| (*group).to_owned()).collect(),
        misplaced: Vec::new(),
        is_managed: false,
        description: String::new(),
    }
}

fn rule(group: &str, port: u16, source: &str, tags: Tags) -> GroupRule {
    let traffic = Ec2Traffic::Ports { protocol: Protocol::Tcp, from: port, to: port };
    let source = RuleSource::Prefix(source.parse().unwrap());
    GroupRule {
        id: format!("sgr-{group}-{port}"),
        group: group.into(),
        traffic,
        source,
        description: String::new(),
        tags,
    }
}

/// Returns the rule of the window of [`window_tags`], as the broker writes it.
fn windows_rule() -> GroupRule {
    let (window, tags) = window_tags();
    let description = format!("Postern: grant {} until {}", window.grant, window.not_after);
    GroupRule { description, ..rule("sg-own", 22, "192.0.2.7/32", tags) }
}

fn window_tags() -> (LayerWindow, Tags) {
    let grant = GrantId::from_parts(Timestamp::UNIX_EPOCH, 7);
    let not_after = Timestamp::from_second(4_000_000_000).unwrap();
    let mark = Mark { not_after, whole: true, half: false };
    let (port, source) = ("tcp/22".parse().unwrap(), "192.0.2.7".parse().unwrap());
    let window = LayerWindow { target: target(), grant, port, source, not_after };
    let owner = (tags::MANAGED_BY.to_owned(), "postern".to_owned());
    let latest = tags::of_latest(&[(grant, mark)].into());
    (window, [tags::of_mark(grant, mark), owner].into_iter().chain(latest).collect())
}

/// Returns the snapshot of an instance that is locked down, with one window and no drift.
fn locked() -> InstanceSnapshot {
    let mut snapshot = InstanceSnapshot {
        groups: vec![own(tags::LOCKED), parked()],
        interfaces: vec![interface(0, &["sg-web", "sg-own"]), interface(1, &["sg-web", "sg-own"])],
        exists: true,
        ..InstanceSnapshot::default()
    };
    snapshot.rules.ingress.insert("sg-own".into(), vec![windows_rule()]);
    snapshot.rules.ingress.insert("sg-web".into(), vec![rule("sg-web", 443, "0.0.0.0/0", Tags::new())]);
    snapshot
}

fn observe(snapshot: &InstanceSnapshot) -> Observation {
    snapshot.observation(InstanceContext { target: &target(), instance: INSTANCE, deployment: "postern" })
}

fn drift(snapshot: &InstanceSnapshot) -> Vec<(String, bool)> {
    observe(snapshot).drift.into_iter().map(|drift| (drift.what, drift.repairable)).collect()
}

#[test]
fn i2_what_is_open_follows_from_the_tags_alone() {
    assert_eq!(
        observe(&locked()),
        Observation {
            windows: [window_tags().0].into(),
            shut: Some(["tcp/22".parse().unwrap()].into()),
            ..Observation::default()
        }
    );
}

#[test]
fn a_change_of_posterns_resources_by_another_principal_is_repairable_drift() {
    let mut strays = locked();
    strays.rules.ingress.get_mut("sg-own").unwrap().push(rule("sg-own", 23, "0.0.0.0/0", Tags::new()));
    let mut egress = locked();
    egress.rules.egress.insert("sg-own".into(), vec![rule("sg-own", 25, "0.0.0.0/0", Tags::new())]);
    let mut detached = locked();
    detached.interfaces[1].groups.retain(|group| group != "sg-own");
    let mut gone = locked();
    gone.groups.remove(0);
    let mut untagged = locked();
    untagged.groups[0].tags.remove(tags::ROLE);
    let mut widened = locked();
    let piece = [
        (tags::MANAGED_BY.to_owned(), "postern".to_owned()),
        (tags::PIECE_OF.to_owned(), "sgr-1".to_owned()),
    ];
    widened.rules.ingress.get_mut("sg-web").unwrap().push(rule("sg-web", 22, "0.0.0.0/0", piece.into()));
    for (snapshot, words) in [
        (strays, "another principal made a rule in its own group"),
        (egress, "another principal let its own group send"),
        (detached, "its own group is not on eni-1"),
        (gone, "its own group is gone"),
        (untagged, "another principal removed postern:role from its own group"),
        (widened, "it is not shut: tcp/22 exposed"),
    ] {
        let drift = drift(&snapshot);
        assert!(matches!(&drift[..], [(what, true)] if what.contains(words)), "{drift:?}");
    }
}

#[test]
fn i6_a_customers_rule_that_opens_a_port_again_is_reported_and_left_alone() {
    let mut snapshot = locked();
    snapshot.rules.ingress.get_mut("sg-web").unwrap().push(rule("sg-web", 22, "0.0.0.0/0", Tags::new()));
    let drift = drift(&snapshot);
    assert!(
        matches!(&drift[..], [(what, false)] if what.starts_with("it is not shut: tcp/22 exposed: rule sgr-sg-web-22 of sg-web lets tcp/22 in from anyone (0.0.0.0/0); ") && what.contains("`postern lockdown aws:")),
        "{drift:?}"
    );
    assert_eq!(observe(&snapshot).windows.len(), 1);
}

#[test]
fn an_interrupted_lockdown_or_release_is_drift_and_its_windows_are_still_seen() {
    for (state, words) in [
        (tags::LOCKING, "a lockdown was interrupted"),
        (tags::RELEASING, "a release was interrupted"),
        ("another word", "a lockdown was interrupted"),
    ] {
        let snapshot = InstanceSnapshot { groups: vec![own(state), parked()], ..locked() };
        assert_eq!(drift(&snapshot), [(words.to_owned(), true)]);
        assert_eq!(observe(&snapshot).windows.len(), 1, "what is open can be closed");
    }
}

#[test]
fn i6_a_piece_in_a_group_that_is_shut_for_other_instances_is_reported_and_left_alone() {
    let piece = [
        (tags::MANAGED_BY.to_owned(), "postern".to_owned()),
        (tags::PIECE_OF.to_owned(), "sgr-1".to_owned()),
    ];
    let mut snapshot = locked();
    snapshot.interfaces[0].groups.push("sg-shared".into());
    snapshot.rules.ingress.insert("sg-shared".into(), vec![rule("sg-shared", 22, "0.0.0.0/0", piece.into())]);
    assert!(matches!(&drift(&snapshot)[..], [(what, false)] if what.contains("it is not shut")));
    assert!(snapshot.widened(&snapshot.ports(INSTANCE), "postern").is_empty());
}

#[test]
fn i6_an_own_group_without_any_tag_is_known_by_its_name_and_its_windows_can_be_closed() {
    let mut snapshot = locked();
    snapshot.groups[0].tags.clear();
    let found = drift(&snapshot);
    assert_eq!(
        found,
        [("a lockdown was interrupted".to_owned(), true)],
        "the parked group's tag says for which ports"
    );
    assert_eq!(observe(&snapshot).windows.len(), 1);
    snapshot.groups.remove(1);
    assert!(matches!(&drift(&snapshot)[..], [(what, false)] if what.contains("`postern lockdown aws:")));
    assert_eq!(observe(&snapshot).windows.len(), 1);
}

#[test]
fn a_target_that_is_gone_while_rules_are_parked_for_it_waits_for_its_release() {
    let snapshot = InstanceSnapshot { groups: vec![parked()], exists: false, ..InstanceSnapshot::default() };
    let drift = drift(&snapshot);
    assert!(
        matches!(&drift[..], [(what, false)] if what.contains("rules of sg-web are still parked")),
        "{drift:?}"
    );
}

#[test]
fn on_a_kubernetes_node_the_interfaces_of_pods_are_left_alone() {
    let mut snapshot = locked();
    snapshot.groups[0].tags.insert(tags::INTERFACES.into(), tags::PRIMARY.into());
    snapshot.interfaces[1].groups = vec!["sg-pods".into()];
    snapshot.rules.ingress.insert("sg-pods".into(), vec![rule("sg-pods", 22, "0.0.0.0/0", Tags::new())]);
    assert_eq!(drift(&snapshot), []);
    assert_eq!(snapshot.customer_groups(), [&"sg-web".to_owned()].into());
}

#[test]
fn an_interface_that_a_service_manages_is_left_alone() {
    let mut snapshot = locked();
    let task = Ec2Interface { is_managed: true, ..interface(2, &["sg-task"]) };
    snapshot.interfaces.push(task);
    snapshot.rules.ingress.insert("sg-task".into(), vec![rule("sg-task", 22, "0.0.0.0/0", Tags::new())]);
    assert_eq!(drift(&snapshot), []);
    assert_eq!(snapshot.customer_groups(), [&"sg-web".to_owned()].into());
}

#[test]
fn an_interface_in_another_vpc_is_guarded_and_not_served() {
    let mut snapshot = locked();
    snapshot.interfaces.push(Ec2Interface { vpc: "vpc-2".into(), ..interface(2, &["sg-far"]) });
    assert_eq!(snapshot.unattached(), Vec::<&Ec2Interface>::new());
    assert!(snapshot.customer_groups().contains(&"sg-far".to_owned()));
}

#[test]
fn a_region_snapshot_gives_each_instance_its_own_part() {
    let snapshot = locked();
    let other = Ec2Interface { instance: Some("i-other".into()), ..interface(0, &["sg-web"]) };
    let interfaces: Vec<Ec2Interface> = snapshot.interfaces.iter().cloned().chain([other]).collect();
    let groups = snapshot.groups.clone();
    assert_eq!(RegionSnapshot::served(&groups), [INSTANCE.to_owned()].into());
    let panorama =
        RegionSnapshot { groups, interfaces, rules: snapshot.rules.clone(), bare: BTreeSet::new() };
    let snapshots = panorama.instances();
    assert_eq!(snapshots.len(), 1);
    assert_eq!(observe(&snapshots[INSTANCE]), observe(&snapshot));
}
