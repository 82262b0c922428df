//! Lockdown and release on groups in memory, judged packet by packet by a separate evaluation of the rules.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use postern_core::{ProtectedPort, TargetId};
use proptest::prelude::*;

use super::*;
use crate::id::ArmId;
use crate::machine::Machine;
use crate::names::RuleName;
use crate::network::{Door, Nsg, NsgRule, NsgTraffic, RulePeer, RuleProtocol, RuleState};
use crate::settings::Priorities;
use crate::snapshot::{LockedRules, MachineView};

const DEPLOYMENT: &str = "postern.example";
const PORTS: [u16; 3] = [22, 3389, 443];
const SENDERS: [&str; 3] = ["10.1.1.1", "192.0.2.7", "8.8.8.8"];

type Groups = BTreeMap<ArmId, Nsg>;

fn id(name: &str) -> ArmId {
    ArmId::new(&format!(
        "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/networkSecurityGroups/{name}"
    ))
    .unwrap()
}

fn ssh() -> BTreeSet<ProtectedPort> {
    ["tcp/22".parse().unwrap()].into()
}

fn ssh_and_rdp() -> BTreeSet<ProtectedPort> {
    ["tcp/22", "tcp/3389"].map(|port| port.parse().unwrap()).into()
}

/// A machine, by the last part of its address; behind `nsg-subnet`, and `nsg-nic` if there is one.
struct Subject {
    target: TargetId,
    machine: Machine,
    nothing: LockedRules,
}

impl Subject {
    fn new(number: u8, groups: &Groups) -> Self {
        let vm = format!("vm-{number}");
        let ip = IpAddr::from([10, 0, 0, number]);
        let passed: Vec<ArmId> =
            [id("nsg-subnet"), id("nsg-nic")].into_iter().filter(|id| groups.contains_key(id)).collect();
        Self {
            target: TargetId::from_segments(&["azure", "00000000-0000-0000-0000-00000000000a", "g", &vm])
                .unwrap(),
            machine: Machine {
                groups: passed.iter().cloned().collect(),
                doors: vec![Door { ip, application_groups: BTreeSet::new(), groups: passed }],
                ..Machine::default()
            },
            nothing: LockedRules::default(),
        }
    }

    fn view<'a>(&'a self, groups: &'a Groups) -> MachineView<'a> {
        MachineView {
            target: &self.target,
            deployment: DEPLOYMENT,
            machine: &self.machine,
            groups,
            firewall: None,
            locked_rules: &self.nothing,
        }
    }

    fn lock(
        &self,
        groups: &Groups,
        ports: &BTreeSet<ProtectedPort>,
        first: bool,
    ) -> Result<Vec<RuleWrite>, PlanError> {
        lock(&self.view(groups), ports, &Priorities::default(), first)
    }

    fn release(&self, groups: &Groups) -> Result<Vec<RuleWrite>, PlanError> {
        release(&self.view(groups), &Priorities::default()).map(release::ReleasePlan::writes)
    }

    /// Reports whether a packet gets in: in each group the first rule that applies to it decides.
    fn admits(&self, groups: &Groups, from: &str, port: u16) -> bool {
        let (from, to): (IpAddr, IpAddr) = (from.parse().unwrap(), self.machine.doors[0].ip);
        self.machine.groups.iter().all(|id| {
            let is_of = |peer: &RulePeer, ip: IpAddr| match peer {
                RulePeer::Any => true,
                RulePeer::Net(net) => net.contains(&ip),
                RulePeer::Tag(tag) => tag == "virtualnetwork" && ip.to_string().starts_with("10."),
                RulePeer::ApplicationGroup(_) | RulePeer::IpGroup(_) => false,
            };
            let decides = |rule: &&NsgRule| {
                rule.traffic.protocol != RuleProtocol::Other
                    && rule.traffic.ports.iter().any(|ports| ports.contains(&port))
                    && rule.traffic.sources.iter().any(|peer| is_of(peer, from))
                    && rule.traffic.destinations.iter().any(|peer| is_of(peer, to))
            };
            groups[id].rules.iter().find(decides).is_some_and(|rule| rule.allows)
        })
    }

    /// Every packet of interest, and whether it gets in.
    fn verdicts(&self, groups: &Groups) -> Vec<(&'static str, u16, bool)> {
        let packets = SENDERS.into_iter().flat_map(|from| PORTS.map(|port| (from, port)));
        packets.map(|(from, port)| (from, port, self.admits(groups, from, port))).collect()
    }
}

fn rule(name: &str, priority: u16, allows: bool, from: &str, to: &str, ports: &str) -> NsgRule {
    NsgRule {
        name: name.into(),
        priority,
        allows,
        traffic: NsgTraffic {
            protocol: RuleProtocol::Any,
            sources: vec![RulePeer::read(from)],
            any_source_port: true,
            destinations: vec![RulePeer::read(to)],
            ports: vec![crate::wire::ports(ports).unwrap()],
        },
        description: "customer".into(),
        is_default: priority >= 65_000,
        state: RuleState::InForce,
    }
}

fn group(name: &str, mut rules: Vec<NsgRule>) -> (ArmId, Nsg) {
    rules.push(rule("AllowVnetInBound", 65_000, true, "VirtualNetwork", "VirtualNetwork", "*"));
    rules.push(rule("DenyAllInBound", 65_500, false, "*", "*", "*"));
    rules.sort_by_key(|rule| (rule.is_default, rule.priority));
    (id(name), Nsg { id: id(name), flushes: false, rules })
}

fn with(rules: Vec<NsgRule>) -> Groups {
    [group("nsg-nic", rules)].into()
}

fn names(writes: &[RuleWrite]) -> Vec<String> {
    writes.iter().map(|write| write.change().to_string()).collect()
}

#[test]
fn without_a_rule_for_the_port_posterns_comes_first() {
    let groups = with(vec![rule("https", 300, true, "*", "*", "443")]);
    let subject = Subject::new(4, &groups);
    let writes = subject.lock(&groups, &ssh(), false).unwrap();
    assert!(
        matches!(&writes[..], [RuleWrite::Put(_, rule)] if rule.priority == 400 && !rule.allows),
        "{writes:?}"
    );
    let after = apply(&groups, &writes);
    assert!(!subject.admits(&after, "10.1.1.1", 22), "the network's own machines too");
    assert!(subject.admits(&after, "10.1.1.1", 443));
    assert_eq!(subject.view(&after).still_open(&ssh()), [""; 0]);
}

#[test]
fn a_rule_that_was_there_before_wins_and_is_named() {
    let groups = with(vec![rule("default-allow-ssh", 1000, true, "*", "*", "22")]);
    let subject = Subject::new(4, &groups);
    let writes = subject.lock(&groups, &ssh(), false).unwrap();
    assert!(matches!(&writes[..], [RuleWrite::Put(_, rule)] if rule.priority == 1001), "{writes:?}");
    let after = apply(&groups, &writes);
    assert!(subject.admits(&after, "8.8.8.8", 22));
    assert_eq!(
        subject.view(&after).still_open(&ssh()),
        ["rule default-allow-ssh (priority 1000) of nsg-nic allows tcp/22 from anyone"]
    );
}

#[test]
fn where_there_is_room_before_a_rule_nothing_of_it_is_changed() {
    let groups = with(vec![rule("ssh", 300, true, "*", "*", "22")]);
    let subject = Subject::new(4, &groups);
    let writes = subject.lock(&groups, &ssh(), true).unwrap();
    assert!(matches!(&writes[..], [RuleWrite::Put(_, rule)] if rule.priority == 299), "{writes:?}");
    assert!(!subject.admits(&apply(&groups, &writes), "8.8.8.8", 22));
    // If Postern's rule is there already, it is only moved.
    let behind = apply(&groups, &subject.lock(&groups, &ssh(), false).unwrap());
    let writes = subject.lock(&behind, &ssh(), true).unwrap();
    assert!(matches!(&writes[..], [RuleWrite::Put(_, rule)] if rule.priority == 299), "{writes:?}");
    assert!(!subject.admits(&apply(&behind, &writes), "8.8.8.8", 22));
}

#[test]
fn i6_where_there_is_no_room_a_rule_is_moved_with_a_note_and_comes_back() {
    let groups = with(vec![rule("ssh", 100, true, "*", "*", "22"), rule("web", 110, true, "*", "*", "443")]);
    let subject = Subject::new(4, &groups);
    let writes = subject.lock(&groups, &ssh(), true).unwrap();
    let words = names(&writes);
    assert!(words[0].contains("a note of where a rule was"), "{words:?}");
    assert!(words[1].contains("shut tcp/22"), "{words:?}");
    assert_eq!(words[2], "move nsg-nic: rule ssh from priority 100 to 401");
    let after = apply(&groups, &writes);
    assert!(!subject.admits(&after, "8.8.8.8", 22));
    assert!(Subject::new(5, &groups).admits(&after, "8.8.8.8", 22), "the rule is still there for others");
    assert_eq!(apply(&after, &subject.release(&after).unwrap()), groups);
}

#[test]
fn i8_a_lockdown_that_was_to_move_a_rule_goes_on_from_every_write() {
    let everything = |name, priority| rule(name, priority, true, "*", "*", "*");
    let groups: Groups = [
        group("nsg-nic", vec![]),
        group("nsg-subnet", vec![everything("first", 100), everything("last", 4096)]),
    ]
    .into();
    let subject = Subject::new(4, &groups);
    let writes = subject.lock(&groups, &ssh_and_rdp(), true).unwrap();
    for stop in 1..writes.len() {
        let stopped = apply(&groups, &writes[..stop]);
        let again = apply(&stopped, &subject.lock(&stopped, &ssh_and_rdp(), true).unwrap());
        assert!(!subject.admits(&again, "8.8.8.8", 22), "locked again after {stop} of {writes:?}");
        assert_eq!(apply(&again, &subject.release(&again).unwrap()), groups);
        // A sweep goes on once a port is shut; before that nothing says which ports were to be.
        if subject.view(&stopped).locked().is_empty() {
            continue;
        }
        let resumed = apply(&stopped, &resume(&subject.view(&stopped), &Priorities::default()).unwrap());
        assert!(!subject.admits(&resumed, "8.8.8.8", 22), "after {stop} of {writes:?}");
        assert!(subject.view(&resumed).is_locked() && subject.view(&resumed).unmoved().is_empty());
        assert_eq!(apply(&resumed, &subject.release(&resumed).unwrap()), groups);
    }
}

#[test]
fn i8_a_lockdown_that_goes_on_moves_rules_in_the_order_of_its_plan() {
    let before = vec![
        rule("first", 100, true, "*", "*", "*"),
        rule("second", 395, true, "*", "*", "20-25"),
        // The first rule must not pass it; the second may.
        rule("no", 402, false, "*", "10.0.0.0/24", "3389"),
    ];
    for groups in [
        [group("nsg-subnet", before.clone())].into(),
        [group("nsg-nic", before.clone()), group("nsg-subnet", before)].into(),
    ] {
        let groups: Groups = groups;
        let subject = Subject::new(4, &groups);
        let writes = subject.lock(&groups, &ssh_and_rdp(), true).unwrap();
        let planned = apply(&groups, &writes);
        for stop in 0..=writes.len() {
            let stopped = apply(&groups, &writes[..stop]);
            assert!(subject.lock(&stopped, &ssh_and_rdp(), true).is_ok(), "after {stop} of {writes:?}");
            if subject.view(&stopped).locked().is_empty() {
                continue;
            }
            let resumed = resume(&subject.view(&stopped), &Priorities::default()).unwrap();
            assert_eq!(apply(&stopped, &resumed), planned, "after {stop} of {writes:?}");
        }
    }
}

#[test]
fn a_rule_does_not_pass_one_that_says_otherwise() {
    let groups =
        with(vec![rule("ssh", 100, true, "*", "*", "22"), rule("no", 200, false, "10.0.0.0/8", "*", "*")]);
    let subject = Subject::new(4, &groups);
    let PlanError(reason) = subject.lock(&groups, &ssh(), true).unwrap_err();
    assert!(reason.contains("rule ssh of nsg-nic") && reason.contains("rule no (priority 200)"), "{reason}");
}

#[test]
fn i6_what_another_machine_needs_shut_stays_moved_until_that_one_is_released() {
    let groups = with(vec![rule("ssh", 100, true, "*", "*", "22")]);
    let (one, other) = (Subject::new(4, &groups), Subject::new(5, &groups));
    let first = apply(&groups, &one.lock(&groups, &ssh(), true).unwrap());
    let both = apply(&first, &other.lock(&first, &ssh(), true).unwrap());
    assert!(!one.admits(&both, "8.8.8.8", 22) && !other.admits(&both, "8.8.8.8", 22));
    let left = apply(&both, &one.release(&both).unwrap());
    assert!(one.admits(&left, "8.8.8.8", 22) && !other.admits(&left, "8.8.8.8", 22));
    assert_eq!(apply(&left, &other.release(&left).unwrap()), groups);
}

/// One machine that was locked down without consent, behind a rule of the customer's at 100; and the lockdown of another one.
fn neighbour_without_consent(rules: Vec<NsgRule>) -> (Groups, Groups, Subject, Subject) {
    let before = with(rules);
    let (one, two) = (Subject::new(1, &before), Subject::new(2, &before));
    let groups = apply(&before, &two.lock(&before, &ssh(), false).unwrap());
    (before, groups, one, two)
}

#[test]
fn i6_a_consent_is_for_its_target_alone() {
    let (before, groups, one, two) = neighbour_without_consent(vec![rule("ssh", 100, true, "*", "*", "22")]);
    assert!(two.admits(&groups, "8.8.8.8", 22), "the customer's rule comes first");
    let writes = one.lock(&groups, &ssh(), true).unwrap();
    for stop in 0..=writes.len() {
        let stopped = apply(&groups, &writes[..stop]);
        assert!(two.admits(&stopped, "8.8.8.8", 22), "after {stop} of {writes:?}");
        let resumed = resume(&two.view(&stopped), &Priorities::default()).unwrap();
        assert_eq!(resumed, [], "a repair of the other one moves nothing");
        if stop > 1 && !one.view(&stopped).locked().is_empty() {
            let resumed = apply(&stopped, &resume(&one.view(&stopped), &Priorities::default()).unwrap());
            assert!(!one.admits(&resumed, "8.8.8.8", 22) && two.admits(&resumed, "8.8.8.8", 22));
        }
    }
    let both = apply(&groups, &writes);
    assert!(!one.admits(&both, "8.8.8.8", 22));
    assert_eq!(one.lock(&both, &ssh(), true).unwrap(), [], "it is done");
    let released = apply(&both, &one.release(&both).unwrap());
    assert_eq!(released, groups, "the other one is as it was");
    assert_eq!(apply(&released, &two.release(&released).unwrap()), before);
    let other_way = apply(&both, &two.release(&both).unwrap());
    assert!(!one.admits(&other_way, "8.8.8.8", 22) && two.admits(&other_way, "8.8.8.8", 22));
    assert_eq!(apply(&other_way, &one.release(&other_way).unwrap()), before);
    // With its own consent it is shut, too, and stays so.
    let consented = apply(&both, &two.lock(&both, &ssh(), true).unwrap());
    assert!(!two.admits(&consented, "8.8.8.8", 22) && !one.admits(&consented, "8.8.8.8", 22));
    let left = apply(&consented, &one.release(&consented).unwrap());
    assert!(!two.admits(&left, "8.8.8.8", 22) && one.admits(&left, "8.8.8.8", 22));
    assert_eq!(apply(&left, &two.release(&left).unwrap()), before);
}

#[test]
fn i6_a_lockdown_after_a_neighbours_that_moved_a_rule_needs_no_consent_of_its_own() {
    let before = with(vec![rule("ssh", 100, true, "*", "*", "22")]);
    let (one, two) = (Subject::new(1, &before), Subject::new(2, &before));
    let writes = one.lock(&before, &ssh(), true).unwrap();
    for stop in 0..=writes.len() {
        let stopped = apply(&before, &writes[..stop]);
        let both = apply(&stopped, &two.lock(&stopped, &ssh(), false).unwrap());
        assert!(two.admits(&both, "8.8.8.8", 22), "after {stop} of {writes:?}");
        let released = apply(&both, &one.release(&both).unwrap());
        assert!(two.admits(&released, "8.8.8.8", 22), "after {stop} of {writes:?}");
        assert_eq!(apply(&released, &two.release(&released).unwrap()), before);
    }
}

#[test]
fn i6_a_move_that_would_shut_a_neighbour_without_consent_is_refused_by_its_name() {
    // No room between the customer's rule and the neighbour's.
    let full = (100..400).map(|at| rule(&format!("customer-{at}"), at, true, "192.0.2.7", "*", "22"));
    let (_, groups, one, _) = neighbour_without_consent(full.collect());
    let PlanError(reason) = one.lock(&groups, &ssh(), true).unwrap_err();
    assert!(reason.contains("without shutting g/vm-2") && reason.contains("--accept precedence"), "{reason}");
}

#[test]
fn i6_a_rule_that_is_moved_twice_goes_back_to_where_it_was_at_first() {
    let before = with(vec![rule("ssh", 100, true, "*", "*", "22")]);
    let (one, two) = (Subject::new(1, &before), Subject::new(2, &before));
    let mut groups = apply(&before, &one.lock(&before, &ssh(), true).unwrap());
    // Enough windows to leave no room before the rule's present priority.
    let nsg = groups.get_mut(&id("nsg-nic")).unwrap();
    let windows = (100..400).map(|at| rule(&format!("w-{at}"), at, true, "192.0.2.7", "10.0.0.9", "22"));
    nsg.rules.extend(windows);
    nsg.rules.sort_by_key(|rule| (rule.is_default, rule.priority));
    let writes = two.lock(&groups, &ssh(), true).unwrap();
    assert!(
        writes.iter().any(|write| matches!(write, RuleWrite::Move { rule, .. } if rule == "ssh")),
        "{writes:?}"
    );
    let mut groups = apply(&groups, &writes);
    groups.get_mut(&id("nsg-nic")).unwrap().rules.retain(|rule| !rule.name.starts_with("w-"));
    for subject in [&one, &two] {
        groups = apply(&groups, &subject.release(&groups).unwrap());
    }
    assert_eq!(groups, before);
}

#[test]
fn a_release_reads_again_after_each_step_where_rules_were_moved() {
    let before = with(vec![rule("ssh", 100, true, "*", "*", "22")]);
    let one = Subject::new(1, &before);
    let step = |groups: &Groups| release(&one.view(groups), &Priorities::default()).unwrap().next();
    let mut groups = apply(&before, &one.lock(&before, &ssh(), true).unwrap());
    let mut steps = Vec::new();
    loop {
        let (writes, is_last) = step(&groups);
        groups = apply(&groups, &writes);
        steps.push(writes.len());
        if is_last {
            break;
        }
    }
    // The mark and the delete of Postern's rule; the move; the delete of the note; the delete of the mark.
    assert_eq!((steps, &groups), (vec![2, 1, 1, 1], &before));
    let unmoved = apply(&before, &one.lock(&before, &ssh(), false).unwrap());
    assert!(step(&unmoved).1, "otherwise one read is enough");
}

#[test]
fn a_rule_that_went_back_while_another_machine_needs_it_behind_is_moved_again() {
    let before = with(vec![rule("ssh", 100, true, "*", "*", "22")]);
    let (one, two) = (Subject::new(1, &before), Subject::new(2, &before));
    let locked = apply(&before, &one.lock(&before, &ssh(), true).unwrap());
    let both = apply(&locked, &two.lock(&locked, &ssh(), true).unwrap());
    let go = |to| RuleWrite::Move { group: id("nsg-nic"), rule: "ssh".into(), from: 0, to };
    let back = apply(&both, &[go(100)]);
    assert!(two.admits(&back, "8.8.8.8", 22));
    let released = apply(&back, &one.release(&back).unwrap());
    assert!(!two.admits(&released, "8.8.8.8", 22) && one.admits(&released, "8.8.8.8", 22));
    assert_eq!(apply(&released, &two.release(&released).unwrap()), before);

    // The broker that moved the rule or deleted its note writes the note again, while a machine needs the rule moved.
    let mut lost = both.clone();
    let is_note = |rule: &NsgRule| matches!(RuleName::read(&rule.name), Some(RuleName::Moved(_)));
    lost.get_mut(&id("nsg-nic")).unwrap().rules.retain(|rule| !is_note(rule));
    let moved = moved_away(
        &[RuleWrite::Move { group: id("nsg-nic"), rule: "ssh".into(), from: 100, to: 401 }],
        DEPLOYMENT,
    );
    let again = |groups: &Groups| lost_notes(&one.view(groups), &moved, &Priorities::default()).unwrap();
    assert_eq!(names(&again(&lost)).len(), 1);
    assert_eq!(apply(&lost, &again(&lost)), both);
    assert_eq!((again(&both), again(&before)), (vec![], vec![]));
}

#[test]
fn after_a_conflict_a_window_goes_to_a_priority_of_its_own() {
    let groups = with(Vec::new());
    let one = Subject::new(1, &groups);
    let locked = apply(&groups, &one.lock(&groups, &ssh(), false).unwrap());
    let (view, group) = (one.view(&locked), &locked[&id("nsg-nic")]);
    let at = |name: &str, tries| {
        window_priority(&view, group, &Priorities::default(), (name, tries), None).unwrap()
    };
    assert_eq!((at("a", 0), at("b", 0)), (100, 100));
    let places: BTreeSet<u16> = (0..20).map(|at_once| at(&format!("postern-{at_once}"), 1)).collect();
    assert!(places.len() > 15 && places.iter().all(|it| (100..400).contains(it)), "{places:?}");
}

#[test]
fn a_release_that_cannot_put_a_rule_back_names_the_rule_that_has_its_priority() {
    let groups = with(vec![rule("ssh", 100, true, "*", "*", "22")]);
    let subject = Subject::new(4, &groups);
    let mut after = apply(&groups, &subject.lock(&groups, &ssh(), true).unwrap());
    after.get_mut(&id("nsg-nic")).unwrap().rules.insert(0, rule("new", 100, true, "*", "*", "80"));
    let PlanError(reason) = subject.release(&after).unwrap_err();
    assert!(reason.contains("priority 100: rule new has it now"), "{reason}");
}

fn customer_rules() -> impl Strategy<Value = Vec<NsgRule>> {
    let from = prop::sample::select(vec!["*", "10.0.0.0/8", "192.0.2.0/24", "Internet", "VirtualNetwork"]);
    let to = prop::sample::select(vec!["*", "10.0.0.4", "10.0.0.5", "10.0.0.0/24", "VirtualNetwork"]);
    let ports = prop::sample::select(vec!["*", "22", "3389", "443", "20-25", "0-65535"]);
    // Some at the front, some among Postern's, some behind.
    let priority = prop_oneof![100u16..106, 395u16..405, 900u16..1100, 4090u16..=4096];
    let one = (priority, any::<bool>(), from, to, ports);
    prop::collection::vec(one, 0..6).prop_map(|rules| {
        let mut taken = BTreeSet::new();
        rules
            .into_iter()
            .filter(|(priority, ..)| taken.insert(*priority))
            .map(|(priority, allows, from, to, ports)| {
                rule(&format!("customer-{priority}"), priority, allows, from, to, ports)
            })
            .collect()
    })
}

fn groups() -> impl Strategy<Value = Groups> {
    (customer_rules(), prop::option::of(customer_rules())).prop_map(|(subnet, nic)| {
        let nic = nic.map(|rules| group("nsg-nic", rules));
        [group("nsg-subnet", subnet)].into_iter().chain(nic).collect()
    })
}

/// Reports whether each packet for a port that is not shut gets the same answer.
fn same_but_for(
    ports: &BTreeSet<ProtectedPort>,
    one: &[(&str, u16, bool)],
    other: &[(&str, u16, bool)],
) -> bool {
    let shut = |port: u16| ports.iter().any(|shut| shut.port.get() == port);
    one.iter().zip(other).all(|(one, other)| shut(one.1) || one == other)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn i1_i6_a_lockdown_shuts_the_ports_or_says_what_is_open_and_changes_nothing_else(groups in groups(), first in any::<bool>()) {
        let (subject, neighbour) = (Subject::new(4, &groups), Subject::new(5, &groups));
        let Ok(writes) = subject.lock(&groups, &ssh_and_rdp(), first) else { return Ok(()) };
        let after = apply(&groups, &writes);
        let (before, now) = (subject.verdicts(&groups), subject.verdicts(&after));
        prop_assert!(same_but_for(&ssh_and_rdp(), &before, &now), "{before:?} {now:?}");
        prop_assert_eq!(neighbour.verdicts(&groups), neighbour.verdicts(&after));
        let open = now.iter().any(|(_, port, admitted)| *admitted && *port != 443);
        let named = subject.view(&after).still_open(&ssh_and_rdp());
        prop_assert!(!open || !named.is_empty(), "open and not named: {now:?}");
        prop_assert!(!first || !open, "Postern's rules must come first: {now:?} {named:?}");
        let opened = before.iter().zip(&now).any(|(before, now)| !before.2 && now.2);
        prop_assert!(!opened, "a lockdown opens nothing");
        prop_assert!(subject.view(&after).is_locked());
        prop_assert_eq!(subject.lock(&after, &ssh_and_rdp(), first).unwrap(), vec![], "it is done");
    }

    #[test]
    fn i6_a_release_puts_back_exactly_what_was_there(groups in groups(), first in any::<bool>(), ports in prop::bool::ANY) {
        let subject = Subject::new(4, &groups);
        let ports = if ports { ssh() } else { ssh_and_rdp() };
        let Ok(writes) = subject.lock(&groups, &ports, first) else { return Ok(()) };
        let locked = apply(&groups, &writes);
        let released = apply(&locked, &subject.release(&locked).unwrap());
        prop_assert_eq!(&released, &groups);
        prop_assert_eq!(subject.release(&released).unwrap(), vec![]);
    }

    #[test]
    fn i8_a_lockdown_that_stops_anywhere_goes_on_or_back(groups in groups(), first in any::<bool>(), stop in 0usize..12) {
        let (subject, neighbour) = (Subject::new(4, &groups), Subject::new(5, &groups));
        let Ok(writes) = subject.lock(&groups, &ssh_and_rdp(), first) else { return Ok(()) };
        let stop = stop.min(writes.len());
        let stopped = apply(&groups, &writes[..stop]);
        prop_assert_eq!(neighbour.verdicts(&groups), neighbour.verdicts(&stopped));
        prop_assert!(same_but_for(&ssh_and_rdp(), &subject.verdicts(&groups), &subject.verdicts(&stopped)));
        let back = apply(&stopped, &subject.release(&stopped).unwrap());
        prop_assert_eq!(&back, &groups);
        let view = subject.view(&stopped);
        if view.shut() == ssh_and_rdp() {
            let resumed = apply(&stopped, &resume(&view, &Priorities::default()).unwrap());
            prop_assert!(subject.view(&resumed).is_locked());
            prop_assert!(subject.view(&resumed).unmoved().is_empty());
            let back = apply(&resumed, &subject.release(&resumed).unwrap());
            prop_assert_eq!(&back, &groups);
        }
    }

    #[test]
    fn i8_a_release_that_stops_anywhere_is_known_and_goes_on(groups in groups(), first in any::<bool>(), stop in 0usize..12) {
        let subject = Subject::new(4, &groups);
        let Ok(writes) = subject.lock(&groups, &ssh_and_rdp(), first) else { return Ok(()) };
        let locked = apply(&groups, &writes);
        let writes = subject.release(&locked).unwrap();
        let stop = stop.min(writes.len());
        let stopped = apply(&locked, &writes[..stop]);
        if stop > 0 && stop < writes.len() {
            prop_assert!(subject.view(&stopped).is_releasing());
        }
        let released = apply(&stopped, &subject.release(&stopped).unwrap());
        prop_assert_eq!(&released, &groups);
    }

    #[test]
    fn i6_a_lockdown_and_its_release_change_no_neighbour(groups in groups(), first in any::<bool>(), stop in 0usize..12) {
        let (subject, neighbour) = (Subject::new(4, &groups), Subject::new(5, &groups));
        let Ok(writes) = neighbour.lock(&groups, &ssh_and_rdp(), false) else { return Ok(()) };
        let groups = apply(&groups, &writes);
        let Ok(writes) = subject.lock(&groups, &ssh_and_rdp(), first) else { return Ok(()) };
        let before = neighbour.verdicts(&groups);
        let stopped = apply(&groups, &writes[..stop.min(writes.len())]);
        prop_assert_eq!(&before, &neighbour.verdicts(&stopped));
        prop_assert_eq!(resume(&neighbour.view(&stopped), &Priorities::default()).unwrap(), vec![]);
        let locked = apply(&groups, &writes);
        prop_assert!(!first || subject.verdicts(&locked).iter().all(|(_, port, open)| !open || *port == 443));
        prop_assert_eq!(&apply(&stopped, &subject.release(&stopped).unwrap()), &groups);
        prop_assert_eq!(&apply(&locked, &subject.release(&locked).unwrap()), &groups);
    }

    #[test]
    fn priorities_stay_unique_and_in_their_range(groups in groups(), first in any::<bool>()) {
        let subject = Subject::new(4, &groups);
        let Ok(writes) = subject.lock(&groups, &ssh_and_rdp(), first) else { return Ok(()) };
        for stop in 0..=writes.len() {
            for group in apply(&groups, &writes[..stop]).values() {
                let own: Vec<u16> = group.rules.iter().filter(|rule| !rule.is_default).map(|rule| rule.priority).collect();
                prop_assert_eq!(own.iter().collect::<BTreeSet<_>>().len(), own.len(), "after {} changes", stop);
                prop_assert!(own.iter().all(|priority| (100..=4096).contains(priority)));
            }
        }
    }
}
