use postern_proto::convert;
use proptest::prelude::*;

use super::*;

const WEB: &str = r#"
[[policy]]
name = "web"
targets = ["host:web-*"]

[[policy.ports]]
port = "tcp/22"
sources = ["10.0.0.0/8", "*"]
max_duration = "1h 30m"

[[policy.ports]]
number = 3389
protocol = "any"
sources = ["*"]
max_duration = "3h"
"#;

fn complaint(text: &str) -> String {
    let error = parse(text, "p.toml".into()).unwrap_err();
    format!("{error}: {}", std::error::Error::source(&error).unwrap())
}

#[test]
fn what_is_left_out_is_the_strictest_choice() {
    let policies = parse(WEB, "p.toml".into()).unwrap();
    let [web] = &policies[..] else { panic!("{policies:?}") };
    assert_eq!((web.mode, web.layers, web.unreachable), (Mode::Enforce, Layers::Host, Unreachable::Fail));
    assert!(web.requesters.is_empty() && !web.approval_required);
    assert_eq!(web.ports[0].max_duration, Duration::from_secs(5400));
}

#[test]
fn protocol_any_is_both() {
    let policies = parse(WEB, "p.toml".into()).unwrap();
    let ports: Vec<_> = policies[0].ports.iter().map(|rule| rule.port.to_string()).collect();
    assert_eq!(ports, ["tcp/22", "tcp/3389", "udp/3389"]);
}

#[test]
fn an_unknown_key_is_named_with_its_line_at_every_level() {
    for (key, line) in [
        ("colour = 1\n", WEB.replace("name = ", "colour = 1\nname = ")),
        ("sauces = []", WEB.replace("sources = [\"10.0.0.0/8\", \"*\"]", "sauces = []")),
        ("[defaults]", format!("[defaults]\nx = 1\n{WEB}")),
    ] {
        let complaint = complaint(&line);
        let key = key.trim_matches(['[', ']']).split(' ').next().unwrap().trim();
        assert!(
            complaint.contains(key) && complaint.contains("line") && complaint.contains("p.toml"),
            "{complaint}"
        );
    }
}

#[test]
fn a_value_that_cannot_be_is_named_by_its_place() {
    for (from, to, place) in [
        ("\"tcp/22\"", "\"icmp/22\"", "icmp"),
        ("\"10.0.0.0/8\"", "\"10.1.2.3/8\"", "write 10.0.0.0/8"),
        ("\"1h 30m\"", "\"-1h\"", "max_duration: \"-1h\" is not a duration"),
        ("\"1h 30m\"", "\"25h\"", "policy[0].ports[0].max_duration"),
        ("\"1h 30m\"", "\"0s\"", "policy[0].ports[0].max_duration"),
        ("number = 3389", "number = 0", "policy[0].ports[1].number"),
        ("protocol = \"any\"", "port = \"tcp/1\"", "policy[0].ports[1].port: must have exactly one form"),
        (
            "number = 3389\nprotocol = \"any\"",
            "port = \"tcp/22\"",
            "policy[0].ports[1].port: tcp/22 appears twice",
        ),
        ("\"host:web-*\"", "\"*\"", "policy[0].layers: is missing"),
        ("\"host:web-*\"", "\"web-*\"", "selects no kind of target"),
        ("name = \"web\"", "name = \"a b\"", "contains ' '"),
    ] {
        assert!(WEB.contains(from), "{from}");
        let complaint = complaint(&WEB.replace(from, to));
        assert!(complaint.contains(place), "{to}: {complaint}");
    }
    assert!(complaint("policy = []").contains("at least one [[policy]]"));
    assert!(complaint(&format!("{WEB}{WEB}")).contains("policy[1].name: web appears twice"));
}

fn a_policy() -> impl Strategy<Value = Policy> {
    let name = || "[a-zA-Z0-9][a-zA-Z0-9._-]{0,20}".prop_map(|text| Name::new(&text).unwrap());
    let target = prop_oneof![
        Just("*"),
        Just("host:web-1"),
        Just("host:db-*"),
        Just("aws:123456789012/eu-central-1/i-0123456789abcdef0")
    ];
    let source = prop_oneof![
        Just("*"),
        Just("caller"),
        Just("0.0.0.0/0"),
        Just("203.0.113.7/32"),
        Just("2001:db8::/32")
    ];
    let rule = (
        1u32..,
        any::<bool>(),
        prop::collection::vec(source, 1..4),
        1u64..=86_400,
        0u32..1_000_000_000,
        any::<(u8, u8)>(),
    );
    let rule = rule.prop_map(|(number, tcp, sources, seconds, nanos, lengths)| {
        let protocol = if tcp { Protocol::Tcp } else { Protocol::Udp };
        let max_duration = Duration::new(seconds, nanos).min(Policy::MAX_DURATION);
        let sources = sources.into_iter().map(|source| source.parse().unwrap()).collect();
        PortRule {
            port: ProtectedPort { protocol, port: Port::new(number % 65_535 + 1).unwrap() },
            sources,
            widest: WidestPrefix { ipv4: 1 + lengths.0 % 32, ipv6: 1 + lengths.1 % 128 },
            max_duration,
        }
    });
    let foreign = "https://issuer\\.example#[a-z]{1,8}@example\\.com";
    let foreign = foreign.prop_map(|text| text.parse::<PrincipalKey>().unwrap());
    let requester = prop_oneof![name().prop_map(PrincipalKey::Local), foreign];
    let choices = (0..3u8, any::<bool>(), any::<bool>(), any::<bool>(), prop::option::of(1u32..));
    let lists = (
        prop::collection::vec(target, 1..4),
        prop::collection::vec(rule, 1..5),
        prop::collection::vec(requester, 0..3),
    );
    (name(), lists, choices).prop_filter_map("the broker would refuse it", |(name, lists, choices)| {
        let (targets, ports, requesters) = lists;
        let (layers, approval_required, wait, monitor, max_open_grants) = choices;
        let policy = Policy {
            name,
            targets: targets.into_iter().map(|target| target.parse().unwrap()).collect(),
            ports,
            requesters,
            approval_required,
            layers: [Layers::Host, Layers::Cloud, Layers::Both][usize::from(layers)],
            unreachable: if wait { Unreachable::Wait } else { Unreachable::Fail },
            mode: if monitor { Mode::Monitor } else { Mode::Enforce },
            max_open_grants,
        };
        policy.checked().ok()
    })
}

proptest! {
    #[test]
    fn a_written_policy_reads_back_as_the_same_policy(policy in a_policy()) {
        let text = write(&policy).unwrap();
        prop_assert_eq!(parse(&text, "p.toml".into()).unwrap(), vec![policy]);
    }

    #[test]
    fn a_policy_passes_the_wire_and_the_file_unchanged(policy in a_policy(), version in 1u64..) {
        let (received, kept) = convert::policy(Some(&convert::policy_to_wire(&policy, version))).unwrap();
        prop_assert_eq!(kept, Some(version));
        let text = write(&received).unwrap();
        prop_assert_eq!(write(&parse(&text, "p.toml".into()).unwrap()[0]).unwrap(), text);
    }
}
