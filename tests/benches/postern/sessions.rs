//! Ten thousand agents with sessions on one broker, beside a bare server of the same streams: what an idle one takes in
//! memory, how soon one receives a push and has answered, and how fast all of them come back after a restart.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use jiff::Timestamp;
use postern_core::audit::AuditEvent;
use postern_core::{AgentKeys, TargetId};
use postern_pki::authority::AGENT_LIFETIME;
use postern_pki::credentials::{Credentials, KeyPair};
use postern_pki::identity::{SpiffeId, key_hash};
use postern_proto::v1;
use postern_proto::v1::agent_service_client::AgentServiceClient;
use postern_store::embedded::Embedded;
use postern_store::{AgentRecord, Expect, Transaction};
use postern_tests::clock::{monotonic, wall};
use postern_tests::{Broker, Client, HIGH_QUOTAS, Host, HostWorld, Net, STEP_TIMEOUT, a_policy, a_request};

use crate::agent_fleet::{AgentFleet, HEARTBEAT};
use crate::bare_server;
use crate::lines::{Samples, line, note, percentiles};
use crate::many::kibibytes;

/// The number of agents, unless POSTERN_BENCH_SESSIONS sets another.
const SESSIONS: usize = 10_000;
/// The number of agents that the server pushes to: they run on a host of their own, where nothing keeps them from
/// answering. They warm the server up, too.
const WATCHED: usize = 300;
/// The number of times that all agents lose their sessions at once and come back.
const STORMS: usize = 3;
/// The pause between two pushes.
const APART: Duration = Duration::from_millis(10);

/// All agents of the bench connect from two addresses, as fast as they can.
const HIGH_RATE: &str = "[limits]\nload_balancers = [\"192.0.2.0/24\"]\nhandshakes_per_second = 100000\n";

/// A server under measurement.
trait Server: Sync {
    fn url(&self) -> String;
    fn pid(&mut self) -> u32;
    fn kill(&mut self);
    /// Starts it again, and returns once it listens.
    fn start(&mut self);
    /// Pushes to an agent, and waits for its acknowledgement. Returns a receipt; none where the agent has no session.
    fn push(&self, target: &str) -> Option<String>;
    /// Returns the times from the push to the acknowledgement, by the server's own account.
    fn took(&self, receipts: &[String]) -> Samples;
}

/// The measurements of a server.
struct Measured {
    memory: f64,
    calm: Pushes,
    /// The rate of new sessions per second, in the median storm.
    rate: f64,
    storm: Pushes,
}

/// The times of pushes to agents.
#[derive(Default)]
struct Pushes {
    /// The times from the call to the agent.
    delivered: Samples,
    /// The times from the server to the agent and back.
    acknowledged: Samples,
}

pub(crate) fn measure() {
    let count = std::env::var("POSTERN_BENCH_SESSIONS").map_or(SESSIONS, |count| count.parse().unwrap());
    let mut world = HostWorld::without_agent_configured(
        a_policy().on("host:*").port("tcp/22"),
        &format!("{HIGH_QUOTAS}{HIGH_RATE}"),
    );
    let identities = enroll_all(&mut world, count);
    let bare_identity = bare_server::identity(&world);
    let HostWorld { broker, alice, net, .. } = &mut world;

    let postern = take(&mut Postern { broker, alice }, net, &identities);
    broker.process().kill9();
    let client = Client::new(&net.hub, &bare_server::url(), alice.identity());
    let child = bare_server::start(&net.hub, &bare_identity);
    let mut bare = Bare { identity: &bare_identity, host: &net.hub, child, client };
    let beside = take(&mut bare, net, &identities);
    bare.kill();

    note(&format!(
        "{count} sessions; targets: memory within 1.25 times the bare stream, pushes within 2 times, also while"
    ));
    note(
        "all come back, and these at 0.8 times the bare rate or better; a request's way has a durable commit in it",
    );
    line("memory-per-idle-session", postern.memory, "bare-tonic-stream", beside.memory, "KiB");
    percentiles(
        "push-and-acknowledgement",
        &postern.calm.acknowledged,
        "bare-tonic-stream",
        &beside.calm.acknowledged,
    );
    percentiles("request-to-agent", &postern.calm.delivered, "bare-call-to-agent", &beside.calm.delivered);
    line("reconnect-storm", postern.rate, "bare-tonic-stream", beside.rate, "1/s");
    note(&format!(
        "pushes in the storms: {} and {}",
        postern.storm.acknowledged.len(),
        beside.storm.acknowledged.len()
    ));
    let (acknowledged, bare) = (&postern.storm.acknowledged, &beside.storm.acknowledged);
    percentiles("push-and-acknowledgement-in-the-storm", acknowledged, "bare-tonic-stream", bare);
    percentiles(
        "request-to-agent-in-the-storm",
        &postern.storm.delivered,
        "bare-call-to-agent",
        &beside.storm.delivered,
    );
}

/// Takes every measurement of one server.
fn take(server: &mut impl Server, net: &Net, identities: &[(String, Credentials)]) -> Measured {
    let count = identities.len();
    let watched = WATCHED.min(count / 2);
    let mut fleet = AgentFleet::of(&server.url(), identities);
    fleet.run(&net.vm, 0..watched);
    fleet.wait_synced(watched);
    thread::sleep(HEARTBEAT);
    let before = resident(server.pid());
    let half = usize::midpoint(watched, count);
    fleet.run(&net.alice, watched..half);
    fleet.run(&net.mallory, half..count);
    fleet.wait_synced(count);
    // Long enough for the last of them to have come to rest.
    thread::sleep(HEARTBEAT * 2);
    let memory = (resident(server.pid()) - before) / (count - watched) as f64;
    let never = AtomicBool::new(false);
    let calm = push_all(server, &fleet, 0..watched, &never);

    let mut storm = Pushes::default();
    let mut rates = Vec::new();
    for _ in 0..STORMS {
        fleet.set_gate(false);
        server.kill();
        fleet.wait_synced(0);
        server.start();
        let over = AtomicBool::new(false);
        let began = monotonic();
        fleet.set_gate(true);
        let (took, pushes) = thread::scope(|scope| {
            let pushes = scope.spawn(|| push_all(server, &fleet, (0..watched).cycle(), &over));
            fleet.wait_synced(count);
            let took = began.elapsed();
            over.store(true, Ordering::Relaxed);
            (took, pushes.join().unwrap())
        });
        storm.extend(pushes);
        rates.push(count as f64 / took.as_secs_f64());
    }
    rates.sort_unstable_by(f64::total_cmp);
    Measured { memory, calm, rate: rates[STORMS / 2], storm }
}

/// Pushes to one agent after the other, as far as they have sessions, until it is over.
fn push_all(
    server: &impl Server,
    fleet: &AgentFleet,
    agents: impl Iterator<Item = usize>,
    over: &AtomicBool,
) -> Pushes {
    let mut delivered = Samples::default();
    let mut receipts = Vec::new();
    for agent in agents.take_while(|_| !over.load(Ordering::Relaxed)) {
        thread::sleep(APART);
        if fleet.received_at(agent).is_none() {
            continue;
        }
        let began = monotonic();
        let Some(receipt) = server.push(fleet.target(agent)) else { continue };
        let Some(at) = fleet.received_at(agent).filter(|at| *at > began) else { continue };
        delivered.add(at - began);
        receipts.push(receipt);
    }
    Pushes { delivered, acknowledged: server.took(&receipts) }
}

impl Pushes {
    fn extend(&mut self, more: Self) {
        self.delivered.extend(more.delivered);
        self.acknowledged.extend(more.acknowledged);
    }
}

/// Returns the resident memory of a process, in KiB.
fn resident(pid: u32) -> f64 {
    kibibytes(&fs::read_to_string(format!("/proc/{pid}/status")).unwrap(), "VmRSS:")
}

/// The broker. A push is a request for access to the agent's target.
struct Postern<'a> {
    broker: &'a mut Broker,
    alice: &'a Client,
}

impl Server for Postern<'_> {
    fn url(&self) -> String {
        self.broker.url().to_owned()
    }

    fn pid(&mut self) -> u32 {
        self.broker.process().pid()
    }

    fn kill(&mut self) {
        self.broker.process().kill9();
    }

    fn start(&mut self) {
        self.broker.restart();
    }

    fn push(&self, target: &str) -> Option<String> {
        let ask = a_request().on(target).port("tcp/22").from("192.0.2.20").waiting(STEP_TIMEOUT);
        let grant = self.alice.request(&ask).unwrap().grant.unwrap();
        (grant.state() == v1::GrantState::Active).then_some(grant.id)
    }

    /// Returns the times from the line about the push to the agent to the line about what the agent has confirmed.
    fn took(&self, receipts: &[String]) -> Samples {
        let log = self.broker.log();
        let pushed = moments(&log, "host.open_pushed");
        let open = moments(&log, "layer.open");
        let took =
            |grant: &String| Duration::try_from(open[grant.as_str()].duration_since(pushed[grant.as_str()]));
        receipts.iter().map(|grant| took(grant).unwrap()).collect()
    }
}

/// Finds the times of the log lines with an event, by grant.
fn moments<'a>(log: &'a str, event: &str) -> HashMap<&'a str, Timestamp> {
    let field = format!("event=\"{event}\"");
    let lines = log.lines().filter(|line| line.contains(&field));
    let moments = lines.filter_map(|line| {
        let at = line.split_whitespace().next()?.parse().ok()?;
        let (_, rest) = line.split_once(" grant=")?;
        Some((rest.split_whitespace().next()?, at))
    });
    moments.collect()
}

/// The bare server.
struct Bare<'a> {
    identity: &'a Path,
    host: &'a Host,
    child: Child,
    client: Client,
}

impl Server for Bare<'_> {
    fn url(&self) -> String {
        bare_server::url()
    }

    fn pid(&mut self) -> u32 {
        self.child.id()
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn start(&mut self) {
        self.child = bare_server::start(self.host, self.identity);
    }

    fn push(&self, target: &str) -> Option<String> {
        let request = v1::CreateJoinTokenRequest { target: target.to_owned(), valid_for: None };
        let answer = self
            .client
            .run(|channel| async move { AgentServiceClient::new(channel).create_join_token(request).await });
        Some(answer.ok()?.into_inner().token)
    }

    fn took(&self, receipts: &[String]) -> Samples {
        receipts.iter().map(|micros| Duration::from_micros(micros.parse().unwrap())).collect()
    }
}

/// Makes so many agents with their certificates, and puts them into the broker's store as enrolling would.
fn enroll_all(world: &mut HostWorld, count: usize) -> Vec<(String, Credentials)> {
    world.broker.process().kill9();
    let (authority, now) = (bare_server::authority(world), wall());
    let mut identities = Vec::new();
    let mut agents = Transaction::default();
    for number in 0..count {
        let target: TargetId = format!("host:idle-{number}").parse().unwrap();
        let key = KeyPair::generate().unwrap();
        let identity = SpiffeId::Agent(target.clone());
        let issued = authority.issue(&key.csr().unwrap(), &identity, AGENT_LIFETIME, now).unwrap();
        let (certificate_not_after, leaf) = (issued.not_after, issued.chain[0].clone());
        identities
            .push((target.to_string(), Credentials::new(key, issued.chain, authority.roots()).unwrap()));
        let event = AuditEvent::done(now, format!("agent/{target}"), "agent.enrolled").on_target(&target);
        let keys = AgentKeys::enrolled(key_hash(&leaf).unwrap());
        let agent = AgentRecord::enrolled(target, now, certificate_not_after, keys);
        agents = agents.put_agent(agent, Expect::Absent).audit(event);
    }
    let store = Embedded::open(&world.broker.database(), &world.broker.sealing()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(store.commit(agents)).unwrap();
    drop(store);
    world.broker.restart();
    identities
}
