//! Memberships and leases on Redis: each step one script, and the news on a channel.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock};

use async_trait::async_trait;
use futures_util::StreamExt as _;
use futures_util::future::{BoxFuture, FutureExt as _};
use jiff::Timestamp;
use postern_core::{GrantId, TargetId};
use redis::aio::PubSub;
use redis::{FromRedisValue, Script, ScriptInvocation};
use serde::Deserialize;

use super::server::{failed, head_of, redis_failed, words};
use super::{Redis, SCHEMA};
use crate::store::StoreError;
use crate::store::bodies::{corrupt, from_body, to_body};
use crate::store::members::{
    Beat, Card, Changed, Claim, Lease, MEMBERSHIP, Members, News, Posted, Subscription, Taken,
};
use crate::store::transfer::Moving;

/// How many leases of a member that is gone are taken at once.
const SHARE: usize = 200;

/// Whose writes these are: the membership of the moment.
#[derive(Debug)]
pub(super) struct Membership {
    id: RwLock<String>,
    /// Set until a renewal reports that this membership is a new one. The answer to a join may be lost although the
    /// server has done it, and then a later renewal reports it.
    unreported: AtomicBool,
}

impl Membership {
    pub(super) fn new() -> Self {
        Self { id: RwLock::new(fresh()), unreported: AtomicBool::new(false) }
    }

    pub(super) fn id(&self) -> String {
        self.id.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn renew(&self) -> String {
        let id = fresh();
        self.id.write().unwrap_or_else(PoisonError::into_inner).clone_from(&id);
        self.unreported.store(true, Ordering::Relaxed);
        id
    }

    /// Takes in that the caller learns of the membership now. Returns whether it is new to the caller.
    fn report(&self) -> bool {
        self.unreported.swap(false, Ordering::Relaxed)
    }
}

/// Random, so that none is ever used twice, not even by a server that has lost its last writes.
fn fresh() -> String {
    format!("{:032x}", rand::random::<u128>())
}

/// The scripts.
pub(super) struct Scripts {
    beat: Script,
    take: Script,
    take_over: Script,
    give_back: Script,
    job: Script,
    post: Script,
    views: Script,
}

impl Scripts {
    pub(super) fn new() -> Self {
        Self {
            beat: Script::new(include_str!("members/beat.lua")),
            take: Script::new(include_str!("members/take.lua")),
            take_over: Script::new(include_str!("members/take_over.lua")),
            give_back: Script::new(include_str!("members/give_back.lua")),
            job: Script::new(include_str!("members/job.lua")),
            post: Script::new(include_str!("members/post.lua")),
            views: Script::new(include_str!("members/views.lua")),
        }
    }
}

impl Redis {
    /// Joins the members, under a name that nobody had before.
    pub(super) async fn join(&self) -> Result<Beat, StoreError> {
        let card =
            Card { name: "command".into(), version: env!("CARGO_PKG_VERSION").into(), ..Card::default() };
        let beat = self
            .renew(&self.membership.renew(), &card, true)
            .await?
            .ok_or_else(|| failed(words("it cannot be joined")))?;
        self.membership.report();
        Ok(beat)
    }

    /// None where the membership is gone.
    async fn renew(&self, id: &str, card: &Card, join: bool) -> Result<Option<Beat>, StoreError> {
        let mut script = self.script(&self.scripts.beat);
        let card = to_body(&Card { membership: id.to_owned(), ..card.clone() })?;
        script.arg(id).arg(MEMBERSHIP.as_millis().to_string()).arg(card).arg(if join { "1" } else { "0" });
        script.arg(SCHEMA);
        let head_in = |answer: &Vec<String>| match &answer[..] {
            [status, head, ..] if status == "ok" => head_of(head).map(Some),
            _ => Ok(None),
        };
        let answer = self.server.guard.ask(self.answer::<Vec<String>>(&script), head_in).await?;
        let [status, head, rest @ ..] = &answer[..] else {
            return Err(unexpected());
        };
        match status.as_str() {
            "gone" => return Ok(None),
            "moved" => return Err(Moving::Moved { to: head.clone() }.into()),
            "schema" => {
                let found = head.parse().unwrap_or(u32::MAX);
                return Err(StoreError::NewerSchema { found, known: SCHEMA });
            }
            _ => {}
        }
        let head = head_of(head)?;
        let [seconds, micros, losses, gone @ ..] = rest else { return Err(unexpected()) };
        let nanos = micros.parse::<i32>().unwrap_or_default().saturating_mul(1000);
        let store_time = seconds.parse().ok().and_then(|seconds| Timestamp::new(seconds, nanos).ok());
        let losses = losses.parse().unwrap_or_default();
        Ok(Some(Beat { joined: join, head: head.seq, store_time, losses, gone: gone.to_vec() }))
    }

    fn script<'a>(&self, script: &'a Script) -> ScriptInvocation<'a> {
        let mut invocation = script.prepare_invoke();
        invocation.key(&self.server.prefix);
        invocation
    }

    async fn answer<T: FromRedisValue>(&self, script: &ScriptInvocation<'_>) -> Result<T, StoreError> {
        script.invoke_async(&mut self.reader.clone()).await.map_err(redis_failed)
    }
}

fn unexpected() -> StoreError {
    failed(words("the script answered with something else"))
}

/// What a broker hears that was away for so long that others took its place.
pub(super) fn ended() -> StoreError {
    StoreError::Fenced {
        what: "this broker was away from its store for too long, and others do its work".into(),
    }
}

/// What a broker hears that works on what is another's by now.
pub(super) fn lost(target: &str) -> StoreError {
    StoreError::Fenced { what: format!("another broker works on {target} by now") }
}

fn target_of(text: &str) -> Result<TargetId, StoreError> {
    text.parse().map_err(|source| corrupt("target of a lease", source))
}

fn token_of(text: &str) -> Result<u64, StoreError> {
    text.parse().map_err(|source| corrupt("token of a lease", source))
}

#[async_trait]
impl Members for Redis {
    fn is_alone(&self) -> bool {
        false
    }

    fn membership(&self) -> String {
        self.membership.id()
    }

    async fn beat(&self, card: &Card) -> Result<Beat, StoreError> {
        let beat = match self.renew(&self.membership.id(), card, false).await? {
            Some(beat) => beat,
            None => self.renew(&self.membership.renew(), card, true).await?.ok_or_else(unexpected)?,
        };
        Ok(Beat { joined: self.membership.report(), ..beat })
    }

    async fn leave(&self) -> Result<(), StoreError> {
        let id = self.membership.id();
        let news = format!("{{\"kind\":\"left\",\"by\":\"{id}\"}}");
        let mut leave = redis::pipe();
        leave.del(self.server.key(&format!("alive:{id}"))).ignore();
        leave.publish(self.server.key("news"), news).ignore();
        leave.query_async(&mut self.reader.clone()).await.map_err(redis_failed)
    }

    async fn take(&self, target: &TargetId, claim: Claim) -> Result<Option<Taken>, StoreError> {
        let mut script = self.script(&self.scripts.take);
        script.arg(self.membership.id()).arg(target.to_string()).arg(claim.word());
        let answer: Vec<String> = self.answer(&script).await?;
        match &answer[..] {
            [word] if word == "fenced" => Err(ended()),
            [word] if word == "no" => Ok(None),
            [_, token, inherits] => {
                let lease = Lease { target: target.clone(), token: token_of(token)? };
                Ok(Some(Taken { lease, inherits: inherits == "1" }))
            }
            _ => Err(unexpected()),
        }
    }

    async fn held(&self) -> Result<HashSet<TargetId>, StoreError> {
        let mut held = redis::cmd("SMEMBERS");
        held.arg(self.server.key(&format!("held:{}", self.membership.id())));
        let held: Vec<String> = held.query_async(&mut self.reader.clone()).await.map_err(redis_failed)?;
        held.iter().map(|target| target_of(target)).collect()
    }

    async fn take_over(&self, gone: &str) -> Result<Vec<Taken>, StoreError> {
        let mut script = self.script(&self.scripts.take_over);
        let answer: Vec<String> = self.answer(script.arg(self.membership.id()).arg(gone).arg(SHARE)).await?;
        let [status, pairs @ ..] = &answer[..] else { return Err(unexpected()) };
        if status == "fenced" {
            return Err(ended());
        }
        let taken = |pair: &[String]| match pair {
            [target, token] => {
                let lease = Lease { target: target_of(target)?, token: token_of(token)? };
                Ok(Taken { lease, inherits: true })
            }
            _ => Err(unexpected()),
        };
        pairs.chunks(2).map(taken).collect()
    }

    async fn end_turn(&self, lease: &Lease) -> Result<(), StoreError> {
        let mut script = self.script(&self.scripts.give_back);
        script.arg(self.membership.id()).arg(lease.target.to_string()).arg(lease.token).arg("keep");
        self.answer::<String>(&script).await.map(drop)
    }

    async fn give_back(&self, lease: &Lease) -> Result<(), StoreError> {
        let mut script = self.script(&self.scripts.give_back);
        script.arg(self.membership.id()).arg(lease.target.to_string()).arg(lease.token);
        self.answer::<String>(&script).await.map(drop)
    }

    async fn begin_job(&self, job: &str) -> Result<bool, StoreError> {
        let mut script = self.script(&self.scripts.job);
        let answer: String = self.answer(script.arg(self.membership.id()).arg(job).arg("begin")).await?;
        if answer == "fenced" { Err(ended()) } else { Ok(answer == "ok") }
    }

    async fn end_job(&self, job: &str) -> Result<(), StoreError> {
        let mut script = self.script(&self.scripts.job);
        self.answer::<String>(script.arg(self.membership.id()).arg(job).arg("end")).await.map(drop)
    }

    async fn post(&self, posted: Vec<Posted>) -> Result<(), StoreError> {
        let mut awaited: Vec<String> =
            posted.iter().flat_map(|posted| &posted.awaited_by).map(ToString::to_string).collect();
        awaited.sort();
        awaited.dedup();
        let mut script = self.script(&self.scripts.post);
        script.arg(self.membership.id());
        script.arg(if awaited.is_empty() { String::new() } else { to_body(&awaited)? });
        for Posted { lease, view, .. } in posted {
            script.arg(lease.target.to_string()).arg(lease.token).arg(view);
        }
        self.answer::<String>(&script).await.map(drop)
    }

    async fn views(&self, targets: &[TargetId]) -> Result<Vec<(TargetId, String)>, StoreError> {
        if targets.is_empty() {
            return Ok(Vec::new());
        }
        let mut script = self.script(&self.scripts.views);
        for target in targets {
            script.arg(target.to_string());
        }
        let views: Vec<String> = self.answer(&script).await?;
        let told = targets.iter().cloned().zip(views).filter(|(_, view)| !view.is_empty());
        Ok(told.collect())
    }

    async fn ask_to_look(&self, target: &TargetId) -> Result<(), StoreError> {
        let by = self.membership.id();
        let news = serde_json::json!({ "kind": "look", "by": by, "target": target.to_string() }).to_string();
        let mut publish = redis::cmd("PUBLISH");
        publish.arg(self.server.key("news")).arg(news);
        publish.query_async(&mut self.reader.clone()).await.map_err(redis_failed)
    }

    async fn roll(&self) -> Result<Vec<Card>, StoreError> {
        let mut cards = redis::cmd("HVALS");
        cards.arg(self.server.key("members"));
        let cards: Vec<String> = cards.query_async(&mut self.reader.clone()).await.map_err(redis_failed)?;
        let cards: Vec<Card> =
            cards.iter().map(|card| from_body("member", card)).collect::<Result<_, _>>()?;
        let mut alive = redis::pipe();
        for card in &cards {
            alive.exists(self.server.key(&format!("alive:{}", card.membership)));
        }
        let alive: Vec<bool> = if cards.is_empty() {
            Vec::new()
        } else {
            alive.query_async(&mut self.reader.clone()).await.map_err(redis_failed)?
        };
        let mut cards: Vec<Card> =
            cards.into_iter().zip(alive).filter(|(_, alive)| *alive).map(|(card, _)| card).collect();
        cards.sort_by(|a, b| (&a.name, a.started_at).cmp(&(&b.name, b.started_at)));
        Ok(cards)
    }

    fn subscribe(&self) -> BoxFuture<'_, Result<Box<dyn Subscription>, StoreError>> {
        async {
            let mut channel = self.server.messages().await?;
            channel.subscribe(self.server.key("news")).await.map_err(redis_failed)?;
            let membership = std::sync::Arc::clone(&self.membership);
            Ok(Box::new(Channel { channel, membership }) as Box<dyn Subscription>)
        }
        .boxed()
    }
}

struct Channel {
    channel: PubSub,
    membership: std::sync::Arc<Membership>,
}

#[async_trait]
impl Subscription for Channel {
    async fn next(&mut self) -> Option<News> {
        loop {
            let message = self.channel.on_message().next().await?;
            let Ok(text) = message.get_payload::<String>() else { continue };
            match news(&text, &self.membership.id()) {
                Ok(Some(news)) => return Some(news),
                Ok(None) => {}
                // Of a newer broker, perhaps: whatever it says is found out by looking, too.
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "news that cannot be read")
                }
            }
        }
    }
}

/// News as the scripts write them.
#[derive(Deserialize)]
struct Wire {
    kind: String,
    by: String,
    #[serde(default)]
    before: String,
    #[serde(default)]
    after: String,
    #[serde(default)]
    grants: Vec<GrantId>,
    #[serde(default)]
    targets: Vec<serde_json::Value>,
    #[serde(default)]
    agents: Vec<String>,
    #[serde(default)]
    policies: bool,
    #[serde(default)]
    target: String,
    #[serde(default)]
    turn: bool,
}

/// What the text tells this member; none where that is nothing to it.
fn news(text: &str, me: &str) -> Result<Option<News>, StoreError> {
    let wire: Wire = from_body("news", text)?;
    let own = wire.by == me;
    Ok(match wire.kind.as_str() {
        "changed" => {
            let mut targets = Vec::new();
            for target in &wire.targets {
                let pair = target.as_array().map(Vec::as_slice);
                let Some([target, holder]) = pair else { continue };
                let (target, holder) =
                    (target.as_str().unwrap_or_default(), holder.as_str().unwrap_or_default());
                if holder.is_empty() || holder == me {
                    targets.push(target_of(target)?);
                }
            }
            let agents = wire.agents.iter().map(|agent| target_of(agent)).collect::<Result<_, _>>()?;
            let (before, after) = (head_of(&wire.before)?.seq, head_of(&wire.after)?.seq);
            let Wire { grants, policies, .. } = wire;
            Some(News::Changed(Changed { before, after, own, grants, targets, agents, policies }))
        }
        "taken" => Some(News::Taken { target: target_of(&wire.target)?, mine: own, turn: wire.turn }),
        "free" if !own => Some(News::Free(target_of(&wire.target)?)),
        "look" if !own => Some(News::Look(target_of(&wire.target)?)),
        "left" if !own => Some(News::Left),
        "viewed" if !own => {
            let of = |target: &serde_json::Value| target_of(target.as_str().unwrap_or_default());
            Some(News::Viewed(wire.targets.iter().map(of).collect::<Result<_, _>>()?))
        }
        _ => None,
    })
}
