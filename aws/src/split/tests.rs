use proptest::prelude::*;

use super::*;
use crate::rule::Tags;

fn ports(texts: &[&str]) -> BTreeSet<ProtectedPort> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn usual() -> BTreeSet<ProtectedPort> {
    ports(&["tcp/22", "tcp/3389", "tcp/5985", "tcp/5986"])
}

fn tcp(from: u16, to: u16) -> Ec2Traffic {
    Ec2Traffic::Ports { protocol: Protocol::Tcp, from, to }
}

fn rule(traffic: Ec2Traffic, source: RuleSource) -> GroupRule {
    GroupRule {
        id: "sgr-1".into(),
        group: "sg-1".into(),
        traffic,
        source,
        description: String::new(),
        tags: Tags::new(),
    }
}

fn from_anyone(traffic: Ec2Traffic) -> GroupRule {
    rule(traffic, RuleSource::Prefix("0.0.0.0/0".parse().unwrap()))
}

fn kept(outcome: SplitOutcome) -> Vec<String> {
    match outcome {
        SplitOutcome::Untouched => panic!("it was not touched"),
        SplitOutcome::Split { kept, .. } => kept.iter().map(ToString::to_string).collect(),
    }
}

#[test]
fn a_range_keeps_what_is_around_the_protected_ports() {
    assert_eq!(kept(split(&from_anyone(tcp(20, 25)), &usual())), ["tcp/20-21", "tcp/23-25"]);
    assert_eq!(kept(split(&from_anyone(tcp(22, 22)), &usual())), [""; 0]);
    assert_eq!(
        kept(split(&from_anyone(tcp(0, u16::MAX)), &usual())),
        ["tcp/0-21", "tcp/23-3388", "tcp/3390-5984", "tcp/5987-65535"]
    );
    assert_eq!(kept(split(&from_anyone(tcp(1, u16::MAX)), &ports(&["tcp/1", "tcp/65535"]))), ["tcp/2-65534"]);
}

#[test]
fn i6_a_rule_that_covers_no_protected_port_is_not_touched() {
    for traffic in [
        tcp(443, 443),
        Ec2Traffic::Ports { protocol: Protocol::Udp, from: 0, to: u16::MAX },
        Ec2Traffic::Other { protocol: "icmp".into(), kind: (8, 0) },
    ] {
        assert_eq!(split(&from_anyone(traffic), &usual()), SplitOutcome::Untouched);
    }
}

#[test]
fn all_traffic_becomes_ports_and_icmp_and_the_loss_is_reported() {
    let SplitOutcome::Split { kept, ask } = split(&from_anyone(Ec2Traffic::All), &usual()) else {
        panic!("untouched")
    };
    let kept: Vec<_> = kept.iter().map(ToString::to_string).collect();
    assert_eq!(
        kept,
        ["tcp/0-21", "tcp/23-3388", "tcp/3390-5984", "tcp/5987-65535", "all udp ports", "protocol icmp"]
    );
    assert_eq!(ask, Some(Loss::OtherProtocols));
    let group = split(&rule(Ec2Traffic::All, RuleSource::Group("sg-2".into())), &usual());
    assert!(
        matches!(group, SplitOutcome::Split { kept, .. } if ["icmp", "icmpv6"].iter().all(|name| kept.iter().any(|piece| piece.to_string() == format!("protocol {name}")))),
        "members of a group have addresses of both families"
    );
    let v6 = split(&rule(Ec2Traffic::All, RuleSource::Prefix("::/0".parse().unwrap())), &usual());
    assert!(
        matches!(v6, SplitOutcome::Split { kept, .. } if kept.last().unwrap().to_string() == "protocol icmpv6")
    );
}

#[test]
fn a_rule_between_members_of_a_group_is_asked_about_and_other_sources_move_unchanged() {
    let own = split(&rule(Ec2Traffic::All, RuleSource::Group("sg-1".into())), &usual());
    assert!(matches!(own, SplitOutcome::Split { ask: Some(Loss::BetweenMembers), .. }));
    for source in [RuleSource::Group("sg-2".into()), RuleSource::PrefixList("pl-1".into())] {
        let SplitOutcome::Split { kept, ask } = split(&rule(tcp(20, 25), source), &usual()) else {
            panic!("untouched")
        };
        assert_eq!((kept.len(), ask), (2, None));
    }
}

fn traffic() -> impl Strategy<Value = Ec2Traffic> {
    let range = (any::<bool>(), 0u16..60, 0u16..60).prop_map(|(tcp, a, b)| Ec2Traffic::Ports {
        protocol: if tcp { Protocol::Tcp } else { Protocol::Udp },
        from: a.min(b),
        to: a.max(b),
    });
    prop_oneof![4 => range, 1 => Just(Ec2Traffic::All)]
}

fn some_ports() -> impl Strategy<Value = BTreeSet<ProtectedPort>> {
    let port = (any::<bool>(), 1u16..60)
        .prop_map(|(tcp, number)| format!("{}/{number}", if tcp { "tcp" } else { "udp" }).parse().unwrap());
    prop::collection::btree_set(port, 0..6)
}

proptest! {
    #[test]
    fn i6_the_pieces_admit_what_the_rule_did_except_the_protected_ports(traffic in traffic(), protected in some_ports()) {
        let rule = from_anyone(traffic);
        let left = match split(&rule, &protected) {
            SplitOutcome::Untouched => vec![rule.traffic.clone()],
            SplitOutcome::Split { kept, .. } => kept,
        };
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            for port in 0u16..=61 {
                let is_protected = protected.iter().any(|p| p.protocol == protocol && p.port.get() == port);
                let admitting = left.iter().filter(|piece| piece.admits(protocol, port)).count();
                let expected = usize::from(rule.traffic.admits(protocol, port) && !is_protected);
                prop_assert_eq!(admitting, expected, "{} {}", protocol, port);
            }
        }
    }
}
