//! Lockdown and release: what is taken away, what is asked, and that all of it comes back.

use std::collections::BTreeSet;
use std::time::Duration;

use postern_provider::{CloudError, ConcernKind, Consent, Health, LockdownOrder, Provider as _};
use postern_tests::STEP_TIMEOUT;
use postern_tests::clock::wait_until;
use postern_tests::ec2::{CrashPoint, Fault, RuleSpec, Snapshot, When, refused, throttled};

use crate::lab::{Lab, order, window};

/// Rules of every kind, as an owner might have them.
fn rules(lab: &Lab) -> Vec<RuleSpec> {
    let list = lab.cloud.prefix_list(&["203.0.113.0/24"]);
    let friends = lab.cloud.group("friends", &[]);
    vec![
        RuleSpec::tcp(20, 25, "0.0.0.0/0")
            .described("ftp, ssh and mail (old)")
            .tagged("team", "infra")
            .tagged("cost", ""),
        RuleSpec::tcp(22, 22, "2001:db8::/32").described("ssh over IPv6"),
        RuleSpec::tcp(443, 443, "0.0.0.0/0").described("web").tagged("team", "web"),
        RuleSpec::tcp(0, 65535, "10.0.0.0/8"),
        RuleSpec::tcp(3389, 3389, &list).described("the office"),
        RuleSpec::all(&friends).described("all of us").tagged("team", "infra"),
        RuleSpec { protocol: "udp".into(), ..RuleSpec::tcp(53, 53, "0.0.0.0/0") },
        RuleSpec { protocol: "icmp".into(), from: -1, to: -1, ..RuleSpec::tcp(0, 0, "0.0.0.0/0") },
    ]
}

fn exposes(rules: &Snapshot, port: i32) -> bool {
    rules
        .iter()
        .any(|rule| rule.protocol == "-1" || rule.protocol == "tcp" && (rule.from..=rule.to).contains(&port))
}

#[test]
fn i6_a_release_puts_back_every_rule_as_it_was() {
    let lab = Lab::new();
    let group = lab.cloud.group("web", &rules(&lab));
    let instance = lab.cloud.instance("web", &[&[&group]]);
    let (before, interfaces) = (lab.cloud.rules(&group), lab.cloud.interfaces(&instance));
    lab.lock(&instance);

    let locked = lab.cloud.rules(&group);
    assert!(!exposes(&locked, 22) && !exposes(&locked, 3389), "{locked:#?}");
    assert!(exposes(&locked, 443) && exposes(&locked, 21) && exposes(&locked, 65535));
    let own = lab.cloud.own_group(&instance).unwrap();
    assert_eq!(lab.cloud.egress(&own), 0, "it must not widen what goes out");
    assert!(lab.cloud.interfaces(&instance).values().all(|groups| groups.contains(&own)));

    lab.release(&instance).unwrap();
    assert_eq!(lab.cloud.rules(&group), before);
    assert_eq!(lab.cloud.interfaces(&instance), interfaces);
    assert_eq!(lab.cloud.groups_of_postern(), BTreeSet::new());
}

#[test]
fn i2_a_broker_that_knows_nothing_releases_what_another_locked() {
    let mut lab = Lab::new();
    let group = lab.cloud.group("web", &rules(&lab));
    let instance = lab.cloud.instance("web", &[&[&group]]);
    let before = lab.cloud.rules(&group);
    lab.lock(&instance);
    lab.restart();
    lab.release(&instance).unwrap();
    assert_eq!(lab.cloud.rules(&group), before);
}

#[test]
fn what_a_lockdown_would_change_is_said_and_nothing_is_touched_until_all_is_accepted() {
    let lab = Lab::new();
    let group = lab.cloud.group("web", &rules(&lab));
    let instance = lab.cloud.instance("web", &[&[&group]]);
    let other = lab.cloud.instance("other", &[&[&group]]);
    let before = lab.cloud.rules(&group);
    let target = lab.target(&instance);
    let order = order(&target, Consent::default());
    lab.actions();
    let planned = lab.with(|aws| async move { aws.plan_lockdown(&order).await }).unwrap();
    assert!(lab.ec2.calls().iter().all(|call| !call.is_change()), "{:?}", lab.actions());

    let asked: Vec<_> =
        planned.concerns.iter().map(|concern| (concern.kind, concern.what.as_str())).collect();
    let has = |kind, words: &str| asked.iter().any(|(is, what)| *is == kind && what.contains(words));
    assert!(has(ConcernKind::Shared, &format!("the instance {other}")), "{asked:?}");
    assert!(has(ConcernKind::Loss, "other than TCP, UDP and ICMP"), "{asked:?}");
    assert!(has(ConcernKind::Cut, "tcp/20-25"), "{asked:?}");

    let some = Consent([ConcernKind::Shared, ConcernKind::Loss].into());
    assert_eq!(lab.try_lock(&instance, some).unwrap(), planned);
    assert_eq!((lab.cloud.rules(&group), lab.cloud.groups_of_postern()), (before, BTreeSet::new()));
    assert_eq!(lab.try_lock(&instance, Consent::all()).unwrap(), planned, "what was said is what is done");
}

#[test]
fn a_group_that_several_share_is_shut_until_the_last_is_released() {
    let lab = Lab::new();
    let group = lab.cloud.group("web", &rules(&lab));
    let instances = ["one", "two"].map(|name| lab.cloud.instance(name, &[&[&group]]));
    let before = lab.cloud.rules(&group);
    let order =
        crate::lab::order(&lab.target(&instances[0]), Consent([ConcernKind::Loss, ConcernKind::Cut].into()));
    let mut together = order.clone();
    together.together.insert(lab.target(&instances[1]), order.ports.clone());
    let alone = lab.with(|aws| async move { aws.plan_lockdown(&order).await }).unwrap();
    assert!(alone.concerns.iter().any(|concern| concern.kind == ConcernKind::Shared));
    let report = lab.with(|aws| async move { aws.lockdown(&together).await }).unwrap();
    assert!(report.concerns.iter().all(|concern| concern.kind != ConcernKind::Shared), "both are ordered");
    lab.lock(&instances[1]);
    let locked = lab.cloud.rules(&group);

    lab.release(&instances[0]).unwrap();
    assert_eq!(lab.cloud.rules(&group), locked, "the other needs it");
    lab.release(&instances[1]).unwrap();
    assert_eq!((lab.cloud.rules(&group), lab.cloud.groups_of_postern()), (before, BTreeSet::new()));
}

#[test]
fn every_interface_is_shut_and_gets_the_windows() {
    let lab = Lab::new();
    let groups = ["front", "back"].map(|name| lab.cloud.group(name, &[RuleSpec::tcp(22, 22, "10.0.0.0/8")]));
    let instance = lab.cloud.instance("both", &[&[&groups[0]], &[&groups[1]]]);
    let target = lab.lock(&instance);
    let own = lab.cloud.own_group(&instance).unwrap();
    let interfaces = lab.cloud.interfaces(&instance);
    assert_eq!(interfaces.len(), 2);
    assert!(interfaces.values().all(|groups| groups.contains(&own)), "{interfaces:?}");
    assert!(groups.iter().all(|group| lab.cloud.rules(group).is_empty()));
    lab.open(&window(&target, 1, "192.0.2.7")).unwrap();
    assert_eq!(lab.cloud.windows(&instance).len(), 1);
    assert!(matches!(lab.release(&instance), Err(CloudError::Refused { .. })), "a window is open");
}

#[test]
fn a_node_of_a_kubernetes_cluster_keeps_its_pods_interfaces() {
    let lab = Lab::new();
    let groups = ["node", "pods"].map(|name| lab.cloud.group(name, &[RuleSpec::tcp(22, 22, "10.0.0.0/8")]));
    let instance = lab.cloud.instance("node", &[&[&groups[0]], &[&groups[1]]]);
    lab.cloud.tag(&instance, "kubernetes.io/cluster/prod", "owned");
    let target = lab.lock(&instance);
    let own = lab.cloud.own_group(&instance).unwrap();
    let with_own = lab.cloud.interfaces(&instance).values().filter(|groups| groups.contains(&own)).count();
    assert_eq!((with_own, lab.cloud.rules(&groups[1]).len()), (1, 1));
    assert_eq!(lab.observe(&target).unwrap().drift, []);
}

#[test]
fn an_assessment_says_in_words_which_targets_need_just_in_time_access() {
    let lab = Lab::new();
    let open = lab.cloud.group("open", &[RuleSpec::tcp(20, 25, "0.0.0.0/0")]);
    let web = lab.cloud.group("web", &[RuleSpec::tcp(443, 443, "0.0.0.0/0")]);
    let unhealthy = lab.cloud.instance("unhealthy", &[&[&open, &web]]);
    let healthy = lab.cloud.instance("healthy", &[&[&web]]);
    let gone = lab.cloud.instance("gone", &[&[&open]]);
    lab.cloud.terminate(&gone);
    let assess = || {
        let management = ["tcp/22".parse().unwrap(), "tcp/3389".parse().unwrap()].into();
        let survey = lab.with(|aws| async move { aws.assess(&management).await });
        assert_eq!(survey.unread, []);
        survey.assessments
    };
    let of = |instance: &str| assess().into_iter().find(|found| found.target == lab.target(instance));
    let Health::Unhealthy { reasons } = of(&unhealthy).unwrap().health else { panic!("not unhealthy") };
    assert!(
        matches!(&reasons[..], [reason] if reason.starts_with("tcp/22 exposed: rule sgr-") && reason.contains(&open))
    );
    assert!(matches!(of(&healthy).unwrap().health, Health::Healthy { .. }));
    assert_eq!(of(&gone), None);
    lab.lock(&unhealthy);
    let locked = of(&unhealthy).unwrap();
    assert!(locked.locked && matches!(locked.health, Health::Healthy { .. }), "{locked:?}");
    assert_eq!(locked.name, "unhealthy");
}

#[test]
fn a_sharer_of_a_group_that_is_locked_for_other_ports_is_named_with_the_ports() {
    let lab = Lab::new();
    let group = lab.cloud.group("web", &[RuleSpec::tcp(0, 65535, "10.0.0.0/8")]);
    let [one, other] = ["one", "other"].map(|name| lab.cloud.instance(name, &[&[&group]]));
    let only = |instance: &str, ports: &[&str]| {
        let ports = ports.iter().map(|port| port.parse().unwrap()).collect();
        LockdownOrder { ports, ..order(&lab.target(instance), Consent::all()) }
    };
    let first = only(&one, &["tcp/3389"]);
    lab.with(|aws| async move { aws.lockdown(&first).await }).unwrap();
    let second = only(&other, &["tcp/22", "tcp/3389"]);
    let planned = lab.with(|aws| async move { aws.plan_lockdown(&second).await }).unwrap();
    let words: Vec<_> = planned.concerns.iter().map(|concern| concern.what.as_str()).collect();
    assert!(
        matches!(&words[..], [words] if words.contains(&one) && words.ends_with("but not for tcp/22")),
        "{words:?}"
    );
}

#[test]
fn a_rule_that_another_principal_makes_in_an_own_group_is_an_exposure_until_it_is_gone() {
    let lab = Lab::new();
    let group = lab.cloud.group("web", &[]);
    let instance = lab.cloud.instance("web", &[&[&group]]);
    let target = lab.lock(&instance);
    lab.open(&window(&target, 1, "192.0.2.7")).unwrap();
    let health = || {
        let survey = lab.with(|aws| async move { aws.assess(&["tcp/22".parse().unwrap()].into()).await });
        survey.assessments.into_iter().find(|found| found.target == target).unwrap().health
    };
    assert!(matches!(health(), Health::Healthy { .. }), "a window is no exposure");
    lab.cloud.allow(&lab.cloud.own_group(&instance).unwrap(), &RuleSpec::tcp(0, 65535, "0.0.0.0/0"));
    assert!(matches!(health(), Health::Unhealthy { .. }));
}

#[test]
fn i8_reads_that_are_not_the_newest_spoil_neither_a_lockdown_nor_a_release() {
    let lab = Lab::new();
    let group = lab.cloud.group("web", &rules(&lab));
    let instance = lab.cloud.instance("web", &[&[&group]]);
    let (before, interfaces) = (lab.cloud.rules(&group), lab.cloud.interfaces(&instance));
    lab.ec2.stale_reads(Duration::from_millis(400));
    for _ in 0..2 {
        let target = lab.lock(&instance);
        // At once, as a caller does after the answer.
        let one = window(&target, 1, "192.0.2.7");
        lab.open(&one).unwrap();
        assert!(!exposes(&lab.cloud.rules(&group), 22));
        lab.close(&one).unwrap();
        while matches!(lab.release(&instance), Err(CloudError::Refused { reason }) if reason.contains("is open"))
        {
        }
        assert_eq!(
            (lab.cloud.rules(&group), lab.cloud.interfaces(&instance)),
            (before.clone(), interfaces.clone())
        );
    }
    assert_eq!(lab.cloud.groups_of_postern(), BTreeSet::new());
}

#[test]
fn a_group_that_ec2_does_not_know_everywhere_yet_is_waited_for() {
    let lab = Lab::new();
    let group = lab.cloud.group("web", &rules(&lab));
    let instance = lab.cloud.instance("web", &[&[&group]]);
    for action in
        ["RevokeSecurityGroupEgress", "ModifyNetworkInterfaceAttribute", "AuthorizeSecurityGroupIngress"]
    {
        lab.ec2.fail(action, 1, refused(400, "InvalidGroup.NotFound"));
    }
    lab.lock(&instance);
    lab.release(&instance).unwrap();
}

/// Repeats an act, with each of its changes going wrong once in turn, and then once more without a fault.
fn with_every_change_going_wrong(act: impl Fn(&Lab, &str) -> bool, done: impl Fn(&Lab, &str)) -> usize {
    let mut lab = Lab::new();
    let some = [
        RuleSpec::tcp(20, 25, "0.0.0.0/0").described("ssh and more").tagged("team", "infra"),
        RuleSpec::tcp(22, 22, "2001:db8::/32"),
    ];
    let group = lab.cloud.group("web", &some);
    let instance = lab.cloud.instance("web", &[&[&group]]);
    let before = lab.cloud.rules(&group);
    let others = [Fault::Dropped, throttled(), refused(500, "InternalError"), refused(400, "ExpiredToken")];
    for number in 1.. {
        for fault in [Fault::Lost, others[number % others.len()].clone()] {
            lab.ec2.fail_change(number, fault.clone());
            let first = act(&lab, &instance);
            if !lab.ec2.has_failed() {
                assert!(first);
                return number - 1;
            }
            assert!(!first, "{number} {fault:?}: what went wrong is said");
            assert!(act(&lab, &instance), "{number} {fault:?}: asking again is enough");
            done(&lab, &instance);
            assert_eq!(
                (lab.cloud.rules(&group), lab.cloud.groups_of_postern()),
                (before.clone(), BTreeSet::new())
            );
            // With full buckets of calls.
            lab.restart();
        }
    }
    0
}

#[test]
fn i8_a_lockdown_any_of_whose_changes_goes_wrong_is_done_by_asking_again() {
    let changes = with_every_change_going_wrong(
        |lab, instance| lab.try_lock(instance, Consent::all()).is_ok(),
        |lab, instance| {
            assert_eq!(lab.observe(&lab.target(instance)).unwrap().drift, []);
            lab.release(instance).unwrap();
        },
    );
    assert!(changes >= 8, "{changes}");
}

/// Locks or releases, with a death at every point between two changes, and lets a new provider's sweep finish it.
fn killed_everywhere(act: fn(&Lab, &str), prepare: fn(&Lab, &str), check: fn(&Lab, &str, &str, &Snapshot)) {
    let mut lab = Lab::new();
    // Those that a lockdown splits: the others are only more of the same to make.
    let rules: Vec<_> = rules(&lab).into_iter().filter(|rule| exposes(&[rule.clone()].into(), 22)).collect();
    let mut points = 0;
    'points: for change in 1.. {
        for when in [When::Before, When::After] {
            let group = lab.cloud.group(&format!("web-{change}-{when:?}"), &rules);
            let instance = lab.cloud.instance("web", &[&[&group]]);
            let before = lab.cloud.rules(&group);
            prepare(&lab, &instance);
            lab.ec2.halt_at(CrashPoint { change, when });
            act(&lab, &instance);
            let died = lab.ec2.has_halted();
            lab.ec2.go_on();
            if !died {
                break 'points;
            }
            points += 1;
            lab.restart();
            // What a broker's sweep does with what it finds.
            let target = lab.target(&instance);
            for sighting in lab.sweep().sightings.into_iter().filter(|sighting| sighting.target == target) {
                let drift = sighting.held.unwrap().drift;
                assert!(drift.iter().all(|drift| drift.repairable), "{change} {when:?}: {drift:?}");
                if !drift.is_empty() {
                    lab.repair(&target).unwrap();
                }
            }
            check(&lab, &instance, &group, &before);
            // The next one finds the world as small as this one did.
            lab.cloud.terminate(&instance);
            lab.cloud.delete_group(&group);
        }
    }
    assert!(points > 10, "{points} points are too few to be all");
}

/// Runs work until it is done, or until EC2 answers nothing any more.
fn until_halted<T: Send + 'static>(lab: &Lab, work: impl Future<Output = T> + Send + 'static) {
    let running = lab.net.hub.netns().start(async move {
        tokio::select! {
            _ = work => {}
            () = std::future::pending() => {}
        }
    });
    wait_until("the point or the end", STEP_TIMEOUT * 3, || running.is_done() || lab.ec2.has_halted());
    running.stop();
}

#[test]
fn i8_a_lockdown_that_is_killed_anywhere_is_finished_by_the_next_sweep() {
    let lock = |lab: &Lab, instance: &str| {
        let order = order(&lab.target(instance), Consent::all());
        let aws = std::sync::Arc::clone(&lab.aws);
        until_halted(lab, async move { aws.lockdown(&order).await });
    };
    killed_everywhere(
        lock,
        |_, _| {},
        |lab, instance, group, before| {
            let locked = lab.cloud.rules(group);
            if lab.cloud.own_group(instance).is_none() {
                assert_eq!(locked, *before, "nothing was begun");
            } else {
                assert!(
                    !exposes(&locked, 22) && !exposes(&locked, 3389) && exposes(&locked, 443),
                    "{locked:#?}"
                );
                assert_eq!(lab.observe(&lab.target(instance)).unwrap().drift, []);
            }
            lab.release(instance).unwrap();
            assert_eq!(lab.cloud.rules(group), *before);
        },
    );
}

#[test]
fn i8_a_release_that_is_killed_anywhere_is_finished_by_the_next_sweep() {
    let release = |lab: &Lab, instance: &str| {
        let (aws, target) = (std::sync::Arc::clone(&lab.aws), lab.target(instance));
        until_halted(lab, async move { aws.release(&target).await });
    };
    killed_everywhere(
        release,
        |lab, instance| drop(lab.lock(instance)),
        |lab, instance, group, before| {
            if lab.cloud.own_group(instance).is_some() {
                lab.release(instance).unwrap();
            }
            assert_eq!(lab.cloud.rules(group), *before);
        },
    );
}
