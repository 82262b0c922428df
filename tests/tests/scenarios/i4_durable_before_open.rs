//! I4: an acknowledged grant survives kill -9 of the broker, and nothing is open without a record.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use postern_proto::v1;
use postern_tests::clock::monotonic;
use postern_tests::{HostWorld, Reach, TCP, VM, a_request, further_addresses};

/// The number of times that the broker is killed, each time a little later after the request was sent: from the moment it
/// is sent to twice as long as an answer usually takes on this machine.
const KILLS: u8 = 20;
/// The most kills after those, each after twice the time of the one before, until an answer comes before the kill.
const LATER_KILLS: u8 = 8;

#[test]
fn i4_no_acknowledged_grant_is_lost_and_nothing_is_open_without_a_record() {
    let mut world = HostWorld::new();
    world.net.alice.add_addresses(further_addresses(KILLS + LATER_KILLS));
    let mut acknowledged = BTreeSet::new();
    let mut kills = 0;
    let mut later = Duration::ZERO;
    let step = usual_answer(&world) * 2 / u32::from(KILLS);
    for source in further_addresses(KILLS + LATER_KILLS) {
        if kills >= KILLS && !acknowledged.is_empty() {
            break;
        }
        if let Some(grant) = request_and_kill(&mut world, source, later) {
            acknowledged.insert(grant);
        }
        kills += 1;
        // On a machine that has become slower, no answer came within twice the time that was usual: wait longer.
        later = if kills < KILLS { step * u32::from(kills) } else { later * 2 };
        // While the broker is dead, what is open is what it left: it must have a record when it is back.
        let sources: Vec<IpAddr> = further_addresses(KILLS + LATER_KILLS).map(IpAddr::V4).collect();
        let reaches = world.net.alice.reach_from_each(&sources, world.net.vm.tcp(TCP));
        world.broker.restart();
        world.admin.wait_in_sync(VM);
        let recorded = recorded_sources(&world);
        for (source, reach) in sources.iter().zip(reaches) {
            assert!(
                reach == Reach::Filtered || recorded.contains(source),
                "{source} was open without a record"
            );
        }
    }
    let recorded: BTreeSet<String> = world.admin.grants().into_iter().map(|grant| grant.id).collect();
    let lost: Vec<_> = acknowledged.difference(&recorded).collect();
    assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
    let missed = usize::from(kills) - acknowledged.len();
    assert!(
        !acknowledged.is_empty() && missed > 0,
        "the kills did not straddle the acknowledgement: {missed} missed"
    );

    let audit = world.admin.verify_audit();
    assert!(audit.sound, "line {}: {}", audit.broken_line, audit.problem);
    let log = world.admin.audit().join("\n");
    for grant in &recorded {
        assert!(log.contains(&format!("\"grant\":\"{grant}\"")), "{grant} has no audit line");
    }
}

/// Returns the median time of an answer.
fn usual_answer(world: &HostWorld) -> Duration {
    let ask = a_request().on(VM).port("tcp/22").from("203.0.113.1").seconds(600);
    let mut took: Vec<Duration> = (0..9)
        .map(|_| {
            let start = monotonic();
            world.alice.request(&ask).unwrap();
            start.elapsed()
        })
        .collect();
    took.sort_unstable();
    took[took.len() / 2]
}

/// Sends a request and kills the broker so much later. Returns the grant's id if it was acknowledged.
fn request_and_kill(world: &mut HostWorld, source: Ipv4Addr, later: Duration) -> Option<String> {
    // The connection is up before the clock starts.
    world.alice.grants();
    let ask = a_request().on(VM).port("tcp/22").from(source).seconds(600);
    let start = monotonic();
    let request = world.alice.start_request(&ask);
    while start.elapsed() < later {
        std::hint::spin_loop();
    }
    world.broker.process().kill9();
    request.join().ok().and_then(|answer| answer.grant).map(|grant| grant.id)
}

/// The addresses that some recorded grant opens the VM to.
fn recorded_sources(world: &HostWorld) -> BTreeSet<IpAddr> {
    let windows = world.admin.grants().into_iter().flat_map(|grant: v1::Grant| grant.windows);
    windows.map(|window| window.source.trim_end_matches("/32").parse().unwrap()).collect()
}
