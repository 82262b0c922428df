//! The server: connections to it, and what its settings promise.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use postern_core::audit::Head;
use redis::aio::{MultiplexedConnection, PubSub};
use redis::{InfoDict, RedisError};

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
    lost: watch::Sender<Option<String>>,
}

impl Seen {
    /// How far it had come: asked before a look, whose answer may be overtaken by a later one's.
    pub(super) fn so_far(&self) -> u64 {
        self.head.load(Ordering::SeqCst)
    }

    /// Takes in the head that a look has found, if it is not behind what there was before the look.
    pub(super) fn check(&self, before: u64, head: &Head) -> Result<(), StoreError> {
        self.head.fetch_max(head.seq, Ordering::SeqCst);
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
    replicas: usize,
    pub(super) seen: Arc<Seen>,
}

impl Server {
    pub(super) fn new(settings: &RedisSettings) -> Self {
        let prefix = format!("{{postern:{}}}:", settings.tenant);
        let route = Arc::new(Route::new(settings.clone(), format!("{prefix}schema")));
        Self { route, prefix, replicas: settings.replicas, seen: Arc::default() }
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
    #[allow(dead_code, reason = "several brokers on one store tell each other by messages")]
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

    /// What of the server's settings does not keep the promise that an answered grant is durable, each with the remedy.
    pub(super) async fn warnings(&self) -> Result<Vec<String>, StoreError> {
        let mut connection = self.connect().await?;
        let mut warnings = Vec::new();
        let replication: InfoDict =
            redis::cmd("INFO").arg("replication").query_async(&mut connection).await.map_err(redis_failed)?;
        let connected = replication.get::<usize>("connected_slaves").unwrap_or(0);
        if connected > 0 && self.replicas == 0 {
            warnings.push(format!(
                "{connected} replicas are connected and store.replicas is 0: a failover loses what was answered and not yet \
                 replicated; set store.replicas to 1 or more"
            ));
        }
        if connected < self.replicas {
            warnings.push(format!(
                "store.replicas is {} and {connected} are connected: nothing can be committed until more are",
                self.replicas
            ));
        }
        for (name, good, remedy) in [
            ("appendonly", &["yes"][..], "a restart of the server loses what was answered; set it to yes"),
            ("appendfsync", &["always"], "a power cut loses up to a second or more; set it to always"),
        ] {
            match setting(&mut connection, name).await {
                Ok(Some(value)) if good.contains(&value.as_str()) => {}
                Ok(Some(value)) => warnings.push(format!("{name} is {value}: {remedy}")),
                Ok(None) | Err(_) => {
                    warnings.push(format!("{name} cannot be read (CONFIG GET): see to it yourself"));
                }
            }
        }
        if self.replicas > 0 {
            match setting(&mut connection, "min-replicas-to-write").await {
                Ok(Some(value)) if value != "0" => {}
                Ok(_) | Err(_) => warnings.push(
                    "min-replicas-to-write is 0 or cannot be read: a primary that is cut off goes on taking writes; set it to 1"
                        .to_owned(),
                ),
            }
        }
        Ok(warnings)
    }
}

async fn setting(connection: &mut MultiplexedConnection, name: &str) -> Result<Option<String>, RedisError> {
    let pairs: Vec<String> = redis::cmd("CONFIG").arg("GET").arg(name).query_async(connection).await?;
    Ok(pairs.into_iter().nth(1))
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
