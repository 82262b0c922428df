//! A program that writes the store beside the broker: it opens nothing, and takes no protection off.

use postern_proto::v1::GrantState;
use postern_tests::clock::wait_until;
use postern_tests::{HostWorld, Reach, Refusal, STEP_TIMEOUT, TCP, VM, a_policy, ask_for, usual_policy};
use rusqlite::Connection;

/// Changes the store while the broker is down.
fn attack(world: &mut HostWorld, statements: &[&str]) {
    world.broker.process().terminate();
    let database = Connection::open(world.broker.database()).unwrap();
    for sql in statements {
        assert!(database.execute(sql, []).unwrap() > 0, "{sql}");
    }
    database.close().unwrap();
    world.broker.serve();
}

/// Has the broker forget, at its next start, which policies it has seen.
fn forget_seen(world: &HostWorld) {
    std::fs::remove_file(world.broker.data_dir().join("policies-seen")).unwrap();
}

fn status(world: &HostWorld) -> (i32, String) {
    let outcome = world.admin.cli().run(&["status", "--check"]);
    (outcome.code, format!("{}{}", outcome.out, outcome.err))
}

#[test]
fn i7_a_grant_that_another_program_lengthens_opens_nothing_and_others_go_on() {
    let mut world = HostWorld::new();
    let (alice, vm) = (&world.net.alice, &world.net.vm);
    let forged = world.alice.open(&ask_for(alice).seconds(3600));
    assert_eq!(alice.reach(vm.tcp(TCP)), Reach::Open);
    let sql = format!(
        "UPDATE documents SET body = replace(body, 'not_after\":\"20', 'not_after\":\"21') WHERE place = 'grants/{}'",
        forged.id
    );
    attack(&mut world, &[&sql]);
    world.admin.wait_in_sync(VM);
    assert_eq!(
        world.net.alice.reach(world.net.vm.tcp(TCP)),
        Reach::Filtered,
        "the changed grant counts for nothing"
    );
    wait_until("the forged record to be audited", STEP_TIMEOUT, || {
        !world.admin.audited("store.forged").is_empty()
    });
    let audited = world.admin.audited("store.forged");
    assert!(audited.len() == 1 && audited[0].contains(&forged.id), "{audited:?}");
    let (code, said) = status(&world);
    assert!(code == 9 && said.contains(&forged.id) && said.contains("ca/records.key"), "{code} {said}");

    let other = world.alice.open(&ask_for(&world.net.alice).seconds(60));
    assert_eq!(world.net.alice.reach(world.net.vm.tcp(TCP)), Reach::Open);
    world.admin.revoke(&other.id).unwrap();
    world.alice.wait_for_state(&other.id, GrantState::Closed);
    assert_eq!(world.net.alice.reach(world.net.vm.tcp(TCP)), Reach::Filtered);
}

#[test]
fn i1_a_store_without_its_policies_takes_no_protection_off() {
    let mut world = HostWorld::new();
    let closed = |world: &HostWorld| {
        assert_eq!(world.net.mallory.reach(world.net.vm.tcp(TCP)), Reach::Filtered);
    };
    closed(&world);
    attack(&mut world, &["DELETE FROM documents WHERE place GLOB 'policies/*'"]);
    world.admin.wait_in_sync(VM);
    closed(&world);
    let refused = Refusal::from(world.alice.request(&ask_for(&world.net.alice)).unwrap_err());
    assert_eq!(refused.reason, "POLICIES_LOST", "{refused:?}");
    wait_until("the status to say so", STEP_TIMEOUT, || {
        let (code, said) = status(&world);
        code == 9 && said.contains("is missing")
    });

    // Without the manifest the store fits itself, and a broker that has lost its memory knows no better. The agent does.
    forget_seen(&world);
    attack(&mut world, &["DELETE FROM documents WHERE place GLOB 'manifests/*'"]);
    world.admin.wait_in_sync(VM);
    wait_until("the agent to say so", STEP_TIMEOUT, || world.agent.log().contains("protection.kept"));
    closed(&world);
    assert!(world.agent.must(&["status"]).contains("kept"));
    let detail = world.admin.layer(VM, postern_proto::v1::Layer::Host).unwrap().detail;
    assert!(detail.contains("the store went back"), "{detail}");

    world.admin.put_policy(usual_policy().wire()).unwrap();
    world.admin.wait_in_sync(VM);
    wait_until("the agent to follow", STEP_TIMEOUT, || !world.agent.must(&["status"]).contains("kept"));
    closed(&world);
    world.alice.open(&ask_for(&world.net.alice).seconds(60));
    assert_eq!(world.net.alice.reach(world.net.vm.tcp(TCP)), Reach::Open);
}

#[test]
fn i1_a_change_of_one_policy_does_not_make_the_loss_of_another_the_rule() {
    let mut world = HostWorld::new();
    attack(
        &mut world,
        &[
            "DELETE FROM documents WHERE place GLOB 'policies/*'",
            "DELETE FROM documents WHERE place GLOB 'manifests/*'",
        ],
    );
    let listed = world.admin.cli().run(&["policy", "list"]);
    assert!(listed.code == 0 && listed.err.contains("went back"), "{} {}", listed.code, listed.err);
    world.admin.put_policy(a_policy().named("other").on("host:other").port("tcp/22").wire()).unwrap();
    let listed = world.admin.cli().run(&["policy", "list"]);
    assert!(
        listed.out.contains("other") && listed.err.contains("is missing"),
        "{} {}",
        listed.out,
        listed.err
    );
    let refused = Refusal::from(world.alice.request(&ask_for(&world.net.alice)).unwrap_err());
    assert_eq!(refused.reason, "POLICIES_LOST", "{refused:?}");
    world.admin.wait_in_sync(VM);
    assert_eq!(
        world.net.mallory.reach(world.net.vm.tcp(TCP)),
        Reach::Filtered,
        "the host keeps its protection"
    );

    world.admin.put_policy(usual_policy().wire()).unwrap();
    world.admin.wait_in_sync(VM);
    world.alice.open(&ask_for(&world.net.alice).seconds(60));
    assert_eq!(world.net.alice.reach(world.net.vm.tcp(TCP)), Reach::Open);
}

#[test]
fn i7_a_forged_join_token_enrols_no_host() {
    let mut world = HostWorld::without_agent(usual_policy());
    let token = world.admin.join_token(VM, None).unwrap();
    attack(
        &mut world,
        &["UPDATE documents SET body = replace(body, 'host:vm-1', 'host:vm-2') WHERE place GLOB 'tokens/*'"],
    );
    let refused = world.agent.try_enroll(&token);
    assert!(!refused.status.success());
    assert!(world.admin.agents().is_empty());
}

#[test]
fn i7_policies_that_are_put_back_from_a_backup_grant_nothing_until_one_is_applied() {
    let mut world = HostWorld::new();
    let policies = "place GLOB 'policies/*' OR place GLOB 'manifests/*'";
    let kept = format!("CREATE TABLE kept AS SELECT * FROM documents WHERE {policies}");
    Connection::open(world.broker.database()).unwrap().execute(&kept, []).unwrap();
    // The ports, the mode and the windows of the host stay.
    let hour = std::time::Duration::from_secs(3600);
    let narrow = a_policy().on(VM).port_within("tcp/22", &["203.0.113.0/24"], hour).port("udp/161");
    world.admin.put_policy(narrow.wire()).unwrap();
    world.admin.wait_in_sync(VM);
    let denied = Refusal::from(world.alice.request(&ask_for(&world.net.alice)).unwrap_err());
    assert_ne!(denied.reason, "POLICIES_LOST", "{denied:?}");

    let put_back = [
        format!("DELETE FROM documents WHERE {policies}"),
        "INSERT INTO documents SELECT * FROM kept".to_owned(),
    ];
    let put_back = put_back.each_ref().map(String::as_str);
    attack(&mut world, &put_back);
    let refused = Refusal::from(world.alice.request(&ask_for(&world.net.alice)).unwrap_err());
    assert_eq!(refused.reason, "POLICIES_LOST", "{refused:?}");
    wait_until("the status to say so", STEP_TIMEOUT, || {
        let (code, said) = status(&world);
        code == 9 && said.contains("went back")
    });
    world.admin.wait_in_sync(VM);
    assert_eq!(world.net.mallory.reach(world.net.vm.tcp(TCP)), Reach::Filtered);

    // A broker without its memory learns it from the agent, which has followed the newer policies.
    forget_seen(&world);
    attack(&mut world, &put_back);
    wait_until("the agent's generation to show", STEP_TIMEOUT, || {
        let (code, said) = status(&world);
        code == 9 && said.contains("older than those that agents have followed")
    });

    let narrow = a_policy().on(VM).port_within("tcp/22", &["203.0.113.0/24"], hour).port("udp/161");
    world.admin.put_policy(narrow.wire()).unwrap();
    wait_until("the status to be good again", STEP_TIMEOUT, || !status(&world).1.contains("older than"));
    world.admin.put_policy(usual_policy().wire()).unwrap();
    world.alice.open(&ask_for(&world.net.alice).seconds(60));
    assert_eq!(world.net.alice.reach(world.net.vm.tcp(TCP)), Reach::Open);
}

#[test]
fn i1_the_deletion_of_a_forged_policy_frees_its_hosts_at_once() {
    let mut world = HostWorld::new();
    attack(
        &mut world,
        &["UPDATE documents SET body = replace(body, 'tcp/22', 'tcp/23') WHERE place GLOB 'policies/*'"],
    );
    let detail = |world: &HostWorld| {
        world.admin.layer(VM, postern_proto::v1::Layer::Host).map(|layer| layer.detail).unwrap_or_default()
    };
    wait_until("the host to keep its protection", STEP_TIMEOUT, || {
        detail(&world).contains("policies cannot be read")
    });
    let name = usual_policy().wire().name;
    let outcome = world.admin.cli().run(&["policy", "delete", &name]);
    assert_eq!(outcome.code, 0, "{}", outcome.err);
    wait_until("the policies to be readable for the host", STEP_TIMEOUT, || {
        world.admin.layer(VM, postern_proto::v1::Layer::Host).is_none_or(|layer| layer.detail.is_empty())
    });
    wait_until("the agent to follow", STEP_TIMEOUT, || !world.agent.must(&["status"]).contains("tcp/22"));
}
