//! A storm: people come and go while EC2 throttles, fails, and loses answers.

use std::collections::BTreeSet;
use std::time::Duration;

use postern_proto::v1::{GrantState, Layers};
use postern_tests::clock::wait_until;
use postern_tests::ec2::{AwsWorld, Fault, refused, throttled};
use postern_tests::{STEP_TIMEOUT, a_policy, a_request};
use rand::prelude::*;
use rand::rngs::StdRng;

/// The actions that a grant needs, and what may befall them.
const ACTIONS: [&str; 7] = [
    "AuthorizeSecurityGroupIngress",
    "RevokeSecurityGroupIngress",
    "CreateTags",
    "DeleteTags",
    "DescribeSecurityGroups",
    "DescribeSecurityGroupRules",
    "DescribeNetworkInterfaces",
];

fn fault(rng: &mut StdRng) -> Fault {
    match rng.random_range(0..5) {
        0 => throttled(),
        1 => refused(500, "InternalError"),
        2 => Fault::Dropped,
        3 => Fault::Slow(Duration::from_millis(rng.random_range(1..200))),
        _ => Fault::Lost,
    }
}

fn storm(seed: u64, stale: Option<Duration>) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut world = AwsWorld::new(Layers::Cloud);
    let bob = world.broker.client(&world.net.mallory, "bob", postern_core::Role::Requester);
    let everyone = a_policy().on(&world.target()).layers(Layers::Cloud);
    let everyone = everyone.port_within("tcp/22", &["*", "0.0.0.0/0"], Duration::from_secs(3600));
    world.admin.put_policy(everyone.wire()).unwrap();
    if let Some(span) = stale {
        world.ec2.stale_reads(span);
    }
    let mut grants: Vec<(bool, String)> = Vec::new();
    for turn in 0..40 {
        if rng.random_bool(0.5) {
            let action = *ACTIONS.choose(&mut rng).unwrap();
            world.ec2.fail(action, rng.random_range(1..3), fault(&mut rng));
        }
        // Few sources, so that rules are shared.
        let source = match rng.random_range(0..6) {
            0 => "0.0.0.0/0".to_owned(),
            number => format!("198.51.100.{number}"),
        };
        let is_bob = rng.random_bool(0.5);
        let who = if is_bob { &bob } else { &world.alice };
        let ask = a_request().on(&world.target()).port("tcp/22").from(&source);
        match rng.random_range(0..10) {
            0..6 => {
                let ask = ask.seconds(rng.random_range(2..600)).waiting(Duration::ZERO);
                grants.push((is_bob, who.request(&ask).unwrap().grant.unwrap().id));
            }
            6..9 => {
                if let Some((is_bob, id)) = grants.choose(&mut rng) {
                    let who = if *is_bob { &bob } else { &world.alice };
                    let id = id.clone();
                    let request = postern_proto::v1::RevokeAccessRequest {
                        grant_id: id,
                        ..postern_proto::v1::RevokeAccessRequest::default()
                    };
                    who.run(|channel| async move {
                        let mut client =
                            postern_proto::v1::access_service_client::AccessServiceClient::new(channel);
                        // It may be over already.
                        client.revoke_access(request).await.ok();
                    });
                }
            }
            _ if turn % 3 == 0 => {
                world.broker.process().kill9();
                world.broker.serve();
            }
            _ => {}
        }
        std::thread::sleep(Duration::from_millis(rng.random_range(0..120)));
    }
    world.ec2.forgive();

    let settled = |state| !matches!(state, GrantState::Opening | GrantState::Closing);
    let all = || -> Vec<_> { world.admin.grants() };
    wait_until("every grant to settle", STEP_TIMEOUT * 3, || {
        all().iter().all(|grant| settled(grant.state()))
    });
    let wanted = || -> BTreeSet<String> {
        let active = all().into_iter().filter(|grant| grant.state() == GrantState::Active);
        let sources = active.flat_map(|grant| grant.windows).map(|window| window.source);
        let rules = |source: String| match source.as_str() {
            "0.0.0.0/0" => vec!["0.0.0.0/1".to_owned(), "128.0.0.0/1".to_owned()],
            _ => vec![source],
        };
        sources.flat_map(rules).collect()
    };
    let open = || -> BTreeSet<String> { world.open_sources().into_iter().collect() };
    // What ends meanwhile closes a moment later.
    wait_until(&format!("EC2 to hold what is active, seed {seed}"), STEP_TIMEOUT, || open() == wanted());
    // EC2 itself is asked, past the proxy that ages answers, as soon as the broker has said that a grant is closed.
    let marked = |id: &str| {
        let rules = world.cloud.own_group(&world.instance).map(|group| world.cloud.rules(&group));
        let key = format!("postern:grant:{id}");
        rules.unwrap_or_default().into_iter().filter(|rule| rule.tags.contains_key(&key)).collect::<Vec<_>>()
    };
    let lasts = |state| matches!(state, GrantState::Active | GrantState::Closing);
    for grant in all().into_iter().filter(|grant| lasts(grant.state())) {
        // One that has ended meanwhile is refused, and is closed all the same.
        world.admin.revoke(&grant.id).ok();
        world.admin.wait_for_state(&grant.id, GrantState::Closed);
        assert_eq!(marked(&grant.id), [], "{} is closed, seed {seed}", grant.id);
    }
    assert_eq!(open(), BTreeSet::new(), "seed {seed}");
    assert!(world.admin.verify_audit().sound, "I9, seed {seed}");
    assert_eq!(
        world.admin.audited("cloud.unknown_window_closed"),
        [""; 0],
        "every window had a grant, seed {seed}"
    );
}

#[test]
fn i8_a_storm_of_faults_and_crashes_ends_with_exactly_what_is_active_open() {
    storm(1, None);
}

#[test]
fn i8_a_storm_over_reads_that_are_not_the_newest_ends_the_same() {
    storm(612, Some(Duration::from_millis(700)));
}
