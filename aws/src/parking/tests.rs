//! Tests of the plan, carried out on a group in memory that refuses what EC2 refuses.

use proptest::prelude::*;

use super::*;
use crate::assess::exposures;

const DEPLOYMENT: &str = "postern";
/// Room for every piece of any rules here, beside the originals: with less, a plan may take away first, or is refused.
const ROOM: usize = 1000;

/// A group in memory.
#[derive(Debug, Clone)]
struct FakeGroup {
    customer_group: CustomerGroup,
    made: usize,
}

impl FakeGroup {
    fn new(rules: Vec<GroupRule>) -> Self {
        let customer_group =
            CustomerGroup { id: "sg-1".into(), exists: true, vpc: "vpc-1".into(), rules, parked: Vec::new() };
        Self { customer_group, made: 0 }
    }

    /// Plans for these holders, carries out the first `steps` of the plan, and returns the number that it
    /// had.
    fn go(&mut self, holders: &Holders, steps: usize) -> usize {
        let plan = plan(&self.customer_group, holders, DEPLOYMENT, &quota(ROOM)).unwrap();
        let count = plan.len();
        plan.into_iter().take(steps).for_each(|step| self.step(step));
        count
    }

    fn step(&mut self, step: GroupStep) {
        match step {
            GroupStep::MakeParked(number, holders) => {
                let twice = self.customer_group.parked.iter().any(|parked| parked.number == number);
                assert!(!twice, "a second group of the same name");
                let id = format!("sg-parked-{number}");
                let made = ParkedGroup { id, number, rules: Vec::new(), holders, other_tags: 3 };
                assert!(made.holders.len() + 3 <= tags::MAX_TAGS, "TagLimitExceeded");
                self.customer_group.parked.push(made);
                self.customer_group.parked.sort_by_key(|parked| parked.number);
            }
            GroupStep::Hold(number, instance, ports) => {
                let parked = self.parked(number);
                parked.holders.insert(instance, ports);
                assert!(parked.holders.len() + 3 <= tags::MAX_TAGS, "TagLimitExceeded");
            }
            GroupStep::ReleaseHolder(number, instance) => {
                self.parked(number).holders.remove(&instance).unwrap();
            }
            GroupStep::Park(number, rule) => {
                let rule = self.make(&format!("sg-parked-{number}"), rule);
                add(&mut self.parked(number).rules, rule);
            }
            GroupStep::Add(rule) => {
                let rule = self.make("sg-1", rule);
                add(&mut self.customer_group.rules, rule);
            }
            GroupStep::Remove(rule) => remove(&mut self.customer_group.rules, &rule),
            GroupStep::Unpark(rule) => {
                let parked = self.customer_group.parked.iter_mut().find(|parked| parked.id == rule.group);
                remove(&mut parked.unwrap().rules, &rule);
            }
            GroupStep::DeleteParked(number) => {
                self.customer_group.parked.retain(|parked| parked.number != number);
            }
        }
    }

    fn parked(&mut self, number: usize) -> &mut ParkedGroup {
        self.customer_group.parked.iter_mut().find(|parked| parked.number == number).unwrap()
    }

    fn make(&mut self, group: &str, rule: NewGroupRule) -> GroupRule {
        self.made += 1;
        let NewGroupRule { traffic, source, description, tags } = rule;
        assert!(tags.len() <= tags::MAX_TAGS && !tags.keys().any(|key| tags::is_reserved(key)));
        GroupRule {
            id: format!("sgr-made-{}", self.made),
            group: group.into(),
            traffic,
            source,
            description,
            tags,
        }
    }

    /// Returns the rules of the group, without their ids.
    fn rules(&self) -> BTreeSet<NewGroupRule> {
        self.customer_group.rules.iter().map(plain).collect()
    }

    fn admits(&self, protocol: postern_core::Protocol, port: u16) -> BTreeSet<RuleSource> {
        let rules = self.customer_group.rules.iter().filter(|rule| rule.traffic.admits(protocol, port));
        rules.map(|rule| rule.source.clone()).collect()
    }
}

fn plain(rule: &GroupRule) -> NewGroupRule {
    let GroupRule { traffic, source, description, tags, .. } = rule.clone();
    NewGroupRule { traffic, source, description, tags }
}

fn add(rules: &mut Vec<GroupRule>, rule: GroupRule) {
    let twice = rules.iter().any(|there| there.identity() == rule.identity());
    assert!(!twice, "InvalidPermission.Duplicate: {rule}");
    rules.push(rule);
}

fn remove(rules: &mut Vec<GroupRule>, rule: &GroupRule) {
    let before = rules.len();
    rules.retain(|there| there.id != rule.id);
    assert_eq!(rules.len(), before - 1, "InvalidSecurityGroupRuleId.NotFound: {rule}");
}

fn quota(rules: usize) -> Quota {
    Quota { rules, prefix_lists: [("pl-1".to_owned(), 5)].into() }
}

fn ports(texts: &[&str]) -> BTreeSet<ProtectedPort> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn holders(some: &[(&str, &[&str])]) -> Holders {
    some.iter().map(|(instance, texts)| ((*instance).to_owned(), ports(texts))).collect()
}

fn tcp(id: &str, from: u16, to: u16, source: &str) -> GroupRule {
    GroupRule {
        id: id.into(),
        group: "sg-1".into(),
        traffic: Ec2Traffic::Ports { protocol: postern_core::Protocol::Tcp, from, to },
        source: RuleSource::Prefix(source.parse().unwrap()),
        description: format!("what {id} is for"),
        tags: [("team".to_owned(), id.to_owned())].into(),
    }
}

#[test]
fn i6_a_release_puts_back_every_rule_with_its_description_and_tags() {
    let mut fake = FakeGroup::new(vec![
        tcp("sgr-1", 20, 25, "0.0.0.0/0"),
        tcp("sgr-2", 443, 443, "0.0.0.0/0"),
        tcp("sgr-3", 22, 22, "10.0.0.0/8"),
    ]);
    let before = fake.rules();
    fake.go(&holders(&[("i-1", &["tcp/22"])]), usize::MAX);
    assert_eq!(exposures(&fake.customer_group.rules, &ports(&["tcp/22"])), []);
    assert_eq!(fake.customer_group.rules.len(), 3, "443, 20-21 and 23-25");
    fake.go(&Holders::new(), usize::MAX);
    assert_eq!((fake.rules(), fake.customer_group.parked), (before, Vec::new()));
}

#[test]
fn the_ports_of_a_group_are_those_of_all_its_holders_and_the_last_release_restores() {
    let mut fake =
        FakeGroup::new(vec![tcp("sgr-1", 0, 65535, "0.0.0.0/0"), tcp("sgr-2", 3389, 3389, "10.0.0.0/8")]);
    let before = fake.rules();
    let (one, two) = (("i-1", &["tcp/22"][..]), ("i-2", &["tcp/22", "tcp/3389"][..]));
    fake.go(&holders(&[one]), usize::MAX);
    assert!(!fake.admits(postern_core::Protocol::Tcp, 3389).is_empty());
    fake.go(&holders(&[one, two]), usize::MAX);
    assert!(fake.admits(postern_core::Protocol::Tcp, 3389).is_empty());
    fake.go(&holders(&[one]), usize::MAX);
    let parked: Vec<_> = fake.customer_group.copies().map(|rule| rule.description.clone()).collect();
    assert_eq!(parked, ["what sgr-1 is for"], "the rule for 3389 is back in its place");
    assert!(fake.rules().contains(&plain(&tcp("sgr-2", 3389, 3389, "10.0.0.0/8"))));
    fake.go(&Holders::new(), usize::MAX);
    assert_eq!(fake.rules(), before);
}

#[test]
fn an_original_that_is_added_again_is_shut_again_and_restored_once() {
    let mut fake = FakeGroup::new(vec![tcp("sgr-1", 22, 22, "0.0.0.0/0")]);
    let locked = holders(&[("i-1", &["tcp/22"])]);
    fake.go(&locked, usize::MAX);
    fake.customer_group.rules.push(tcp("sgr-9", 22, 22, "0.0.0.0/0"));
    fake.go(&locked, usize::MAX);
    assert_eq!(fake.rules(), BTreeSet::new());
    fake.go(&Holders::new(), usize::MAX);
    assert_eq!(fake.rules(), [plain(&tcp("sgr-1", 22, 22, "0.0.0.0/0"))].into());
}

#[test]
fn a_lockdown_that_exceeds_the_quota_is_refused_with_the_numbers() {
    let rules: Vec<GroupRule> =
        (0..20).map(|n| tcp(&format!("sgr-{n}"), 0, 65535, &format!("10.{n}.0.0/16"))).collect();
    let fake = FakeGroup::new(rules);
    let usual = holders(&[("i-1", &["tcp/22", "tcp/3389", "tcp/5985", "tcp/5986"])]);
    let refused = plan(&fake.customer_group, &usual, DEPLOYMENT, &quota(60)).unwrap_err();
    assert_eq!(refused, DoesNotFit::Rules { group: "sg-1".into(), needed: 80, most: 60 });
    // 100 at once would be too many, 80 in the end are not: removals go first.
    let steps = plan(&fake.customer_group, &usual, DEPLOYMENT, &quota(80)).unwrap();
    let place = |is: fn(&GroupStep) -> bool| steps.iter().position(is).unwrap();
    assert!(
        place(|step| matches!(step, GroupStep::Remove(_))) < place(|step| matches!(step, GroupStep::Add(_)))
    );

    let list = |rules: Vec<GroupRule>| {
        let listed = |rule: GroupRule| GroupRule { source: RuleSource::PrefixList("pl-1".into()), ..rule };
        FakeGroup::new(rules.into_iter().map(listed).collect())
    };
    let fake = list(vec![tcp("sgr-1", 20, 25, "10.0.0.0/8")]);
    let refused =
        plan(&fake.customer_group, &holders(&[("i-1", &["tcp/22"])]), DEPLOYMENT, &quota(9)).unwrap_err();
    assert_eq!(refused, DoesNotFit::Rules { group: "sg-1".into(), needed: 10, most: 9 });
}

#[test]
fn i6_a_rule_with_too_many_tags_is_refused_before_anything_is_touched() {
    let tags: Tags = (0..48).map(|n| (format!("key-{n}"), String::new())).collect();
    let fake = FakeGroup::new(vec![GroupRule { tags, ..tcp("sgr-1", 22, 22, "10.0.0.0/8") }]);
    let refused = plan(&fake.customer_group, &holders(&[("i-1", &["tcp/22"])]), DEPLOYMENT, &quota(60));
    assert!(matches!(refused, Err(DoesNotFit::Tags { count: 48, .. })), "{refused:?}");
}

#[test]
fn rules_parked_for_a_deleted_group_go_with_its_last_holder() {
    let mut fake = FakeGroup::new(vec![tcp("sgr-1", 22, 22, "0.0.0.0/0")]);
    let both = holders(&[("i-1", &["tcp/22"]), ("i-2", &["tcp/22"])]);
    fake.go(&both, usize::MAX);
    (fake.customer_group.exists, fake.customer_group.rules) = (false, Vec::new());
    let plan = |fake: &FakeGroup, holders: &Holders| {
        plan(&fake.customer_group, holders, DEPLOYMENT, &quota(60)).unwrap()
    };
    assert_eq!(plan(&fake, &holders(&[("i-1", &["tcp/22"])])), [GroupStep::ReleaseHolder(1, "i-2".into())]);
    assert_eq!(plan(&fake, &Holders::new()), [GroupStep::DeleteParked(1)]);
}

#[test]
fn i6_pieces_whose_originals_were_deleted_are_kept_and_split_like_any_rule() {
    let mut fake =
        FakeGroup::new(vec![tcp("sgr-1", 20, 25, "0.0.0.0/0"), tcp("sgr-2", 0, 443, "10.0.0.0/8")]);
    fake.go(&holders(&[("i-1", &["tcp/22"])]), usize::MAX);
    fake.customer_group.parked.clear();
    let pieces = fake.rules();
    assert_eq!(fake.go(&holders(&[("i-1", &["tcp/22"])]), usize::MAX), 0, "what is left of them stays");
    fake.go(&holders(&[("i-1", &["tcp/22", "tcp/24"])]), usize::MAX);
    assert!(fake.admits(postern_core::Protocol::Tcp, 24).is_empty());
    assert_eq!(fake.admits(postern_core::Protocol::Tcp, 25).len(), 2);
    fake.go(&Holders::new(), usize::MAX);
    let traffic = |rules: &BTreeSet<NewGroupRule>| -> Vec<_> {
        rules.iter().map(|rule| (rule.traffic.clone(), rule.source.clone())).collect()
    };
    assert_eq!(traffic(&fake.rules()), traffic(&pieces));
}

#[test]
fn a_widened_piece_is_narrowed_and_a_customers_rule_is_left_alone() {
    let mut fake = FakeGroup::new(vec![tcp("sgr-1", 20, 25, "0.0.0.0/0")]);
    let held = holders(&[("i-1", &["tcp/22"])]);
    fake.go(&held, usize::MAX);
    let before = fake.rules();
    fake.customer_group.rules[0].traffic =
        Ec2Traffic::Ports { protocol: postern_core::Protocol::Tcp, from: 0, to: u16::MAX };
    let unrelated = tcp("sgr-9", 22, 22, "10.0.0.0/8");
    fake.customer_group.rules.push(unrelated.clone());
    // An original that is back is shut again: the lockdown recorded it.
    fake.customer_group.rules.push(tcp("sgr-8", 20, 25, "0.0.0.0/0"));
    let mut customer_group = fake.customer_group.clone();
    customer_group.without_exposing(&ports(&["tcp/22"]), DEPLOYMENT);
    plan(&customer_group, &held, DEPLOYMENT, &quota(60))
        .unwrap()
        .into_iter()
        .for_each(|step| fake.step(step));
    assert_eq!(fake.rules(), before.into_iter().chain([plain(&unrelated)]).collect());
}

#[test]
fn all_of_icmp_is_not_taken_for_one_kind_of_it() {
    let ping = Ec2Traffic::Other { protocol: "icmp".into(), kind: (8, 0) };
    let all = GroupRule { traffic: Ec2Traffic::All, ..tcp("sgr-1", 0, 0, "10.0.0.0/8") };
    let ping = GroupRule { traffic: ping, ..tcp("sgr-2", 0, 0, "10.0.0.0/8") };
    let mut fake = FakeGroup::new(vec![all, ping]);
    let before = fake.rules();
    fake.go(&holders(&[("i-1", &["tcp/22"])]), usize::MAX);
    let words: Vec<_> = fake.customer_group.rules.iter().map(|rule| rule.traffic.to_string()).collect();
    assert!(words.contains(&"protocol icmp".to_owned()), "{words:?}");
    assert!(words.contains(&"protocol icmp of type 8 and code 0".to_owned()), "{words:?}");
    fake.go(&Holders::new(), usize::MAX);
    assert_eq!(fake.rules(), before);
}

#[test]
fn any_number_of_instances_may_hold_one_group_and_any_number_of_rules_be_parked() {
    let mut fake = FakeGroup::new(vec![tcp("sgr-1", 22, 22, "0.0.0.0/0")]);
    let before = fake.rules();
    let mut held = Holders::new();
    for number in 0..130 {
        held.insert(format!("i-{number:03}"), ports(&["tcp/22"]));
        fake.go(&held, usize::MAX);
        assert_eq!(fake.go(&held, usize::MAX), 0, "once is enough");
    }
    assert_eq!((fake.customer_group.holders(), fake.customer_group.parked.len()), (held.clone(), 4));
    // More originals than one group has room for.
    for round in 0..2 {
        for number in 0..45 {
            let (id, source) = (format!("sgr-{round}-{number}"), format!("10.{round}.{number}.0/24"));
            fake.customer_group.rules.push(tcp(&id, 22, 22, &source));
        }
        let steps = plan(&fake.customer_group, &held, DEPLOYMENT, &quota(60)).unwrap();
        steps.into_iter().for_each(|step| fake.step(step));
    }
    assert_eq!(fake.customer_group.copies().count(), 91);
    assert!(fake.customer_group.parked.iter().all(|parked| parked.rules.len() <= 60));
    // They do not fit back all at once, and the plan says so before it begins.
    let refused = plan(&fake.customer_group, &Holders::new(), DEPLOYMENT, &quota(60));
    assert_eq!(refused, Err(DoesNotFit::Release { group: "sg-1".into(), needed: 91, most: 60 }));
    held.retain(|instance, _| instance == "i-129");
    fake.go(&held, usize::MAX);
    assert_eq!(fake.customer_group.holders(), held);
    fake.go(&Holders::new(), usize::MAX);
    assert!(before.is_subset(&fake.rules()) && fake.customer_group.parked.is_empty());
}

#[test]
fn ports_that_do_not_fit_into_a_tag_and_lists_of_unknown_weight_are_refused_in_the_plan() {
    let fake = FakeGroup::new(vec![tcp("sgr-1", 1, 65535, "10.0.0.0/8")]);
    let many = (0..60).map(|number| format!("tcp/{}", 1000 + 2 * number).parse().unwrap()).collect();
    let refused = plan(&fake.customer_group, &[("i-1".to_owned(), many)].into(), DEPLOYMENT, &quota(1000));
    assert!(matches!(refused, Err(DoesNotFit::Ports { .. })), "{refused:?}");
    let listed = GroupRule { source: RuleSource::PrefixList("pl-2".into()), ..tcp("sgr-1", 20, 25, "::/0") };
    let fake = FakeGroup::new(vec![listed]);
    let refused = plan(&fake.customer_group, &holders(&[("i-1", &["tcp/22"])]), DEPLOYMENT, &quota(60));
    assert!(matches!(&refused, Err(DoesNotFit::List { list, .. }) if list == "pl-2"), "{refused:?}");
}

#[test]
fn losses_name_the_rule_and_the_tags_that_cannot_come_back() {
    let tags = [("aws:cloudformation:stack-id".to_owned(), "x".to_owned())].into();
    let all = GroupRule { traffic: Ec2Traffic::All, tags, ..tcp("sgr-1", 0, 0, "10.0.0.0/8") };
    let fake =
        FakeGroup::new(vec![all, tcp("sgr-2", 443, 443, "0.0.0.0/0"), tcp("sgr-3", 22, 22, "0.0.0.0/0")]);
    let losses = losses(&fake.customer_group, &holders(&[("i-1", &["tcp/22"])]), DEPLOYMENT);
    let ids: Vec<_> = losses.iter().map(|(rule, words)| (rule.id.as_str(), words.len())).collect();
    assert_eq!(ids, [("sgr-1", 2), ("sgr-3", 0)]);
    assert!(losses[0].1[1].contains("aws:cloudformation:stack-id"));
}

fn any_rules() -> impl Strategy<Value = Vec<GroupRule>> {
    let traffic = prop_oneof![
        Just(Ec2Traffic::All),
        Just(Ec2Traffic::Other { protocol: "50".into(), kind: (-1, -1) }),
        Just(Ec2Traffic::Other { protocol: "icmp".into(), kind: (8, 0) }),
        (any::<bool>(), 0u16..8, 0u16..8).prop_map(|(udp, from, length)| Ec2Traffic::Ports {
            protocol: if udp { postern_core::Protocol::Udp } else { postern_core::Protocol::Tcp },
            from,
            to: from + length,
        }),
    ];
    let source = prop_oneof![
        (0u8..3).prop_map(|n| RuleSource::Prefix(format!("10.{n}.0.0/16").parse().unwrap())),
        Just(RuleSource::Prefix("::/0".parse().unwrap())),
        Just(RuleSource::PrefixList("pl-1".into())),
        Just(RuleSource::Group("sg-1".into())),
    ];
    prop::collection::btree_set((traffic, source), 0..6).prop_map(|rules| {
        let rule = |(number, (traffic, source)): (usize, (Ec2Traffic, RuleSource))| {
            let id = format!("sgr-{number}");
            GroupRule { traffic, source, ..tcp(&id, 0, 0, "10.0.0.0/8") }
        };
        rules.into_iter().enumerate().map(rule).collect()
    })
}

fn any_holders() -> impl Strategy<Value = Holders> {
    let ports = prop::collection::btree_set(1u16..10, 1..4).prop_map(|numbers| {
        numbers.into_iter().map(|number| format!("tcp/{number}").parse().unwrap()).collect()
    });
    prop::collection::btree_map(prop_oneof![Just("i-1".to_owned()), Just("i-2".to_owned())], ports, 0..3)
}

proptest! {
    #[test]
    fn i8_any_interrupted_locks_and_releases_end_in_the_state_of_the_last_plan(
        rules in any_rules(),
        turns in prop::collection::vec((any_holders(), 0usize..20), 0..5),
        last in any_holders(),
    ) {
        let mut fake = FakeGroup::new(rules.clone());
        let before = fake.rules();
        // Each turn may be interrupted anywhere, and the next may want other holders.
        for (holders, steps) in turns {
            fake.go(&holders, steps);
        }
        fake.go(&last, usize::MAX);
        prop_assert_eq!(fake.go(&last, usize::MAX), 0, "once is enough");
        let ports: BTreeSet<ProtectedPort> = last.values().flatten().copied().collect();
        prop_assert_eq!(exposures(&fake.customer_group.rules, &ports), vec![]);
        let straight = {
            let mut fake = FakeGroup::new(rules.clone());
            fake.go(&last, usize::MAX);
            fake.rules()
        };
        let traffic = |rules: &BTreeSet<NewGroupRule>| {
            rules.iter().map(|rule| (rule.traffic.clone(), rule.source.clone())).collect::<BTreeSet<_>>()
        };
        prop_assert_eq!(traffic(&fake.rules()), traffic(&straight), "the way there does not matter");
        fake.go(&Holders::new(), usize::MAX);
        prop_assert_eq!(fake.rules(), before);
        prop_assert_eq!(fake.customer_group.parked, Vec::new());
    }

    #[test]
    fn i6_unprotected_ports_stay_open_after_every_step(rules in any_rules(), holders in any_holders()) {
        let mut fake = FakeGroup::new(rules);
        let ports: BTreeSet<ProtectedPort> = holders.values().flatten().copied().collect();
        let open: Vec<_> = (1u16..20)
            .filter(|number| ports.iter().all(|port| port.port.get() != *number))
            .map(|number| (number, fake.admits(postern_core::Protocol::Tcp, number)))
            .collect();
        let steps = plan(&fake.customer_group, &holders, DEPLOYMENT, &quota(ROOM)).unwrap();
        for step in steps {
            fake.step(step);
            for (number, sources) in &open {
                prop_assert_eq!(&fake.admits(postern_core::Protocol::Tcp, *number), sources);
            }
        }
    }
}
