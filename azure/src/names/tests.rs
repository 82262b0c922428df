use proptest::prelude::*;

use super::*;

fn target() -> TargetId {
    let (group, vm) = ("g".repeat(90), "v".repeat(64));
    TargetId::from_segments(&["azure", "00000000-0000-0000-0000-00000000000a", &group, &vm]).unwrap()
}

fn key() -> Key {
    Key::of("postern.example", &target())
}

fn content() -> Content {
    let ports = [22, 3389].map(|port| Port::new(port).unwrap()).into();
    Content { protocol: Protocol::Tcp, ports, sources: ["192.0.2.0/24".parse().unwrap()].into() }
}

/// Reports whether Azure accepts the name (Microsoft Learn, "Naming rules and restrictions for Azure resources").
fn is_good(name: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let bytes = name.as_bytes();
    (1..=80).contains(&bytes.len())
        && word(bytes[0])
        && word(bytes[bytes.len() - 1])
        && bytes.iter().all(|byte| word(*byte) || b".-".contains(byte))
}

fn all() -> Vec<RuleName> {
    let grant = GrantId::from_parts(Timestamp::MAX, u128::MAX >> 48);
    let end = Timestamp::from_second(4_000_000_000).unwrap();
    let ports: BTreeSet<Port> = (65_529..=65_535).map(|port| Port::new(port).unwrap()).collect();
    assert_eq!(ports.len(), PORTS_PER_RULE);
    let deny =
        |protocol, family| RuleName::Deny(DenyName { key: key(), protocol, family, ports: ports.clone() });
    vec![
        RuleName::Allow(AllowName::new(&key(), grant, end, &content())),
        deny(Protocol::Tcp, Family::V4),
        deny(Protocol::Udp, Family::V6),
        RuleName::Moved(Moved::new("postern.example", 4096, &"r".repeat(80))),
        RuleName::Release(key()),
    ]
}

#[test]
fn the_longest_names_are_good_ones_and_read_back() {
    for name in all() {
        assert!(is_good(&name.to_string()), "{name} has {} characters", name.to_string().len());
        assert_eq!(RuleName::read(&name.to_string()), Some(name));
    }
}

#[test]
fn names_that_other_principals_give_are_not_posterns() {
    for name in [
        "",
        "ssh",
        "postern",
        "postern-",
        "postern-allow",
        "postern-allow-x-y-z-w",
        "postern-deny-aaaabbbbbbbb-tcp",
        "default-allow-ssh",
        "postern-deny-aaaabbbbbbbb-icmp-22",
        "postern-deny-aaaabbbbbbb-tcp-22",
        "postern-deny-aaaabbbbbbbb-tcp-0",
        "postern-release-AAAABBBBBBBB",
    ] {
        assert_eq!(RuleName::read(name), None, "{name}");
    }
}

#[test]
fn a_rule_whose_content_was_edited_is_known_by_its_name() {
    let allow = AllowName::new(
        &key(),
        GrantId::from_parts(Timestamp::UNIX_EPOCH, 1),
        Timestamp::UNIX_EPOCH,
        &content(),
    );
    assert!(allow.is_of(&content()));
    let wider = Content { sources: ["0.0.0.0/0".parse().unwrap()].into(), ..content() };
    let other = Content { ports: [Port::new(443).unwrap()].into(), ..content() };
    assert!(!allow.is_of(&wider) && !allow.is_of(&other));
    assert!(!key().is_of("postern.other") && key().is_of("postern.example"));
}

#[test]
fn i2_the_name_alone_says_the_end_to_the_second_and_the_description_the_rest() {
    let end = Timestamp::from_nanosecond(4_000_000_000_123_456_789).unwrap();
    let grant = GrantId::from_parts(Timestamp::UNIX_EPOCH, 1);
    let allow = AllowName::new(&key(), grant, end, &content());
    assert_eq!(allow.not_after.as_second(), 4_000_000_001);
    let short: TargetId =
        TargetId::from_segments(&["azure", "00000000-0000-0000-0000-00000000000a", "rg", "vm"]).unwrap();
    for target in [target(), short] {
        assert_eq!(very_end(&allow, &describe_window(&target, grant, end)), end);
    }
    for edited in ["", "edited by hand", "Postern: grant x until 2199-01-01T00:00:00Z; rg/vm"] {
        assert_eq!(very_end(&allow, edited), allow.not_after, "{edited}");
    }
}

#[test]
fn descriptions_fit_and_name_the_target_where_there_is_room() {
    let grant = GrantId::from_parts(Timestamp::MAX, u128::MAX >> 48);
    let end = Timestamp::from_nanosecond(4_000_000_000_123_456_789).unwrap();
    let texts = [
        describe_window(&target(), grant, end),
        describe_deny(&target(), true),
        describe_moved(&"r".repeat(80), 4096),
    ];
    assert!(texts.iter().all(|text| text.len() <= MAX_DESCRIPTION), "{texts:?}");
    let short =
        TargetId::from_segments(&["azure", "00000000-0000-0000-0000-00000000000a", "rg", "vm-1"]).unwrap();
    let key = Key::of("postern.example", &short);
    let text = describe_deny(&short, false);
    let named = target_of(&text, "00000000-0000-0000-0000-00000000000a", &key, "postern.example");
    assert_eq!(named, Some(short));
    let edited = text.replace("vm-1", "vm-2");
    assert_eq!(target_of(&edited, "00000000-0000-0000-0000-00000000000a", &key, "postern.example"), None);
}

proptest! {
    #[test]
    fn contents_open_exactly_the_windows_they_were_made_of(chosen in prop::collection::btree_set((0usize..2, 0usize..3, 0usize..5), 0..20)) {
        let protocols = [Protocol::Tcp, Protocol::Udp];
        let sources = ["192.0.2.1", "198.51.100.0/24", "0.0.0.0/0", "2001:db8::1", "::/0"];
        let grant = GrantId::from_parts(Timestamp::UNIX_EPOCH, 1);
        let windows: BTreeSet<LayerWindow> = chosen.into_iter().map(|(protocol, port, source)| LayerWindow {
            target: target(),
            grant,
            port: ProtectedPort { protocol: protocols[protocol], port: Port::new([22, 3389, 5985][port]).unwrap() },
            source: sources[source].parse().unwrap(),
            not_after: Timestamp::UNIX_EPOCH,
        }).collect();
        let contents = Content::of(&windows);
        let opened: Vec<LayerWindow> = contents.iter().flat_map(|it| it.windows(&target(), grant, Timestamp::UNIX_EPOCH)).collect();
        prop_assert_eq!(opened.len(), windows.len(), "no window twice");
        prop_assert_eq!(opened.into_iter().collect::<BTreeSet<_>>(), windows);
        for content in contents {
            let families: BTreeSet<Family> = content.sources.iter().map(|source| Family::of(*source)).collect();
            prop_assert_eq!(families.len(), 1, "no rule is for two families");
        }
    }
}
