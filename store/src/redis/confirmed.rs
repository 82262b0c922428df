//! Confirmation: whether the configured number of replicas have the log up to a head that a caller has read.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use postern_core::audit::Head;
use postern_runtime::error_chain::error_chain;
use redis::aio::MultiplexedConnection;
use tokio::sync::oneshot;

use super::error::{failed, message, redis_failed};
use super::rollback::RollbackGuard;
use super::server::Server;
use crate::error::StoreError;

/// The longest wait for the replicas' confirmation.
pub(super) const CONFIRM_TIMEOUT: Duration = Duration::from_secs(3);

/// The head with which a caller has read something that it wants confirmed, and the channel for the answer.
pub(super) struct Confirmation {
    pub(super) head: Head,
    pub(super) answer: oneshot::Sender<Result<(), StoreError>>,
}

/// The newest head that the configured number of replicas have.
#[derive(Clone)]
pub(super) struct ConfirmedHead {
    newest: Arc<Mutex<Head>>,
    guard: Arc<RollbackGuard>,
}

impl ConfirmedHead {
    pub(super) fn new(guard: Arc<RollbackGuard>) -> Self {
        Self { newest: Arc::new(Mutex::new(Head::EMPTY)), guard }
    }

    /// Notes that the replicas have the log up to this head.
    pub(super) fn raise(&self, head: Head) {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        if head.seq > newest.seq {
            *newest = head;
        }
        self.guard.confirmed(head);
    }

    /// Reports whether the head is confirmed without a question to the server. An older head is not: it may be of a log that a
    /// failover has ended.
    pub(super) fn is(&self, head: Head) -> bool {
        head == Head::EMPTY || head == self.get()
    }

    fn get(&self) -> Head {
        *self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Confirms the heads of these callers, and answers each. The connection is the writer's own, and is dropped after an
    /// error.
    pub(super) async fn confirm(
        &self,
        server: &Server,
        connection: &mut Option<MultiplexedConnection>,
        all: Vec<Confirmation>,
    ) {
        let mut open = Vec::new();
        for Confirmation { head, answer } in all {
            if self.is(head) {
                answer.send(Ok(())).ok();
            } else if !answer.is_closed() {
                open.push(Confirmation { head, answer });
            }
        }
        let heads: Vec<Head> = open.iter().map(|confirmation| confirmation.head).collect();
        let outcome = if heads.is_empty() {
            Ok(Vec::new())
        } else {
            self.confirm_heads(server, connection, &heads).await
        };
        let outcome = outcome.map_err(|error| {
            *connection = None;
            error_chain(&error)
        });
        for (at, Confirmation { head, answer }) in open.into_iter().enumerate() {
            let is_there = outcome.as_ref().map(|there| there.get(at).copied().unwrap_or_default());
            let confirmed = match is_there {
                Ok(true) => Ok(()),
                Ok(false) => {
                    let what = format!("the store's log does not have audit record {} any more", head.seq);
                    Err(failed(message(&what)))
                }
                Err(reason) => Err(failed(message(reason))),
            };
            answer.send(confirmed).ok();
        }
    }

    /// Reports which of the heads the log has, once the replicas have confirmed those.
    async fn confirm_heads(
        &self,
        server: &Server,
        connection: &mut Option<MultiplexedConnection>,
        heads: &[Head],
    ) -> Result<Vec<bool>, StoreError> {
        let connection = match connection {
            Some(connection) => connection,
            none => none.insert(server.connect().await?),
        };
        // WAIT waits for the last write of its own connection, and so for everything before it on this primary. A head may
        // have been read from another primary, before a failover that has lost it.
        server.head(connection).await?;
        let there = server.has(connection, heads).await?;
        let newest = heads.iter().zip(&there).filter(|(_, there)| **there).map(|(head, _)| *head);
        if let Some(newest) = newest.max_by_key(|head| head.seq).filter(|head| head.seq > self.get().seq) {
            let mut write = redis::cmd("SET");
            write.arg(server.key("confirmed")).arg(newest.seq);
            write.query_async::<()>(connection).await.map_err(redis_failed)?;
            server.confirm(connection, CONFIRM_TIMEOUT).await?;
            self.raise(newest);
        }
        Ok(there)
    }
}
