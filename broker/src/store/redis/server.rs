//! The server: connections to it, how far its audit log came, and what its replicas confirm.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use postern_core::audit::Head;
use redis::RedisError;
use redis::aio::{MultiplexedConnection, PubSub};
use tokio::sync::watch;

use super::RedisSettings;
use super::link::Link;
use super::route::Route;
use crate::store::StoreError;
use crate::store::bodies::corrupt;

/// How far the audit log came, as this process has seen it. A store that is behind that has lost what it had: a failover
/// without WAIT, an empty server. Policies may be missing then, and an agent that was told so would protect nothing (I1).
#[derive(Debug, Default)]
pub(super) struct Seen {
    head: AtomicU64,
    /// Whether what a look finds counts only once replicas have confirmed it: a failover may lose it before, and nobody was
    /// answered.
    waits: bool,
    lost: watch::Sender<Option<String>>,
}

impl Seen {
    /// How far it had come: asked before a look, whose answer may be overtaken by a later one's.
    pub(super) fn so_far(&self) -> u64 {
        self.head.load(Ordering::SeqCst)
    }

    /// Replicas have the log up to here, where they are to have it.
    pub(super) fn confirmed(&self, seq: u64) {
        self.head.fetch_max(seq, Ordering::SeqCst);
    }

    /// Takes in the head that a look has found, if it is not behind what there was before the look.
    pub(super) fn check(&self, before: u64, head: &Head) -> Result<(), StoreError> {
        if !self.waits {
            self.confirmed(head.seq);
        }
        if head.seq >= before {
            return Ok(());
        }
        let reason = format!(
            "the store went back from audit record {before} to {}: it has lost what it had confirmed",
            head.seq
        );
        self.lost.send_replace(Some(reason.clone()));
        Err(failed(words(&reason)))
    }

    /// Ends once the store went back.
    pub(super) async fn lost(&self) -> String {
        let mut lost = self.lost.subscribe();
        let reason = lost.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone());
        match reason {
            Some(reason) => reason,
            None => std::future::pending().await,
        }
    }
}

/// One server, or whatever answers in its place.
#[derive(Clone)]
pub(super) struct Server {
    route: Arc<Route>,
    /// What every key of this store begins with. The part in braces is Redis Cluster's hash tag: all are in one slot.
    pub(super) prefix: String,
    /// How many replicas must have a commit before it is answered.
    pub(super) replicas: usize,
    pub(super) seen: Arc<Seen>,
}

impl Server {
    pub(super) fn new(settings: &RedisSettings) -> Self {
        let prefix = format!("{{postern:{}}}:", settings.tenant);
        let route = Arc::new(Route::new(settings.clone(), format!("{prefix}schema")));
        let seen = Arc::new(Seen { waits: settings.replicas > 0, ..Seen::default() });
        Self { route, prefix, replicas: settings.replicas, seen }
    }

    /// A connection of one's own to the primary. After any error on it, take another.
    pub(super) async fn connect(&self) -> Result<MultiplexedConnection, StoreError> {
        Ok(self.route.primary().await.map_err(redis_failed)?.connection)
    }

    /// A connection to the primary that many share, and that comes back by itself.
    pub(super) fn link(&self) -> Link {
        Link::new(Arc::clone(&self.route))
    }

    /// A connection to the primary for messages. When its stream ends, take another, and look for what was missed.
    pub(super) async fn messages(&self) -> Result<PubSub, StoreError> {
        self.route.messages().await.map_err(redis_failed)
    }

    pub(super) fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// Where the audit log ends.
    pub(super) async fn head(&self, connection: &mut MultiplexedConnection) -> Result<Head, StoreError> {
        let (key, before) = (self.key("head"), self.seen.so_far());
        let text: Option<String> =
            redis::cmd("GET").arg(key).query_async(connection).await.map_err(redis_failed)?;
        let head = head_of(text.as_deref().unwrap_or_default())?;
        self.seen.check(before, &head)?;
        Ok(head)
    }

    /// A head as it is kept: the end of an empty log is no text.
    pub(super) fn text_of(&self, head: &Head) -> String {
        if *head == Head::EMPTY { String::new() } else { format!("{} {}", head.seq, head.hash) }
    }

    /// Waits until so many replicas have what this connection wrote as are to have it.
    ///
    /// # Errors
    /// They did not say so in time: the write may be lost with the primary.
    pub(super) async fn confirm(
        &self,
        connection: &mut MultiplexedConnection,
        within: Duration,
    ) -> Result<(), StoreError> {
        if self.replicas == 0 {
            return Ok(());
        }
        let milliseconds = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
        let mut wait = redis::cmd("WAIT");
        let confirmed: usize =
            wait.arg(self.replicas).arg(milliseconds).query_async(connection).await.map_err(redis_failed)?;
        if confirmed < self.replicas {
            let what = format!("{confirmed} of {} replicas confirmed the write", self.replicas);
            return Err(failed(words(&what)));
        }
        Ok(())
    }
}

/// Reads a head as it is kept.
pub(super) fn head_of(text: &str) -> Result<Head, StoreError> {
    if text.is_empty() {
        return Ok(Head::EMPTY);
    }
    let parts = text.split_once(' ').and_then(|(seq, hash)| Some((seq.parse().ok()?, hash.parse().ok()?)));
    let Some((seq, hash)) = parts else { return Err(corrupt("head", words("it is no number and hash"))) };
    Ok(Head { seq, hash })
}

/// Something that went wrong, in words.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Words(String);

pub(super) fn words(text: &str) -> Words {
    Words(text.to_owned())
}

pub(super) fn failed(source: Words) -> StoreError {
    StoreError::Unavailable { source: Box::new(source) }
}

/// Redis's error as the store's.
pub(super) fn redis_failed(error: RedisError) -> StoreError {
    match error.code() {
        Some("OOM") => StoreError::Full,
        Some(_) | None => StoreError::Unavailable { source: Box::new(error) },
    }
}
