//! The time from a request to the agent's session, where both are at the same broker and where they are at two.

use postern_core::Role;
use postern_proto::v1;
use postern_proto::v1::access_service_client::AccessServiceClient;
use postern_proto::v1::session_request::Message as Out;
use postern_tests::clock::monotonic;
use postern_tests::redis::Redis;
use postern_tests::{
    Broker, Client, FakeAgent, FakeSession, HIGH_QUOTAS, Host, Net, RequestBuilder, VM, a_request,
    usual_policy,
};
use tempfile::TempDir;

use crate::lines::{Samples, note, percentiles};

/// The number of requests at each broker.
const ROUNDS: u32 = 300;
/// The port of the first of several brokers; the others follow.
const PORT: u16 = 7451;

pub(crate) fn measure() {
    let net = Net::new();
    let (redis, dir) = (Redis::start(&net.hub), TempDir::with_prefix("postern-").unwrap());
    let brokers = brokers(&net.hub, &dir, &redis, 2);
    let admin = brokers[0].admin(&net.hub);
    admin.put_policy(usual_policy().wire()).unwrap();
    let token = admin.join_token(VM, None).unwrap();
    let agent = FakeAgent::enroll(&net.vm, brokers[0].url(), &token, &dir.path().join("agent")).unwrap();
    let session = agent.session().unwrap();
    confirm(&session, 0);
    let identity = brokers[0].issue("alice", Role::Requester);
    let client = |broker: &Broker| Client::new(&net.alice, broker.url(), &identity);
    let clients = [client(&brokers[0]), client(&brokers[1])];
    let ask = a_request().on(VM).port("tcp/22").from(net.alice.v4());
    let mut samples = [Samples::default(), Samples::default()];
    for _ in 0..ROUNDS {
        for (client, samples) in clients.iter().zip(&mut samples) {
            round(client, &session, &ask, samples);
        }
    }
    let [same, across] = samples;
    note("from the request to the window at the agent's session, with the durable commit on Redis");
    percentiles("grant-to-agent-across-replicas", &across, "same-replica", &same);
}

/// Measures one grant from the request to the agent, and then its end.
fn round(client: &Client, session: &FakeSession, ask: &RequestBuilder, samples: &mut Samples) {
    session.say(Out::Heartbeat(v1::Heartbeat {}));
    let began = monotonic();
    let asked = client.start_request(ask);
    let received = confirm(session, 1);
    samples.add(received - began);
    let grant_id = asked.join().unwrap().grant.unwrap().id;
    let request = v1::RevokeAccessRequest { grant_id, ..v1::RevokeAccessRequest::default() };
    let revoked =
        client.start(|channel| async move { AccessServiceClient::new(channel).revoke_access(request).await });
    confirm(session, 0);
    revoked.join().unwrap();
}

/// Waits until the agent receives so many windows, and has it confirm them. Returns the time at which it received them.
fn confirm(session: &FakeSession, windows: usize) -> std::time::Instant {
    loop {
        let desired = session.desired();
        let now = monotonic();
        session.applied(desired.generation);
        if desired.windows.len() == windows {
            return now;
        }
    }
}

/// Starts brokers on one host, under one authority, each with a line of its own to one Redis.
pub(crate) fn brokers(host: &Host, dir: &TempDir, redis: &Redis, count: u16) -> Vec<Broker> {
    let mut brokers: Vec<Broker> = Vec::new();
    for number in 0..count {
        let name = format!("broker-{}", number + 1);
        let more = format!("{HIGH_QUOTAS}{}[replica]\nname = \"{name}\"\n", redis.configuration());
        let (dir, port) = (dir.path().join(name), PORT + number);
        let mut broker = match brokers.first() {
            None => Broker::init_on(host, &dir, port, &more),
            Some(first) => Broker::beside(first, host, &dir, port, &more),
        };
        broker.serve();
        brokers.push(broker);
    }
    brokers
}
