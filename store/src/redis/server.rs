//! The server: connections to it, the end of its audit log, and the confirmation of its replicas.

use std::sync::Arc;
use std::time::Duration;

use postern_core::audit::{AuditRecord, Head};
use redis::Script;
use redis::aio::{ConnectionLike, MultiplexedConnection};

use super::connection::SharedConnection;
use super::discovery::{Discovery, Messages};
use super::error::{failed, message, redis_failed};
use super::keys::MOST_LINES;
use super::rollback::{HeadReply, RollbackGuard};
use super::settings::RedisSettings;
use crate::error::StoreError;

/// A server, with the sentinels or the cluster that name its primary.
#[derive(Clone)]
pub(super) struct Server {
    discovery: Arc<Discovery>,
    /// The prefix of every key of this store. The part in braces is Redis Cluster's hash tag: all keys are in one slot.
    pub(super) prefix: String,
    /// The tenant.
    pub(super) tenant: String,
    /// The number of replicas that must have a commit before the broker answers.
    pub(super) replicas: usize,
    pub(super) guard: Arc<RollbackGuard>,
    head: Script,
    has: Script,
}

impl Server {
    pub(super) fn new(settings: &RedisSettings) -> Self {
        let prefix = format!("{{postern:{}}}:", settings.tenant);
        let discovery = Arc::new(Discovery::new(settings.clone(), format!("{prefix}schema")));
        let guard = Arc::new(RollbackGuard::new(settings.replicas > 0));
        let (head, has) = (Script::new(script!("head.lua")), Script::new(include_str!("has.lua")));
        let (tenant, replicas) = (settings.tenant.clone(), settings.replicas);
        Self { discovery, prefix, tenant, replicas, guard, head, has }
    }

    /// Opens a connection to the primary for one caller, who must open another after any error.
    pub(super) async fn connect(&self) -> Result<MultiplexedConnection, StoreError> {
        Ok(self.discovery.primary().await.map_err(redis_failed)?.connection)
    }

    /// Makes a connection to the primary that many tasks share, and that reconnects by itself.
    pub(super) fn shared_connection(&self) -> SharedConnection {
        SharedConnection::new(Arc::clone(&self.discovery))
    }

    /// Opens a connection for messages. When its stream ends, the caller opens another and reads what it missed.
    pub(super) async fn messages(&self) -> Result<Messages, StoreError> {
        self.discovery.messages().await.map_err(redis_failed)
    }

    pub(super) fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// Reads the end of the audit log.
    pub(super) async fn head(
        &self,
        connection: &mut (impl ConnectionLike + Send),
    ) -> Result<Head, StoreError> {
        Ok(self.head_and(connection, None).await?.0)
    }

    /// Reads the end of the audit log and a field of a hash, at one instant.
    pub(super) async fn head_and(
        &self,
        connection: &mut (impl ConnectionLike + Send),
        field: Option<(&str, &str)>,
    ) -> Result<(Head, Option<Vec<u8>>), StoreError> {
        let mut script = self.head.key(&self.prefix);
        let command = |known| async move {
            script.arg(self.text_of(&known));
            if let Some((hash, field)) = field {
                script.arg(hash).arg(field);
            }
            let (head, value): (String, Option<Vec<u8>>) =
                script.invoke_async(connection).await.map_err(redis_failed)?;
            Ok((HeadReply::parse(&head)?, value))
        };
        let (reply, value) = self.guard.ask(command, |(reply, _)| Ok(Some(*reply))).await?;
        Ok((reply.head, value))
    }

    /// Reads the base of the audit log.
    pub(super) async fn base(
        &self,
        connection: &mut (impl ConnectionLike + Send),
    ) -> Result<Head, StoreError> {
        let mut get = redis::cmd("GET");
        let text: Option<String> =
            get.arg(self.key("base")).query_async(connection).await.map_err(redis_failed)?;
        super::keys::head_of(&text.unwrap_or_default())
    }

    /// Reports whether the audit log has each of these heads at its number, at one instant. A record that has left the store is not there.
    pub(super) async fn has(
        &self,
        connection: &mut (impl ConnectionLike + Send),
        heads: &[Head],
    ) -> Result<Vec<bool>, StoreError> {
        let mut script = self.has.key(&self.prefix);
        for head in heads {
            script.arg(head.seq.min(MOST_LINES));
        }
        let lines: Vec<Vec<u8>> = script.invoke_async(connection).await.map_err(redis_failed)?;
        let is_there = |(head, line): (&Head, Vec<u8>)| {
            let record = serde_json::from_slice::<AuditRecord>(&line).ok();
            *head == Head::EMPTY || record.is_some_and(|record| record.head() == *head)
        };
        Ok(heads.iter().zip(lines).map(is_there).collect())
    }

    /// Returns a head as the store keeps it; the head of an empty log is an empty text.
    pub(super) fn text_of(&self, head: &Head) -> String {
        super::keys::text_of(head)
    }

    /// Waits until the configured number of replicas have what this connection wrote.
    ///
    /// # Errors
    /// They did not confirm it in time: the write may be lost with the primary.
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
            return Err(failed(message(&what)));
        }
        Ok(())
    }
}
