//! The plan, carried out on a group in memory that refuses what EC2 refuses.

use proptest::prelude::*;

use super::*;
use crate::assess::exposures;

const DEPLOYMENT: &str = "postern";
/// Room for every piece of any rules here, beside the originals: with less, a plan may take away first, or is refused.
const ROOM: usize = 1000;

/// A group in memory.
#[derive(Debug, Clone)]
struct World {
    ward: Ward,
    made: usize,
}

impl World {
    fn new(rules: Vec<Rule>) -> Self {
        let ward = Ward { group: "sg-1".into(), exists: true, vpc: "vpc-1".into(), rules, parked: None };
        Self { ward, made: 0 }
    }

    /// Plans for these holders, and does the first steps of the plan. How many steps the plan had.
    fn go(&mut self, holders: &Holders, steps: usize) -> usize {
        let plan = plan(&self.ward, holders, DEPLOYMENT, &quota(ROOM)).unwrap();
        let count = plan.len();
        plan.into_iter().take(steps).for_each(|step| self.step(step));
        count
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::MakeParked(holders) => {
                assert!(self.ward.parked.is_none(), "a second group of the same name");
                self.ward.parked = Some(Parked { id: "sg-parked".into(), rules: Vec::new(), holders });
            }
            Step::Hold(instance, ports) => {
                self.parked().holders.insert(instance, ports);
            }
            Step::LetGo(instance) => {
                self.parked().holders.remove(&instance).unwrap();
            }
            Step::Park(rule) => {
                let rule = self.make("sg-parked", rule);
                add(&mut self.parked().rules, rule);
            }
            Step::Add(rule) => {
                let rule = self.make("sg-1", rule);
                add(&mut self.ward.rules, rule);
            }
            Step::Remove(rule) => remove(&mut self.ward.rules, &rule),
            Step::Unpark(rule) => remove(&mut self.parked().rules, &rule),
            Step::DeleteParked => self.ward.parked = None,
        }
    }

    fn parked(&mut self) -> &mut Parked {
        self.ward.parked.as_mut().unwrap()
    }

    fn make(&mut self, group: &str, rule: NewRule) -> Rule {
        self.made += 1;
        let NewRule { traffic, source, description, tags } = rule;
        assert!(tags.len() <= tags::MOST && !tags.keys().any(|key| tags::is_reserved(key)));
        Rule {
            id: format!("sgr-made-{}", self.made),
            group: group.into(),
            traffic,
            source,
            description,
            tags,
        }
    }

    /// What the group holds, but for the ids.
    fn rules(&self) -> BTreeSet<NewRule> {
        self.ward.rules.iter().map(plain).collect()
    }

    fn admits(&self, protocol: postern_core::Protocol, port: u16) -> BTreeSet<Source> {
        let rules = self.ward.rules.iter().filter(|rule| rule.traffic.admits(protocol, port));
        rules.map(|rule| rule.source.clone()).collect()
    }
}

fn plain(rule: &Rule) -> NewRule {
    let Rule { traffic, source, description, tags, .. } = rule.clone();
    NewRule { traffic, source, description, tags }
}

fn add(rules: &mut Vec<Rule>, rule: Rule) {
    let twice = rules.iter().any(|there| there.identity() == rule.identity());
    assert!(!twice, "InvalidPermission.Duplicate: {rule}");
    rules.push(rule);
}

fn remove(rules: &mut Vec<Rule>, rule: &Rule) {
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

fn tcp(id: &str, from: u16, to: u16, source: &str) -> Rule {
    Rule {
        id: id.into(),
        group: "sg-1".into(),
        traffic: Traffic::Ports { protocol: postern_core::Protocol::Tcp, from, to },
        source: Source::Prefix(source.parse().unwrap()),
        description: format!("what {id} is for"),
        tags: [("team".to_owned(), id.to_owned())].into(),
    }
}

#[test]
fn i6_a_release_puts_back_every_rule_with_its_description_and_tags() {
    let mut world = World::new(vec![
        tcp("sgr-1", 20, 25, "0.0.0.0/0"),
        tcp("sgr-2", 443, 443, "0.0.0.0/0"),
        tcp("sgr-3", 22, 22, "10.0.0.0/8"),
    ]);
    let before = world.rules();
    world.go(&holders(&[("i-1", &["tcp/22"])]), usize::MAX);
    assert_eq!(exposures(&world.ward.rules, &ports(&["tcp/22"])), []);
    assert_eq!(world.ward.rules.len(), 3, "443, 20-21 and 23-25");
    world.go(&Holders::new(), usize::MAX);
    assert_eq!((world.rules(), world.ward.parked), (before, None));
}

#[test]
fn the_ports_of_a_group_are_those_of_all_its_holders_and_the_last_release_restores() {
    let mut world =
        World::new(vec![tcp("sgr-1", 0, 65535, "0.0.0.0/0"), tcp("sgr-2", 3389, 3389, "10.0.0.0/8")]);
    let before = world.rules();
    let (one, two) = (("i-1", &["tcp/22"][..]), ("i-2", &["tcp/22", "tcp/3389"][..]));
    world.go(&holders(&[one]), usize::MAX);
    assert!(!world.admits(postern_core::Protocol::Tcp, 3389).is_empty());
    world.go(&holders(&[one, two]), usize::MAX);
    assert!(world.admits(postern_core::Protocol::Tcp, 3389).is_empty());
    world.go(&holders(&[one]), usize::MAX);
    let parked: Vec<_> = world.parked().rules.iter().map(|rule| rule.description.clone()).collect();
    assert_eq!(parked, ["what sgr-1 is for"], "the rule for 3389 is back in its place");
    assert!(world.rules().contains(&plain(&tcp("sgr-2", 3389, 3389, "10.0.0.0/8"))));
    world.go(&Holders::new(), usize::MAX);
    assert_eq!(world.rules(), before);
}

#[test]
fn an_original_that_somebody_adds_again_is_shut_again_and_restored_once() {
    let mut world = World::new(vec![tcp("sgr-1", 22, 22, "0.0.0.0/0")]);
    let locked = holders(&[("i-1", &["tcp/22"])]);
    world.go(&locked, usize::MAX);
    world.ward.rules.push(tcp("sgr-9", 22, 22, "0.0.0.0/0"));
    world.go(&locked, usize::MAX);
    assert_eq!(world.rules(), BTreeSet::new());
    world.go(&Holders::new(), usize::MAX);
    assert_eq!(world.rules(), [plain(&tcp("sgr-1", 22, 22, "0.0.0.0/0"))].into());
}

#[test]
fn what_does_not_fit_the_quota_is_refused_with_the_numbers() {
    let rules: Vec<Rule> =
        (0..20).map(|n| tcp(&format!("sgr-{n}"), 0, 65535, &format!("10.{n}.0.0/16"))).collect();
    let world = World::new(rules);
    let usual = holders(&[("i-1", &["tcp/22", "tcp/3389", "tcp/5985", "tcp/5986"])]);
    let refused = plan(&world.ward, &usual, DEPLOYMENT, &quota(60)).unwrap_err();
    assert_eq!(refused, NoRoom::Rules { group: "sg-1".into(), needed: 80, most: 60 });
    // 100 at once would be too many, 80 in the end are not: what goes, goes first.
    let steps = plan(&world.ward, &usual, DEPLOYMENT, &quota(80)).unwrap();
    let place = |is: fn(&Step) -> bool| steps.iter().position(is).unwrap();
    assert!(place(|step| matches!(step, Step::Remove(_))) < place(|step| matches!(step, Step::Add(_))));

    let list = |rules: Vec<Rule>| {
        let listed = |rule: Rule| Rule { source: Source::PrefixList("pl-1".into()), ..rule };
        World::new(rules.into_iter().map(listed).collect())
    };
    let world = list(vec![tcp("sgr-1", 20, 25, "10.0.0.0/8")]);
    let refused = plan(&world.ward, &holders(&[("i-1", &["tcp/22"])]), DEPLOYMENT, &quota(9)).unwrap_err();
    assert_eq!(refused, NoRoom::Rules { group: "sg-1".into(), needed: 10, most: 9 });
}

#[test]
fn i6_a_rule_with_too_many_tags_is_refused_before_anything_is_touched() {
    let tags: Tags = (0..48).map(|n| (format!("key-{n}"), String::new())).collect();
    let world = World::new(vec![Rule { tags, ..tcp("sgr-1", 22, 22, "10.0.0.0/8") }]);
    let refused = plan(&world.ward, &holders(&[("i-1", &["tcp/22"])]), DEPLOYMENT, &quota(60));
    assert!(matches!(refused, Err(NoRoom::Tags { count: 48, .. })), "{refused:?}");
}

#[test]
fn what_is_parked_for_a_group_that_is_gone_goes_with_its_last_holder() {
    let mut world = World::new(vec![tcp("sgr-1", 22, 22, "0.0.0.0/0")]);
    let both = holders(&[("i-1", &["tcp/22"]), ("i-2", &["tcp/22"])]);
    world.go(&both, usize::MAX);
    (world.ward.exists, world.ward.rules) = (false, Vec::new());
    let plan = |world: &World, holders: &Holders| plan(&world.ward, holders, DEPLOYMENT, &quota(60)).unwrap();
    assert_eq!(plan(&world, &holders(&[("i-1", &["tcp/22"])])), [Step::LetGo("i-2".into())]);
    assert_eq!(plan(&world, &Holders::new()), [Step::DeleteParked]);
}

#[test]
fn i6_pieces_whose_originals_somebody_deleted_are_kept_and_split_like_any_rule() {
    let mut world = World::new(vec![tcp("sgr-1", 20, 25, "0.0.0.0/0"), tcp("sgr-2", 0, 443, "10.0.0.0/8")]);
    world.go(&holders(&[("i-1", &["tcp/22"])]), usize::MAX);
    world.ward.parked = None;
    let pieces = world.rules();
    assert_eq!(world.go(&holders(&[("i-1", &["tcp/22"])]), usize::MAX), 0, "what is left of them stays");
    world.go(&holders(&[("i-1", &["tcp/22", "tcp/24"])]), usize::MAX);
    assert!(world.admits(postern_core::Protocol::Tcp, 24).is_empty());
    assert_eq!(world.admits(postern_core::Protocol::Tcp, 25).len(), 2);
    world.go(&Holders::new(), usize::MAX);
    let traffic = |rules: &BTreeSet<NewRule>| -> Vec<_> {
        rules.iter().map(|rule| (rule.traffic.clone(), rule.source.clone())).collect()
    };
    assert_eq!(traffic(&world.rules()), traffic(&pieces));
}

#[test]
fn a_piece_that_somebody_widened_is_put_right_and_a_rule_of_others_left_alone() {
    let mut world = World::new(vec![tcp("sgr-1", 20, 25, "0.0.0.0/0")]);
    let held = holders(&[("i-1", &["tcp/22"])]);
    world.go(&held, usize::MAX);
    let before = world.rules();
    world.ward.rules[0].traffic =
        Traffic::Ports { protocol: postern_core::Protocol::Tcp, from: 0, to: u16::MAX };
    let theirs = tcp("sgr-9", 22, 22, "10.0.0.0/8");
    world.ward.rules.push(theirs.clone());
    let mut ward = world.ward.clone();
    ward.without_exposing(&ports(&["tcp/22"]), DEPLOYMENT);
    plan(&ward, &held, DEPLOYMENT, &quota(60)).unwrap().into_iter().for_each(|step| world.step(step));
    assert_eq!(world.rules(), before.into_iter().chain([plain(&theirs)]).collect());
}

#[test]
fn all_of_icmp_is_not_taken_for_one_kind_of_it() {
    let ping = Traffic::Other { protocol: "icmp".into(), kind: (8, 0) };
    let all = Rule { traffic: Traffic::All, ..tcp("sgr-1", 0, 0, "10.0.0.0/8") };
    let ping = Rule { traffic: ping, ..tcp("sgr-2", 0, 0, "10.0.0.0/8") };
    let mut world = World::new(vec![all, ping]);
    let before = world.rules();
    world.go(&holders(&[("i-1", &["tcp/22"])]), usize::MAX);
    let words: Vec<_> = world.ward.rules.iter().map(|rule| rule.traffic.to_string()).collect();
    assert!(words.contains(&"protocol icmp".to_owned()), "{words:?}");
    assert!(words.contains(&"protocol icmp of type 8 and code 0".to_owned()), "{words:?}");
    world.go(&Holders::new(), usize::MAX);
    assert_eq!(world.rules(), before);
}

#[test]
fn losses_name_the_rule_and_the_tags_that_cannot_come_back() {
    let tags = [("aws:cloudformation:stack-id".to_owned(), "x".to_owned())].into();
    let all = Rule { traffic: Traffic::All, tags, ..tcp("sgr-1", 0, 0, "10.0.0.0/8") };
    let world = World::new(vec![all, tcp("sgr-2", 443, 443, "0.0.0.0/0"), tcp("sgr-3", 22, 22, "0.0.0.0/0")]);
    let losses = losses(&world.ward, &holders(&[("i-1", &["tcp/22"])]), DEPLOYMENT);
    let ids: Vec<_> = losses.iter().map(|(rule, words)| (rule.id.as_str(), words.len())).collect();
    assert_eq!(ids, [("sgr-1", 2), ("sgr-3", 0)]);
    assert!(losses[0].1[1].contains("aws:cloudformation:stack-id"));
}

fn any_rules() -> impl Strategy<Value = Vec<Rule>> {
    let traffic = prop_oneof![
        Just(Traffic::All),
        Just(Traffic::Other { protocol: "50".into(), kind: (-1, -1) }),
        Just(Traffic::Other { protocol: "icmp".into(), kind: (8, 0) }),
        (any::<bool>(), 0u16..8, 0u16..8).prop_map(|(udp, from, length)| Traffic::Ports {
            protocol: if udp { postern_core::Protocol::Udp } else { postern_core::Protocol::Tcp },
            from,
            to: from + length,
        }),
    ];
    let source = prop_oneof![
        (0u8..3).prop_map(|n| Source::Prefix(format!("10.{n}.0.0/16").parse().unwrap())),
        Just(Source::Prefix("::/0".parse().unwrap())),
        Just(Source::PrefixList("pl-1".into())),
        Just(Source::Group("sg-1".into())),
    ];
    prop::collection::btree_set((traffic, source), 0..6).prop_map(|rules| {
        let rule = |(number, (traffic, source)): (usize, (Traffic, Source))| {
            let id = format!("sgr-{number}");
            Rule { traffic, source, ..tcp(&id, 0, 0, "10.0.0.0/8") }
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
    fn i8_whatever_is_locked_released_and_interrupted_ends_where_it_should(
        rules in any_rules(),
        turns in prop::collection::vec((any_holders(), 0usize..20), 0..5),
        last in any_holders(),
    ) {
        let mut world = World::new(rules.clone());
        let before = world.rules();
        // Interrupted anywhere, and changed one's mind.
        for (holders, steps) in turns {
            world.go(&holders, steps);
        }
        world.go(&last, usize::MAX);
        prop_assert_eq!(world.go(&last, usize::MAX), 0, "once is enough");
        let ports: BTreeSet<ProtectedPort> = last.values().flatten().copied().collect();
        prop_assert_eq!(exposures(&world.ward.rules, &ports), vec![]);
        let straight = {
            let mut world = World::new(rules.clone());
            world.go(&last, usize::MAX);
            world.rules()
        };
        let traffic = |rules: &BTreeSet<NewRule>| {
            rules.iter().map(|rule| (rule.traffic.clone(), rule.source.clone())).collect::<BTreeSet<_>>()
        };
        prop_assert_eq!(traffic(&world.rules()), traffic(&straight), "the way there does not matter");
        world.go(&Holders::new(), usize::MAX);
        prop_assert_eq!(world.rules(), before);
        prop_assert_eq!(world.ward.parked, None);
    }

    #[test]
    fn i6_what_is_not_protected_is_never_interrupted_on_the_way(rules in any_rules(), holders in any_holders()) {
        let mut world = World::new(rules);
        let ports: BTreeSet<ProtectedPort> = holders.values().flatten().copied().collect();
        let open: Vec<_> = (1u16..20)
            .filter(|number| ports.iter().all(|port| port.port.get() != *number))
            .map(|number| (number, world.admits(postern_core::Protocol::Tcp, number)))
            .collect();
        let steps = plan(&world.ward, &holders, DEPLOYMENT, &quota(ROOM)).unwrap();
        for step in steps {
            world.step(step);
            for (number, sources) in &open {
                prop_assert_eq!(&world.admits(postern_core::Protocol::Tcp, *number), sources);
            }
        }
    }
}
