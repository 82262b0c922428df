//! The storm: a load of requests over a fleet of agents, while a seeded driver kills, stops and cuts off brokers and
//! Redis; and then the checker, over everything that was seen.
//!
//! `POSTERN_SEED` replays a run, `POSTERN_STORM_SECONDS` makes it longer, `POSTERN_STORM_AGENTS` larger or smaller.

use std::fmt::Display;
use std::time::Duration;

use postern_core::audit::verify;
use postern_proto::v1;
use postern_proto::v1::access_service_client::AccessServiceClient;
use postern_tests::clock::{monotonic, wait_until, wall};
use postern_tests::{Client, end_of};

use crate::BROKERS;
use crate::check::violations;
use crate::driver::Driver;
use crate::history::{History, Opening, Stored};
use crate::load::Load;
use crate::schedule::Schedule;
use crate::summary::Summary;
use crate::world::{Options, ReplicaWorld};

/// The seed of the run that is always the same, and how many seconds of faults and load it has.
const SEED: u64 = 5;
const SECONDS: u64 = 40;
/// The length in seconds of a further run, each with a seed of its own.
const MORE_SECONDS: u64 = 20;
/// The number of agents, the instances' among them, unless the environment sets another.
const AGENTS: u64 = 200;
/// The number of agents that are cloud instances.
const INSTANCES: usize = 8;
const REQUESTERS: u8 = 6;
/// The time within which all grants must come to their end, once all faults are healed.
const SETTLED: Duration = Duration::from_secs(45);
/// The quiet time before the last look.
const QUIET: Duration = Duration::from_secs(2);

/// The log line of a broker that takes over another's work.
const TOOK_OVER: &str = "took over";

#[test]
fn i4_a_storm_loses_nothing_and_leaves_nothing_open() {
    let seconds = from_environment("POSTERN_STORM_SECONDS");
    let seeds = match from_environment("POSTERN_SEED") {
        Some(seed) => vec![(seed, seconds.unwrap_or(SECONDS))],
        None => vec![(SEED, seconds.unwrap_or(SECONDS)), (random_seed(), seconds.unwrap_or(MORE_SECONDS))],
    };
    let agents = from_environment("POSTERN_STORM_AGENTS").unwrap_or(AGENTS);
    let hosts = usize::try_from(agents).unwrap().saturating_sub(INSTANCES);
    let setting_up = monotonic();
    let options = Options { brokers: BROKERS, hosts, instances: INSTANCES, agents_at: None };
    let mut world = ReplicaWorld::new(&options);
    say(format!("{agents} agents after {:.1} s", setting_up.elapsed().as_secs_f64()));
    for (round, (seed, seconds)) in (0..).zip(seeds) {
        storm(&mut world, round, seed, Duration::from_secs(seconds));
    }
}

/// Runs a storm over a world. Requesters of different rounds are different people.
fn storm(world: &mut ReplicaWorld, round: u8, seed: u64, length: Duration) {
    let schedule = Schedule::of(seed, usize::from(BROKERS), length);
    say(&schedule);
    let from = wall();
    let watcher = world.fake_clouds.as_ref().unwrap().watch();
    let requesters = round * REQUESTERS..(round + 1) * REQUESTERS;
    let load = Load::start(world, requesters, seed, monotonic() + length);
    let faults = Driver::new(world).play(&schedule, length);
    let done = load.join();
    let admin = world.fresh_admin();
    wait_until(&format!("every grant to come to its end, seed {seed}"), SETTLED, || is_settled(&admin));
    std::thread::sleep(QUIET);
    let quiet = wall();
    let mut looks = watcher.stop();
    looks.push(world.fake_clouds.as_ref().unwrap().look());

    let record = world.fleet.record();
    let stored = admin.grants().iter().map(stored).filter(|grant| grant.requested_at >= from).collect();
    let history = History {
        hosts: record.hosts().into_iter().filter(|event| event.at >= from).collect(),
        looks,
        sessions: record.sessions().into_iter().filter(|event| event.at >= from).collect(),
        asked: done.asked,
        revoked: done.revoked,
        faults,
        stored,
        audit_problem: audit_problem(&admin),
        quiet,
    };
    let takeovers = world.replicas.all().iter().flat_map(|replica| replica.broker().logs());
    let takeovers = takeovers.map(|log| log.matches(TOOK_OVER).count()).sum();
    let taken = world.replicas.balancer().taken();
    say(Summary { seed, history: &history, takeovers, taken });
    say(format!("storm: sessions that did not open: {:?}", record.refusals()));
    let found = violations(&history);
    for violation in found.iter().take(20) {
        say(format!("VIOLATION {violation:?}"));
        violation.opening(&history).iter().for_each(|opening| say(history.story(opening)));
    }
    assert!(found.is_empty(), "{} violations; replay with POSTERN_SEED={seed}\n{schedule}", found.len());
    assert!(history.looks.len() > 20 && !history.hosts.is_empty(), "the run was watched");
    assert!(history.faults.len() >= schedule.faults.len(), "every fault was played");
}

fn is_settled(admin: &Client) -> bool {
    let states = [v1::GrantState::Opening, v1::GrantState::Active, v1::GrantState::Closing];
    let filter = v1::GrantFilter { states: states.map(Into::into).to_vec(), ..v1::GrantFilter::default() };
    let page = Some(v1::PageRequest { size: 1, token: String::new() });
    let request = v1::ListGrantsRequest { filter: Some(filter), page };
    let page =
        admin.run(|channel| async move { AccessServiceClient::new(channel).list_grants(request).await });
    // A connection that broke is made again.
    page.is_ok_and(|page| page.into_inner().grants.is_empty())
}

fn audit_problem(admin: &Client) -> Option<String> {
    let answer = admin.verify_audit();
    if !answer.sound {
        return Some(format!("line {}: {}", answer.broken_line, answer.problem));
    }
    let lines = admin.audit();
    // Nothing that a storm does makes the log contradict a signed checkpoint.
    let is_alarm = |line: &&String| {
        ["audit.went_back", "audit.rewritten", "audit.broken", "agent.audit_contradicted"]
            .iter()
            .any(|action| line.contains(&format!("\"action\":\"{action}\"")))
    };
    if let Some(alarm) = lines.iter().find(is_alarm) {
        return Some(alarm.clone());
    }
    verify(lines.iter().map(String::as_str)).err().map(|error| error.to_string())
}

fn stored(grant: &v1::Grant) -> Stored {
    let time = |at: &Option<prost_types::Timestamp>| {
        at.as_ref().map(|at| postern_proto::convert::timestamp("at", at).unwrap())
    };
    let openings = grant.windows.iter().map(|window| Opening::new(&window.target, &window.source));
    Stored {
        id: grant.id.clone(),
        state: grant.state(),
        reason: grant.close_reason(),
        requested_at: time(&grant.requested_at).unwrap(),
        not_after: end_of(grant),
        opened_at: time(&grant.opened_at),
        openings: openings.collect(),
    }
}

fn from_environment(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text:?} is not a number")))
}

fn random_seed() -> u64 {
    rand::random_range(1_000..1_000_000)
}

/// Prints a line into the test's output.
#[allow(clippy::print_stderr, reason = "the storm shows its progress in the output of the test")]
fn say(what: impl Display) {
    eprintln!("{what}");
}
