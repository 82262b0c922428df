//! The real broker, and where it matters the real agent, over EC2.

use std::collections::BTreeSet;
use std::time::Duration;

use postern_proto::v1::{GrantState, Layer, LayerStatus, Layers};
use postern_tests::clock::{sleep_until, wait_until};
use postern_tests::ec2::{AwsWorld, CrashPoint, Fault, RuleSpec, When, refused};
use postern_tests::{FakeTime, Reach, STEP_TIMEOUT, TCP, a_policy, a_request, end_of};

/// The longest pause between two attempts to close a window, in seconds.
const LONGEST_PAUSE: i64 = 30;
/// The time within which a window must close in the cloud, on a machine that is busy.
const CLOSED_WITHIN: Duration = Duration::from_secs(5);

fn shut(world: &AwsWorld) -> bool {
    world.open_sources().is_empty()
}

#[test]
fn i5_a_grant_is_active_once_both_layers_are_open_and_closed_once_both_are_shut() {
    let world = AwsWorld::new(Layers::Both);
    let port = world.net.vm.tcp(TCP);
    assert_eq!((world.net.alice.reach(port), shut(&world)), (Reach::Filtered, true));
    let grant = world.alice.open(&world.ask());
    assert_eq!(world.net.alice.reach(port), Reach::Open);
    assert_eq!(world.open_sources(), [format!("{}/32", world.net.alice.v4())]);
    let shown = world.alice.cli().run(&["show", &grant.id]);
    assert!(shown.out.contains("open  open"), "each layer says how it stands: {}", shown.out);

    let connection = world.net.alice.connect(port);
    let closed = world.alice.revoke(&grant.id).unwrap();
    assert_eq!(closed.state(), GrantState::Closed);
    assert_eq!((world.net.alice.reach(port), shut(&world)), (Reach::Filtered, true));
    assert!(connection.echoes(), "I3");
}

#[test]
fn i5_what_the_cloud_refuses_is_rolled_back_in_the_host_too() {
    let world = AwsWorld::new(Layers::Both);
    world.ec2.fail("AuthorizeSecurityGroupIngress", 1, refused(400, "RulesPerSecurityGroupLimitExceeded"));
    let answer = world.alice.request(&world.ask().waiting(STEP_TIMEOUT)).unwrap();
    let grant = world.alice.wait_for_state(&answer.grant.unwrap().id, GrantState::Failed);
    assert!(
        grant.reason.contains("ask an operator")
            && !grant.reason.contains("quota of rules per security group"),
        "{grant:?}"
    );
    let grant = world.admin.grant(&grant.id).unwrap();
    assert!(grant.reason.contains("quota of rules per security group"), "{grant:?}");
    assert_eq!((world.net.alice.reach(world.net.vm.tcp(TCP)), shut(&world)), (Reach::Filtered, true));
}

#[test]
fn a_target_that_is_not_under_lockdown_refuses_with_the_remedy() {
    let world = AwsWorld::unlocked(Layers::Cloud);
    let answer = world.alice.request(&world.ask().waiting(STEP_TIMEOUT)).unwrap();
    let grant = world.alice.wait_for_state(&answer.grant.unwrap().id, GrantState::Failed);
    assert!(
        grant.reason.contains("ask an operator") && !grant.reason.contains("`postern lockdown"),
        "{grant:?}"
    );
    let grant = world.admin.grant(&grant.id).unwrap();
    assert!(grant.reason.contains("`postern lockdown"), "{grant:?}");
}

#[test]
fn twenty_grants_at_once_all_open_and_all_close() {
    let world = AwsWorld::new(Layers::Cloud);
    let requests: Vec<_> = (1..=20)
        .map(|number| {
            let ask = a_request().on(&world.target()).port("tcp/22").from(format!("198.51.100.{number}"));
            world.alice.start_request(&ask.waiting(STEP_TIMEOUT))
        })
        .collect();
    let grants: Vec<_> = requests.into_iter().map(|request| request.join().unwrap().grant.unwrap()).collect();
    for grant in &grants {
        world.alice.wait_for_state(&grant.id, GrantState::Active);
    }
    let sources: BTreeSet<String> = world.open_sources().into_iter().collect();
    assert_eq!(sources.len(), 20);
    for grant in &grants {
        world.alice.revoke(&grant.id).unwrap();
    }
    wait_until("every window to close", STEP_TIMEOUT, || shut(&world));
}

#[test]
fn i2_a_window_closes_soon_after_its_end_and_i3_in_the_cloud_for_everyone_alike() {
    let world = AwsWorld::new(Layers::Cloud);
    let grant = world.alice.open(&world.ask().seconds(2));
    sleep_until(end_of(&grant));
    wait_until("the window to close", CLOSED_WITHIN, || shut(&world));
    world.alice.wait_for_state(&grant.id, GrantState::Closed);
}

#[test]
fn i2_an_outage_across_the_end_delays_the_cloud_alone_and_alarms() {
    let world = AwsWorld::new(Layers::Both);
    let watch = world.net.alice.watch(world.net.vm.tcp(TCP));
    let grant = world.alice.open(&world.ask().seconds(3));
    world.ec2.outage(true);
    sleep_until(end_of(&grant) + Duration::from_millis(1500));
    watch.stop().assert_closed_at(end_of(&grant));
    wait_until("the alarm", STEP_TIMEOUT, || !world.admin.audited("cloud.alarm").is_empty());
    assert!(world.broker.log().contains("cloud.failing"), "{}", world.broker.log());
    assert!(world.metrics().contains("postern_cloud_stuck_targets 1"), "{}", world.metrics());
    let standing = world.alice.grant(&grant.id).unwrap();
    assert_eq!((standing.state(), shut(&world)), (GrantState::Closing, false));
    let layer = world.admin.layer(&world.target(), Layer::Cloud).unwrap();
    assert!(layer.status() == LayerStatus::Unreachable && !layer.detail.is_empty(), "{layer:?}");

    world.ec2.outage(false);
    world.alice.wait_for_state(&grant.id, GrantState::Closed);
    assert!(shut(&world));
    assert!(world.metrics().contains("postern_cloud_stuck_targets 0"), "{}", world.metrics());
}

#[test]
fn i2_an_outage_of_minutes_across_the_end_ends_with_the_window_closed_soon_after() {
    let mut world = AwsWorld::new(Layers::Both);
    let clock = FakeTime::passing(world.dir());
    world.broker.live_by(&clock);
    world.broker.restart();
    world.admin.wait_in_sync(&world.target());
    let watch = world.net.alice.watch(world.net.vm.tcp(TCP));
    let grant = world.alice.open(&world.ask().seconds(5));
    world.ec2.outage(true);
    sleep_until(end_of(&grant) + Duration::from_millis(1500));
    watch.stop().assert_closed_at(end_of(&grant));
    // The host layer is done, by the true time. What is left is the broker's, for which two minutes pass in less.
    clock.pass(120, || false);
    assert_eq!((world.alice.grant(&grant.id).unwrap().state(), shut(&world)), (GrantState::Closing, false));
    assert_eq!(world.admin.audited("cloud.alarm").len(), 1, "not one for each failure");

    world.ec2.outage(false);
    clock.pass(LONGEST_PAUSE, || shut(&world));
    wait_until("the window to close", CLOSED_WITHIN, || shut(&world));
    world.alice.wait_for_state(&grant.id, GrantState::Closed);
    assert!(world.metrics().contains("postern_cloud_stuck_targets 0"), "{}", world.metrics());
}

#[test]
fn i5_a_window_whose_opening_got_no_answer_is_closed_with_the_grant_that_failed() {
    let world = AwsWorld::new(Layers::Both);
    let warm = world.alice.open(&world.ask());
    world.alice.revoke(&warm.id).unwrap();
    world.ec2.fail("AuthorizeSecurityGroupIngress", 1, Fault::Lost);
    // And then EC2 does not answer until the grant has been given up.
    world.ec2.fail("*", 1000, Fault::Dropped);
    let answer = world.alice.request(&world.ask().seconds(4)).unwrap();
    let grant = world.alice.wait_for_state(&answer.grant.unwrap().id, GrantState::Closing);
    assert!(!shut(&world), "it took effect");
    assert_eq!(world.net.alice.reach(world.net.vm.tcp(TCP)), Reach::Filtered);
    world.ec2.forgive();
    let grant = world.alice.wait_for_state(&grant.id, GrantState::Failed);
    assert!(
        grant.reason.contains("end passed") || grant.reason.contains("not confirmed in time"),
        "{grant:?}"
    );
    assert!(shut(&world));
}

#[test]
fn i8_a_lockdown_whose_broker_is_killed_is_finished_by_the_next_one() {
    let mut world = AwsWorld::unlocked(Layers::Cloud);
    world.ec2.halt_at(CrashPoint { change: 5, when: When::After });
    let (cli, target) = (world.admin.cli(), world.target());
    let running = std::thread::spawn(move || cli.run(&["lockdown", &target, "--accept", "cut"]));
    world.ec2.wait_until_halted();
    world.broker.process().kill9();
    world.ec2.go_on();
    assert!(!running.join().unwrap().succeeded(), "no broker answered");
    assert!(!world.cloud.rules(&world.group).is_empty(), "it is half done");
    world.broker.serve();
    wait_until("the sweep to finish it", STEP_TIMEOUT, || world.cloud.rules(&world.group).is_empty());
    world.alice.open(&world.ask());
}

#[test]
fn i2_a_broker_with_an_empty_store_closes_what_it_finds_and_says_so() {
    let mut world = AwsWorld::new(Layers::Cloud);
    let grant = world.alice.open(&world.ask());
    assert!(!shut(&world));
    world.broker.process().kill9();
    world.broker.empty_store();
    world.broker.serve();
    wait_until("the window to close", STEP_TIMEOUT, || shut(&world));
    wait_until("a line in the log", STEP_TIMEOUT, || {
        !world.admin.audited("cloud.unknown_window_closed").is_empty()
    });
    assert!(world.admin.audited("cloud.unknown_window_closed")[0].contains(&grant.id));
    // And what was locked down before its time can be released.
    let released = world.admin.cli().run(&["release", &world.target()]);
    assert!(released.succeeded(), "{released:?}");
    assert_eq!(world.cloud.rules(&world.group), [RuleSpec::tcp(22, 22, "0.0.0.0/0").described("ssh")].into());
}

#[test]
fn changes_by_others_to_posterns_rules_are_undone_and_audited() {
    let world = AwsWorld::new(Layers::Cloud);
    let grant = world.alice.open(&world.ask());
    let (own, open) = (world.cloud.own_group(&world.instance).unwrap(), world.open_sources());
    let source = open[0].clone();

    world.cloud.revoke(&own, &RuleSpec::tcp(22, 22, &source));
    wait_until("the window to come back", STEP_TIMEOUT, || world.open_sources() == open);
    world.cloud.allow(&own, &RuleSpec::tcp(0, 65535, "0.0.0.0/0"));
    wait_until("the strange rule to go", STEP_TIMEOUT, || world.open_sources() == open);
    world.cloud.widen_rules(&own);
    let narrow = || world.cloud.windows(&world.instance) == [(22, source.clone())].into();
    wait_until("the widened window to be narrow again", STEP_TIMEOUT, narrow);
    let interface = world.cloud.interfaces(&world.instance).into_keys().next().unwrap();
    world.cloud.set_groups(&interface, &[&world.group]);
    let attached = || world.cloud.interfaces(&world.instance)[&interface].contains(&own);
    wait_until("the own group to come back", STEP_TIMEOUT, attached);
    let reported = || world.admin.audited("cloud.drift");
    let reports = |words: &str| reported().iter().any(|line| line.contains(words));
    let all = [
        "another principal closed",
        "another principal made a rule in its own group",
        "its own group is not on",
    ];
    wait_until("all of it to be reported", STEP_TIMEOUT, || all.iter().all(|words| reports(words)));

    world.cloud.allow(&world.group, &RuleSpec::tcp(22, 22, "10.0.0.0/8"));
    let detail = || world.admin.layer(&world.target(), Layer::Cloud).unwrap().detail;
    wait_until("the target to say so", STEP_TIMEOUT, || detail().contains("it is not shut: tcp/22 exposed"));
    wait_until("that to be reported", STEP_TIMEOUT, || reports("it is not shut"));
    let lines = reported().len();
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(reported().len(), lines, "what lasts is reported once: {:?}", reported());
    world.cloud.revoke(&world.group, &RuleSpec::tcp(22, 22, "10.0.0.0/8"));
    wait_until("the target to be well again", STEP_TIMEOUT, || detail().is_empty());
    assert_eq!(world.alice.grant(&grant.id).unwrap().state(), GrantState::Active);
    // One that the lockdown parked, and that another tool puts back, goes again.
    world.cloud.allow(&world.group, &RuleSpec::tcp(22, 22, "0.0.0.0/0"));
    wait_until("the parked rule to go again", STEP_TIMEOUT, || world.cloud.rules(&world.group).is_empty());
    wait_until("the target to be well again", STEP_TIMEOUT, || detail().is_empty());
}

#[test]
fn a_port_that_comes_to_the_policy_after_the_lockdown_is_reported_and_shut_by_the_next_one() {
    let world = AwsWorld::new(Layers::Cloud);
    let detail = || world.admin.layer(&world.target(), Layer::Cloud).unwrap().detail;
    let policy = a_policy().on(&world.target()).port("tcp/22").port("tcp/3389").layers(Layers::Cloud);
    world.admin.put_policy(policy.wire()).unwrap();
    wait_until("the target to say so", STEP_TIMEOUT, || {
        detail().contains("its policies protect tcp/3389, which the lockdown does not shut")
    });
    assert!(!world.admin.cli().run(&["targets"]).out.contains("in_sync"));
    let locked = world.admin.cli().run(&["lockdown", &world.target(), "--accept", "cut,loss"]);
    assert!(locked.succeeded(), "{locked:?}");
    wait_until("the target to be well again", STEP_TIMEOUT, || detail().is_empty());
}

#[test]
fn an_instance_that_is_terminated_while_a_window_is_open_ends_the_grant() {
    let world = AwsWorld::new(Layers::Cloud);
    let grant = world.alice.open(&world.ask().seconds(3));
    world.cloud.terminate(&world.instance);
    world.alice.wait_for_state(&grant.id, GrantState::Closed);
    wait_until("Postern's group to go", STEP_TIMEOUT, || world.cloud.own_group(&world.instance).is_none());
}

#[test]
fn the_command_assesses_locks_down_and_releases() {
    let world = AwsWorld::unlocked(Layers::Cloud);
    let (cli, target) = (world.admin.cli(), world.target());
    let before = world.cloud.rules(&world.group);
    let assessed = cli.run(&["assess"]);
    assert!(
        assessed.out.contains("unhealthy") && assessed.out.contains("anyone (0.0.0.0/0)"),
        "{assessed:?}"
    );

    let dry = cli.run(&["lockdown", &target, "--dry-run"]);
    assert!(dry.out.contains(&world.group) && dry.out.contains("cut"), "{dry:?}");
    let asked = cli.run(&["lockdown", &target]);
    assert!(!asked.succeeded() && (asked.out + &asked.err).contains("--accept cut"));
    assert_eq!(
        (world.cloud.rules(&world.group), world.cloud.groups_of_postern()),
        (before.clone(), BTreeSet::new())
    );
    assert!(cli.run(&["lockdown", &target, "--accept", "cut"]).succeeded());
    assert!(world.cloud.rules(&world.group).is_empty());
    let status = || world.admin.layer(&target, Layer::Cloud).map(|layer| layer.status());
    wait_until("the cloud layer to be in sync", STEP_TIMEOUT, || status() == Some(LayerStatus::InSync));
    assert!(cli.run(&["targets"]).out.contains(&target));
    assert!(cli.run(&["assess"]).out.contains("healthy"));

    let grant = world.alice.open(&world.ask());
    let refused = cli.run(&["release", &target]);
    assert!(!refused.succeeded() && (refused.out + &refused.err).contains(&grant.id));
    world.alice.revoke(&grant.id).unwrap();
    assert!(cli.run(&["release", &target]).succeeded());
    assert_eq!((world.cloud.rules(&world.group), world.cloud.groups_of_postern()), (before, BTreeSet::new()));
    for action in ["target.lockdown.requested", "target.lockdown.done", "target.release.done"] {
        assert!(!world.admin.audited(action).is_empty(), "{action}");
    }
}

/// Kills the broker at every point between two changes of `act`, until `is_done` comes before the point, and starts it again.
fn killed_everywhere(
    world: &mut AwsWorld,
    mut prepare: impl FnMut(&AwsWorld) -> Vec<String>,
    act: impl Fn(&AwsWorld, &[String]),
    is_done: impl Fn(&AwsWorld, &[String]) -> bool,
    check: impl Fn(&AwsWorld, &[String]),
) -> usize {
    let mut points = 0;
    for change in 1.. {
        for when in [When::Before, When::After] {
            let grants = prepare(world);
            world.ec2.halt_at(CrashPoint { change, when });
            act(world, &grants);
            wait_until("the point or the end", STEP_TIMEOUT, || {
                world.ec2.has_halted() || is_done(world, &grants)
            });
            if !world.ec2.has_halted() {
                world.ec2.go_on();
                return points;
            }
            points += 1;
            world.broker.process().kill9();
            world.ec2.go_on();
            world.broker.serve();
            check(world, &grants);
        }
    }
    points
}

fn close_all(world: &AwsWorld) {
    for grant in world.alice.grants() {
        if grant.state() != GrantState::Closed {
            world.alice.revoke(&grant.id).unwrap();
        }
    }
    wait_until("every window to close", STEP_TIMEOUT, || shut(world));
}

#[test]
fn i8_a_broker_that_is_killed_between_any_two_calls_of_an_open_opens_it_all_the_same() {
    let mut world = AwsWorld::new(Layers::Cloud);
    let (policy, everyone) = (a_policy().on(&world.target()).layers(Layers::Cloud), ["*", "0.0.0.0/0"]);
    let policy = ["tcp/22", "tcp/3389"]
        .iter()
        .fold(policy, |policy, port| policy.port_within(port, &everyone, Duration::from_secs(3600)));
    world.admin.put_policy(policy.wire()).unwrap();
    let bob = world.broker.client(&world.net.mallory, "bob", postern_core::Role::Requester);
    let shared = a_request().on(&world.target()).port("tcp/22").from("203.0.113.0/24");
    let bobs = bob.open(&shared.seconds(600)).id;
    let own = [(22, "203.0.113.0/24")];
    let all = [
        (22, "0.0.0.0/1"),
        (22, "128.0.0.0/1"),
        (22, "203.0.113.0/24"),
        (3389, "0.0.0.0/1"),
        (3389, "128.0.0.0/1"),
        (3389, "203.0.113.0/24"),
    ];
    let holds = |world: &AwsWorld, expected: &[(i32, &str)]| {
        let expected = expected.iter().map(|(port, source)| (*port, (*source).to_owned())).collect();
        assert_eq!(world.cloud.windows(&world.instance), expected);
    };
    let newest = |world: &AwsWorld| world.alice.grants().into_iter().max_by_key(|grant| grant.id.clone());
    let points = killed_everywhere(
        &mut world,
        |world| {
            holds(world, &own);
            Vec::new()
        },
        |world, _| {
            // One rule is bob's as well, one source is everyone, and two ports: a call of every kind.
            let ask = a_request().on(&world.target()).port("tcp/22").port("tcp/3389");
            let ask = ask.from("203.0.113.0/24").from("0.0.0.0/0").waiting(Duration::ZERO);
            world.alice.request(&ask).unwrap();
        },
        |world, _| newest(world).is_some_and(|grant| grant.state() == GrantState::Active),
        |world, _| {
            let grant = newest(world).unwrap();
            world.alice.wait_for_state(&grant.id, GrantState::Active);
            holds(world, &all);
            world.alice.revoke(&grant.id).unwrap();
            assert_eq!(bob.grant(&bobs).unwrap().state(), GrantState::Active);
        },
    );
    assert_eq!(points, 6, "before and after CreateTags, and one Authorize for each kind of mark");
}

#[test]
fn i6_a_broker_that_is_killed_between_any_two_calls_of_a_close_closes_it_all_the_same() {
    let mut world = AwsWorld::new(Layers::Cloud);
    let bob = world.broker.client(&world.net.mallory, "bob", postern_core::Role::Requester);
    let ask = |world: &AwsWorld, seconds| world.ask().from("203.0.113.0/24").seconds(seconds);
    let points = killed_everywhere(
        &mut world,
        |world| {
            close_all(world);
            // Bob shares one of the two rules, and ends first.
            let shared = a_request().on(&world.target()).port("tcp/22").from("203.0.113.0/24").seconds(600);
            vec![world.alice.open(&ask(world, 900)).id, bob.open(&shared).id]
        },
        |world, grants| {
            let request = postern_proto::v1::RevokeAccessRequest {
                grant_id: grants[0].clone(),
                ..postern_proto::v1::RevokeAccessRequest::default()
            };
            world.alice.run(|channel| async move {
                let mut client = postern_proto::v1::access_service_client::AccessServiceClient::new(channel);
                client.revoke_access(request).await.unwrap();
            });
        },
        |world, grants| world.alice.grant(&grants[0]).unwrap().state() == GrantState::Closed,
        |world, grants| {
            world.alice.wait_for_state(&grants[0], GrantState::Closed);
            assert_eq!(world.open_sources(), ["203.0.113.0/24"], "what is bob's stays");
            assert_eq!(bob.grant(&grants[1]).unwrap().state(), GrantState::Active);
            bob.revoke(&grants[1]).unwrap();
        },
    );
    assert!(points >= 6, "{points}: before and after each of DeleteTags, CreateTags and Revoke");
}
