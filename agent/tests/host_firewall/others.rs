//! Changes of the ruleset by other processes, and the layer's answer.

use postern_tests::{Reach, tied};

use crate::vm::{Layer, MINUTE, Opening as _, SSH, a_net, closed, listed};

/// Changes the VM's ruleset as another process, and sets the same policy again.
fn after(commands: &str) -> (Option<String>, Reach, Reach) {
    let net = a_net();
    let layer = Layer::new();
    let policy = closed().open(SSH, net.alice.v4(), MINUTE).open(SSH, "198.51.100.0/24", MINUTE);
    layer.ensure(&net.vm, &policy).unwrap();
    for command in commands.split(';') {
        net.vm.must("nft", &command.split_whitespace().collect::<Vec<_>>());
    }
    layer.ensure(&net.vm, &policy).unwrap();
    let damage = layer.damage();
    layer.ensure(&net.vm, &policy).unwrap();
    assert_eq!(layer.damage(), None, "the damage is repaired and reported once");
    let listed = listed(&net.vm);
    assert!(listed.contains("198.51.100.0/24 . tcp . 22"), "{listed}");
    (damage, net.alice.reach(net.vm.tcp(22)), net.mallory.reach(net.vm.tcp(22)))
}

#[test]
fn a_change_of_the_table_is_repaired_and_reported() {
    for (commands, named) in [
        ("flush ruleset", "the table is gone"),
        ("delete table inet postern", "the table is gone"),
        ("flush chain inet postern gate", "chains or rules"),
        ("insert rule inet postern input accept", "chains or rules"),
        ("add chain inet postern more", "chains or rules"),
        ("flush set inet postern hosts4", "missing"),
        ("flush set inet postern nets4", "missing"),
        ("add element inet postern hosts4 { 192.0.2.30 . tcp . 22 timeout 1h }", "not Postern's"),
        ("add element inet postern nets4 { 192.0.2.0/25 . tcp . 22 }", "not Postern's"),
        (
            "delete element inet postern hosts4 { 192.0.2.20 . tcp . 22 }; add element inet postern hosts4 { 192.0.2.20 . tcp . 22 timeout 5h }",
            "another end",
        ),
    ] {
        let (damage, alice, mallory) = after(commands);
        let damage = damage.unwrap_or_else(|| panic!("{commands} was not noticed"));
        assert!(damage.contains(named), "{commands}: {damage}");
        assert_eq!((alice, mallory), (Reach::Open, Reach::Filtered), "{commands}");
    }
}

#[test]
fn i6_a_change_of_another_table_is_ignored() {
    let (damage, alice, mallory) =
        after("add table inet other; add chain inet other c; delete table inet other");
    assert_eq!((damage, alice, mallory), (None, Reach::Open, Reach::Filtered));
}

#[test]
fn i8_a_change_gets_through_while_others_keep_changing_their_tables() {
    let net = a_net();
    let layer = Layer::new();
    layer.ensure(&net.vm, &closed()).unwrap();
    let mut busy = tied("sh");
    busy.args(["-c", "while sleep 0.02; do nft add table inet other; nft delete table inet other; done"]);
    let mut busy = net.vm.netns().spawn(busy).unwrap();
    for round in 0u8..40 {
        let source = format!("198.51.100.{round}");
        layer.ensure(&net.vm, &closed().open(SSH, &source, MINUTE)).unwrap();
        assert!(listed(&net.vm).contains(&source));
    }
    busy.kill().unwrap();
    busy.wait().unwrap();
    assert_eq!(layer.damage(), None);
}

#[test]
fn doctor_says_that_a_flush_of_all_tables_takes_posterns_too() {
    let net = a_net();
    Layer::new().ensure(&net.vm, &closed()).unwrap();
    let findings = net.vm.netns().run(async { postern_agent::firewall::diagnose() });
    assert!(findings.iter().any(|finding| finding.what.contains("nft flush ruleset")), "{findings:?}");
    // As it says: with no agent running the port is open.
    net.vm.must("nft", &["flush", "ruleset"]);
    assert_eq!(net.mallory.reach(net.vm.tcp(22)), Reach::Open);
}

#[test]
fn doctor_finds_rules_that_keep_connections_from_being_tracked() {
    let net = a_net();
    Layer::new().ensure(&net.vm, &closed()).unwrap();
    let found = || -> Vec<String> {
        let findings = net.vm.netns().run(async { postern_agent::firewall::diagnose() });
        findings
            .into_iter()
            .filter(|finding| finding.what.contains("notrack"))
            .map(|finding| finding.what)
            .collect()
    };
    assert!(found().is_empty());
    for command in [
        "add table inet fast",
        "add chain inet fast pre { type filter hook prerouting priority raw; }",
        "add rule inet fast pre tcp dport 22 notrack",
    ] {
        net.vm.must("nft", &[command]);
    }
    let found = found();
    assert!(found.len() == 1 && found[0].contains("inet fast pre"), "{found:?}");
}
