//! The load of a storm: requesters who ask, extend and revoke through the load balancer, and ask again with the same
//! idempotency key where they receive no answer. What they do comes from the seed; when they do it also from the answers.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use postern_core::Role;
use postern_pki::credentials::Credentials;
use postern_pki::tls::client_config;
use postern_proto::client::channel;
use postern_proto::v1;
use postern_proto::v1::access_service_client::AccessServiceClient;
use postern_proto::v1::{GrantState, RevokeAccessRequest};
use postern_tests::clock::{monotonic, wall};
use postern_tests::{Refusal, RequestBuilder, Running, a_request};
use rand::prelude::*;
use rand::rngs::StdRng;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{sleep, timeout};
use tokio_rustls::rustls::ClientConfig;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

use crate::history::{Answer, Asked, Revoked};
use crate::world::ReplicaWorld;

/// The time that one call may take beyond the wait that it asks for.
const ANSWER: Duration = Duration::from_secs(4);
/// The number of requests that a requester has under way at once.
const AT_ONCE: usize = 12;
/// The time for which a call is tried again.
const STUBBORN: Duration = Duration::from_secs(30);
/// The pause before a call is tried again, in milliseconds.
const AGAIN: Range<u64> = 100..600;

/// The targets of the requesters.
#[derive(Debug, Clone)]
pub(crate) struct Aims {
    /// The targets with a host layer.
    pub(crate) hosts: Arc<Vec<String>>,
    /// The targets with both layers.
    pub(crate) clouds: Arc<Vec<String>>,
}

/// A load that goes on.
#[derive(Debug)]
pub(crate) struct Load {
    requesters: Vec<Running<Done>>,
}

/// The requests and their answers.
#[derive(Debug, Default)]
pub(crate) struct Done {
    pub(crate) asked: Vec<Asked>,
    pub(crate) revoked: Vec<Revoked>,
}

impl Done {
    fn take(&mut self, story: Option<Result<Self, JoinError>>) {
        let Some(Self { asked, revoked }) = story.transpose().unwrap() else { return };
        self.asked.extend(asked);
        self.revoked.extend(revoked);
    }
}

/// A requester; clones share the identity, and each has a connection of its own.
#[derive(Clone)]
struct Requester {
    number: u8,
    url: String,
    tls: Arc<ClientConfig>,
    channel: Channel,
    rng: StdRng,
}

/// A call that went through, or did not.
enum Said<T> {
    Good(T),
    No(String),
    Again(String),
}

impl Load {
    /// Starts requesters who ask until the end.
    pub(crate) fn start(world: &ReplicaWorld, requesters: Range<u8>, seed: u64, until: Instant) -> Self {
        let first = requesters.start;
        let start = |number| {
            let identity = world.issue(&format!("requester-{number}"), Role::Requester);
            let (url, aims) = (world.url().to_owned(), world.aims.clone());
            let seed = seed.wrapping_mul(1_000).wrapping_add(u64::from(number - first));
            let netns = world.net.alice.netns();
            netns.start(async move { Requester::new(number, &url, &identity, seed).go(aims, until).await })
        };
        Self { requesters: requesters.map(start).collect() }
    }

    /// Waits until the last of them is done.
    pub(crate) fn join(self) -> Done {
        let mut all = Done::default();
        for requester in self.requesters {
            let Done { asked, revoked } = requester.join();
            all.asked.extend(asked);
            all.revoked.extend(revoked);
        }
        all
    }
}

impl Requester {
    fn new(number: u8, url: &str, identity: &Path, seed: u64) -> Self {
        let tls = client_config(&Credentials::load(identity).unwrap()).unwrap();
        let channel = channel(url, Arc::clone(&tls)).unwrap();
        Self { number, url: url.to_owned(), tls, channel, rng: StdRng::seed_from_u64(seed) }
    }

    async fn go(mut self, aims: Aims, until: Instant) -> Done {
        let (mut stories, mut all) = (JoinSet::new(), Done::default());
        for count in 0_u16.. {
            if monotonic() >= until {
                break;
            }
            let [high, low] = count.to_be_bytes();
            let source = format!("10.{}.{high}.{low}", self.number);
            let targets = self.targets(&aims);
            let mut one = self.clone();
            one.rng = StdRng::seed_from_u64(self.rng.random());
            while stories.len() >= AT_ONCE {
                all.take(stories.join_next().await);
            }
            stories.spawn(async move { one.story(source, targets).await });
            sleep(Duration::from_millis(self.rng.random_range(100..500))).await;
        }
        while !stories.is_empty() {
            all.take(stories.join_next().await);
        }
        all
    }

    fn targets(&mut self, aims: &Aims) -> BTreeSet<String> {
        let count = if self.rng.random_bool(0.2) { 2 } else { 1 };
        // A cloud takes few calls a second.
        let some = if self.rng.random_bool(0.1) { &aims.clouds } else { &aims.hosts };
        let some = if some.is_empty() { &aims.hosts } else { some };
        some.choose_multiple(&mut self.rng, count).cloned().collect()
    }

    /// Follows a request from the first call to its end.
    async fn story(mut self, source: String, targets: BTreeSet<String>) -> Done {
        let seconds = self.rng.random_range(2..=8);
        let mut done = Done::default();
        let asked = self.ask(&source, &targets, seconds, "ask").await;
        let granted = match &asked.answer {
            Answer::Granted { id, .. } => Some(id.clone()),
            Answer::Refused(_) | Answer::GivenUp => None,
        };
        done.asked.push(asked);
        let Some(id) = granted else { return done };
        match self.rng.random_range(0..10) {
            0..2 => {
                sleep(Duration::from_millis(self.rng.random_range(0..seconds * 1_000))).await;
                done.revoked.push(self.revoke(id).await);
            }
            2..4 => {
                sleep(Duration::from_millis(seconds * 500)).await;
                let longer = self.rng.random_range(seconds / 2 + 1..=8);
                done.asked.push(self.ask(&source, &targets, longer, "extend").await);
            }
            _ => {}
        }
        done
    }

    async fn ask(&mut self, source: &str, targets: &BTreeSet<String>, seconds: u64, kind: &str) -> Asked {
        let wait = if self.rng.random_bool(0.5) { Duration::from_secs(3) } else { Duration::ZERO };
        let ask = targets.iter().fold(a_request(), |ask, target| ask.on(target)).port("tcp/22").from(source);
        let key = format!("{kind}-{source}");
        let ask: RequestBuilder = ask.seconds(seconds).key(&key).waiting(wait);
        let (at, mut retries) = (wall(), Vec::new());
        let answer = self
            .insist(&mut retries, ANSWER + wait, |channel| {
                let wire = ask.wire();
                async move { AccessServiceClient::new(channel).request_access(wire).await }
            })
            .await;
        let answer = match answer {
            None => Answer::GivenUp,
            Some(Err(refusal)) => Answer::Refused(refusal),
            Some(Ok(answer)) => {
                let grant = answer.grant.unwrap();
                Answer::Granted { state: grant.state(), id: grant.id }
            }
        };
        let targets = targets.iter().cloned().collect();
        Asked { source: source.to_owned(), targets, at, answered: wall(), retries, answer }
    }

    async fn revoke(&mut self, grant: String) -> Revoked {
        let (at, mut retries) = (wall(), Vec::new());
        let request = RevokeAccessRequest { grant_id: grant.clone(), ..RevokeAccessRequest::default() };
        let answer = self
            .insist(&mut retries, ANSWER, |channel| {
                let request = request.clone();
                async move { AccessServiceClient::new(channel).revoke_access(request).await }
            })
            .await;
        let state = |answer: v1::RevokeAccessResponse| {
            answer.grant.map_or(GrantState::Unspecified, |grant| grant.state())
        };
        Revoked { grant, at, retries, answer: answer.map(|answer| answer.map(state)) }
    }

    /// Calls until there is an answer that counts, each time over a connection of its own. Returns none where there is no
    /// such answer.
    async fn insist<T, F>(
        &mut self,
        retries: &mut Vec<String>,
        limit: Duration,
        call: impl Fn(Channel) -> F,
    ) -> Option<Result<T, String>>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let start = monotonic();
        while start.elapsed() < STUBBORN {
            let answer = match timeout(limit, call(self.channel.clone())).await {
                Ok(answer) => said(answer),
                Err(_) => Said::Again("no answer".to_owned()),
            };
            match answer {
                Said::Good(answer) => return Some(Ok(answer)),
                Said::No(refusal) => return Some(Err(refusal)),
                Said::Again(why) => retries.push(why),
            }
            self.channel = channel(&self.url, Arc::clone(&self.tls)).unwrap();
            sleep(Duration::from_millis(self.rng.random_range(AGAIN))).await;
        }
        None
    }
}

fn said<T>(answer: Result<Response<T>, Status>) -> Said<T> {
    let status = match answer {
        Ok(answer) => return Said::Good(answer.into_inner()),
        Err(status) => status,
    };
    let refusal = Refusal::from(status.clone());
    let is_broken = matches!(status.code(), Code::Unknown | Code::Internal | Code::Cancelled);
    let is_passing = matches!(status.code(), Code::Unavailable | Code::Aborted | Code::DeadlineExceeded);
    // A connection that breaks has no reason for machines.
    if is_passing || is_broken && refusal.reason.is_empty() {
        let reason = if refusal.reason.is_empty() { "connection".to_owned() } else { refusal.reason };
        return Said::Again(format!("{:?} {reason}", status.code()));
    }
    Said::No(format!("{:?} {} {}", status.code(), refusal.reason, status.message()))
}
