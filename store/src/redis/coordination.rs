//! The coordination on Redis: each step is one script, and the events come on a channel.

use std::collections::HashSet;

use async_trait::async_trait;
use futures_util::future::{BoxFuture, FutureExt as _};
use jiff::Timestamp;
use postern_core::TargetId;
use redis::{FromRedisValue, Script, ScriptInvocation};
use serde::Deserialize;

use super::Redis;
use super::discovery::Messages;
use super::error::{failed, message, redis_failed};
use super::keys::{SCHEMA, head_of};
use super::membership::{Membership, ended};
use super::rollback::HeadReply;
use crate::body::{corrupt, from_body, to_body};
use crate::coordination::{
    ChangedRecord, Claim, ClusterEvent, CommittedChange, Coordination, Lease, MEMBERSHIP_TTL, MemberInfo,
    PublishedStatus, RenewalReply, Subscription, TakenLease,
};
use crate::error::{MigrationError, StoreError};

/// The number of leases of a dead member that are taken at once.
const SHARE: usize = 200;

impl Redis {
    /// Joins the members, with a membership that no broker had before.
    pub(super) async fn join(&self) -> Result<RenewalReply, StoreError> {
        let info = MemberInfo {
            name: "command".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            ..MemberInfo::default()
        };
        let reply = self
            .renew_or_join(&self.membership.renew(), &info, true)
            .await?
            .ok_or_else(|| failed(message("the store did not accept the new membership")))?;
        self.membership.report();
        Ok(reply)
    }

    /// Renews a membership or joins with it; none if the membership has ended.
    async fn renew_or_join(
        &self,
        id: &str,
        info: &MemberInfo,
        join: bool,
    ) -> Result<Option<RenewalReply>, StoreError> {
        let mut script = self.script(&self.scripts.renew);
        let body = to_body(&MemberInfo { membership: id.to_owned(), ..info.clone() })?;
        script.arg(id).arg(MEMBERSHIP_TTL.as_millis().to_string()).arg(body).arg(if join {
            "1"
        } else {
            "0"
        });
        script.arg(SCHEMA);
        let command = |known| async move {
            script.arg(self.server.text_of(&known));
            self.answer::<Vec<String>>(&script).await
        };
        let head_in = |answer: &Vec<String>| match &answer[..] {
            [status, head, ..] if status == "ok" => HeadReply::parse(head).map(Some),
            _ => Ok(None),
        };
        let answer = self.server.guard.ask(command, head_in).await?;
        let [status, head, rest @ ..] = &answer[..] else {
            return Err(unexpected());
        };
        match status.as_str() {
            "gone" => return Ok(None),
            "moved" => return Err(MigrationError::Moved { to: head.clone() }.into()),
            "schema" => {
                let found = head.parse().unwrap_or(u32::MAX);
                return Err(StoreError::NewerSchema { found, known: SCHEMA });
            }
            _ => {}
        }
        let head = HeadReply::parse(head)?.head;
        let [seconds, micros, losses, gone @ ..] = rest else { return Err(unexpected()) };
        let nanos = micros.parse::<i32>().unwrap_or_default().saturating_mul(1000);
        let store_time = seconds.parse().ok().and_then(|seconds| Timestamp::new(seconds, nanos).ok());
        let losses = losses.parse().unwrap_or_default();
        Ok(Some(RenewalReply { joined: join, head: head.seq, store_time, losses, gone: gone.to_vec() }))
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
    failed(message("the script gave an unexpected answer"))
}

fn target_of(text: &str) -> Result<TargetId, StoreError> {
    text.parse().map_err(|source| corrupt("target of a lease", source))
}

fn token_of(text: &str) -> Result<u64, StoreError> {
    text.parse().map_err(|source| corrupt("token of a lease", source))
}

#[async_trait]
impl Coordination for Redis {
    fn is_alone(&self) -> bool {
        false
    }

    fn membership(&self) -> String {
        self.membership.id()
    }

    async fn renew(&self, info: &MemberInfo) -> Result<RenewalReply, StoreError> {
        let reply = match self.renew_or_join(&self.membership.id(), info, false).await? {
            Some(reply) => reply,
            None => self.renew_or_join(&self.membership.renew(), info, true).await?.ok_or_else(unexpected)?,
        };
        Ok(RenewalReply { joined: self.membership.report(), ..reply })
    }

    async fn leave(&self) -> Result<(), StoreError> {
        let id = self.membership.id();
        let event = format!("{{\"kind\":\"left\",\"by\":\"{id}\"}}");
        let mut leave = redis::pipe();
        leave.del(self.server.key(&format!("alive:{id}"))).ignore();
        leave.publish(self.server.key("events"), event).ignore();
        leave.query_async(&mut self.reader.clone()).await.map_err(redis_failed)
    }

    async fn take(&self, target: &TargetId, claim: Claim) -> Result<Option<TakenLease>, StoreError> {
        let mut script = self.script(&self.scripts.take);
        script.arg(self.membership.id()).arg(target.to_string()).arg(claim.word());
        let answer: Vec<String> = self.answer(&script).await?;
        match &answer[..] {
            [word] if word == "fenced" => Err(ended()),
            [word] if word == "no" => Ok(None),
            [_, token, inherits] => {
                let lease = Lease { target: target.clone(), token: token_of(token)? };
                Ok(Some(TakenLease { lease, inherits: inherits == "1" }))
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

    async fn take_over(&self, gone: &str) -> Result<Vec<TakenLease>, StoreError> {
        let mut script = self.script(&self.scripts.take_over);
        let answer: Vec<String> = self.answer(script.arg(self.membership.id()).arg(gone).arg(SHARE)).await?;
        let [status, pairs @ ..] = &answer[..] else { return Err(unexpected()) };
        if status == "fenced" {
            return Err(ended());
        }
        let taken = |pair: &[String]| match pair {
            [target, token] => {
                let lease = Lease { target: target_of(target)?, token: token_of(token)? };
                Ok(TakenLease { lease, inherits: true })
            }
            _ => Err(unexpected()),
        };
        pairs.chunks(2).map(taken).collect()
    }

    async fn end_exclusive(&self, lease: &Lease) -> Result<(), StoreError> {
        let mut script = self.script(&self.scripts.give_back);
        script.arg(self.membership.id()).arg(lease.target.to_string()).arg(lease.token).arg("keep");
        self.answer::<String>(&script).await.map(drop)
    }

    async fn give_back(&self, lease: &Lease) -> Result<(), StoreError> {
        let mut script = self.script(&self.scripts.give_back);
        script.arg(self.membership.id()).arg(lease.target.to_string()).arg(lease.token);
        self.answer::<String>(&script).await.map(drop)
    }

    async fn forget(&self, lease: &Lease) -> Result<(), StoreError> {
        let mut script = self.script(&self.scripts.give_back);
        script.arg(self.membership.id()).arg(lease.target.to_string()).arg(lease.token).arg("forget");
        self.answer::<String>(&script).await.map(drop)
    }

    async fn try_lock(&self, job: &str) -> Result<bool, StoreError> {
        let mut script = self.script(&self.scripts.lock);
        let answer: String = self.answer(script.arg(self.membership.id()).arg(job).arg("begin")).await?;
        if answer == "fenced" { Err(ended()) } else { Ok(answer == "ok") }
    }

    async fn unlock(&self, job: &str) -> Result<(), StoreError> {
        let mut script = self.script(&self.scripts.lock);
        self.answer::<String>(script.arg(self.membership.id()).arg(job).arg("end")).await.map(drop)
    }

    async fn publish(&self, posted: Vec<PublishedStatus>) -> Result<(), StoreError> {
        let mut awaited: Vec<String> =
            posted.iter().flat_map(|posted| &posted.awaited_by).map(ToString::to_string).collect();
        awaited.sort();
        awaited.dedup();
        let mut script = self.script(&self.scripts.publish);
        script.arg(self.membership.id());
        script.arg(if awaited.is_empty() { String::new() } else { to_body(&awaited)? });
        for PublishedStatus { lease, status, .. } in posted {
            script.arg(lease.target.to_string()).arg(lease.token).arg(status);
        }
        self.answer::<String>(&script).await.map(drop)
    }

    async fn statuses(&self, targets: &[TargetId]) -> Result<Vec<(TargetId, String)>, StoreError> {
        if targets.is_empty() {
            return Ok(Vec::new());
        }
        let mut script = self.script(&self.scripts.statuses);
        for target in targets {
            script.arg(target.to_string());
        }
        let statuses: Vec<String> = self.answer(&script).await?;
        let published = targets.iter().cloned().zip(statuses).filter(|(_, status)| !status.is_empty());
        Ok(published.collect())
    }

    async fn ask_to_look(&self, target: &TargetId) -> Result<(), StoreError> {
        let by = self.membership.id();
        let event = serde_json::json!({ "kind": "look", "by": by, "target": target.to_string() }).to_string();
        let mut publish = redis::cmd("PUBLISH");
        publish.arg(self.server.key("events")).arg(event);
        publish.query_async(&mut self.reader.clone()).await.map_err(redis_failed)
    }

    async fn list_members(&self) -> Result<Vec<MemberInfo>, StoreError> {
        let mut members = redis::cmd("HVALS");
        members.arg(self.server.key("members"));
        let members: Vec<String> =
            members.query_async(&mut self.reader.clone()).await.map_err(redis_failed)?;
        let members: Vec<MemberInfo> =
            members.iter().map(|member| from_body("member", member)).collect::<Result<_, _>>()?;
        let mut alive = redis::pipe();
        for member in &members {
            alive.exists(self.server.key(&format!("alive:{}", member.membership)));
        }
        let alive: Vec<bool> = if members.is_empty() {
            Vec::new()
        } else {
            alive.query_async(&mut self.reader.clone()).await.map_err(redis_failed)?
        };
        let mut members: Vec<MemberInfo> =
            members.into_iter().zip(alive).filter(|(_, alive)| *alive).map(|(member, _)| member).collect();
        members.sort_by(|a, b| (&a.name, a.started_at).cmp(&(&b.name, b.started_at)));
        Ok(members)
    }

    fn subscribe(&self) -> BoxFuture<'_, Result<Box<dyn Subscription>, StoreError>> {
        async {
            let mut channel = self.server.messages().await?;
            channel.subscribe(&self.server.key("events")).await.map_err(redis_failed)?;
            let membership = std::sync::Arc::clone(&self.membership);
            Ok(Box::new(EventStream { channel, membership }) as Box<dyn Subscription>)
        }
        .boxed()
    }
}

struct EventStream {
    channel: Messages,
    membership: std::sync::Arc<Membership>,
}

#[async_trait]
impl Subscription for EventStream {
    async fn next(&mut self) -> Option<ClusterEvent> {
        loop {
            let message = self.channel.next().await?;
            let Ok(text) = String::from_utf8(message) else { continue };
            match event_of(&text, &self.membership.id()) {
                Ok(Some(event)) => return Some(event),
                Ok(None) => {}
                // Perhaps from a newer broker. This broker also finds by looking what the event says.
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "cannot read a cluster event")
                }
            }
        }
    }
}

/// An event as the scripts write it.
#[derive(Deserialize)]
struct WireEvent {
    kind: String,
    by: String,
    #[serde(default)]
    before: String,
    #[serde(default)]
    after: String,
    #[serde(default)]
    records: Vec<(String, String)>,
    #[serde(default)]
    targets: Vec<serde_json::Value>,
    #[serde(default)]
    target: String,
    #[serde(default)]
    exclusive: bool,
}

/// Reads an event from its text; none if it does not concern this member.
fn event_of(text: &str, me: &str) -> Result<Option<ClusterEvent>, StoreError> {
    let wire: WireEvent = from_body("event", text)?;
    let own = wire.by == me;
    Ok(match wire.kind.as_str() {
        "committed" => {
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
            let (before, after) = (head_of(&wire.before)?.seq, head_of(&wire.after)?.seq);
            let records = wire.records.into_iter().map(|(kind, key)| ChangedRecord { kind, key }).collect();
            Some(ClusterEvent::Committed(CommittedChange { before, after, own, records, targets }))
        }
        "taken" => Some(ClusterEvent::LeaseTaken {
            target: target_of(&wire.target)?,
            mine: own,
            exclusive: wire.exclusive,
        }),
        "free" if !own => Some(ClusterEvent::LeaseFreed(target_of(&wire.target)?)),
        "look" if !own => Some(ClusterEvent::LookRequested(target_of(&wire.target)?)),
        "left" if !own => Some(ClusterEvent::MemberLeft),
        "published" if !own => {
            let of = |target: &serde_json::Value| target_of(target.as_str().unwrap_or_default());
            Some(ClusterEvent::StatusPublished(wire.targets.iter().map(of).collect::<Result<_, _>>()?))
        }
        _ => None,
    })
}
