//! A connection to the primary that many use at once, and that comes back by itself.
//!
//! What was sent on a connection that broke may have been done: it is never sent twice. Only what a server has refused
//! because it is no primary is tried once more, on a new connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{Cmd, Pipeline, RedisError, RedisFuture, RedisResult, Value};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::route::{Route, is_over};

/// So often the sentinels are asked whether the server is still the primary: one that is cut off from them goes on as if.
const ASK_EVERY: Duration = Duration::from_secs(2);

/// A connection to the primary. Cheap to clone.
#[derive(Clone)]
pub(super) struct Link {
    inner: Arc<Inner>,
}

struct Inner {
    route: Arc<Route>,
    /// How many attempts to connect have ended.
    attempts: AtomicU64,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    standing: Option<Standing>,
    /// How the last attempt ended, where it failed.
    failure: Option<RedisError>,
}

struct Standing {
    connection: MultiplexedConnection,
    address: String,
    /// Which attempt made it.
    attempt: u64,
    asked: Instant,
}

impl Link {
    /// A link that connects when it is first used.
    pub(super) fn new(route: Arc<Route>) -> Self {
        Self { inner: Arc::new(Inner { route, attempts: AtomicU64::new(0), held: Mutex::default() }) }
    }

    /// A connection that stands, as far as is known, and its number.
    async fn connection(&self) -> RedisResult<(MultiplexedConnection, u64)> {
        let Inner { route, attempts, held } = &*self.inner;
        let seen = attempts.load(Ordering::SeqCst);
        let mut held = held.lock().await;
        if let Some(standing) = &mut held.standing {
            let is_due = standing.asked.elapsed() > ASK_EVERY;
            standing.asked = if is_due { Instant::now() } else { standing.asked };
            if route.is_last(&standing.address) && (!is_due || route.is_still_named(&standing.address).await)
            {
                return Ok((standing.connection.clone(), standing.attempt));
            }
            held.standing = None;
        }
        // Whoever waited while another tried in vain does not try again: with many, the last would wait for ever.
        if let Some(failure) = held.failure.clone().filter(|_| attempts.load(Ordering::SeqCst) > seen) {
            return Err(failure);
        }
        let outcome = route.primary().await;
        let attempt = attempts.fetch_add(1, Ordering::SeqCst) + 1;
        match outcome {
            Ok(primary) => {
                let connection = primary.connection.clone();
                let (address, asked) = (primary.address, Instant::now());
                held.standing = Some(Standing { connection: primary.connection, address, attempt, asked });
                held.failure = None;
                Ok((connection, attempt))
            }
            Err(error) => {
                held.failure = Some(error.clone());
                Err(error)
            }
        }
    }

    /// Lets the connection of this attempt go.
    async fn drop_connection(&self, attempt: u64) {
        let mut held = self.inner.held.lock().await;
        if held.standing.as_ref().is_some_and(|standing| standing.attempt == attempt) {
            held.standing = None;
        }
    }

    /// Sends a command. Answers as well which error it ended in that leaves the connection of no use.
    async fn send(&self, command: &Cmd) -> RedisResult<(RedisResult<Value>, Option<RedisError>)> {
        let (mut connection, attempt) = self.connection().await?;
        let outcome = connection.send_packed_command(command).await;
        let error = match &outcome {
            Ok(value) => error_of(value),
            Err(error) => Some(error.clone()),
        };
        let over = error.filter(is_over);
        if over.is_some() {
            self.drop_connection(attempt).await;
        }
        Ok((outcome, over))
    }

    async fn send_and_again(&self, command: &Cmd) -> RedisResult<Value> {
        match self.send(command).await? {
            (_, Some(error)) if is_refused(&error) => self.send(command).await?.0,
            (outcome, _) => outcome,
        }
    }
}

/// Whether the server has said that it does nothing.
fn is_refused(error: &RedisError) -> bool {
    matches!(error.code(), Some("READONLY" | "LOADING" | "MASTERDOWN" | "MOVED"))
}

fn error_of(value: &Value) -> Option<RedisError> {
    if let Value::ServerError(error) = value { Some(error.clone().into()) } else { None }
}

impl ConnectionLike for Link {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        Box::pin(self.send_and_again(command))
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        Box::pin(async move {
            // Of several commands the first ones may have been done: none is tried again.
            let (mut connection, attempt) = self.connection().await?;
            let outcome = connection.send_packed_commands(pipeline, offset, count).await;
            let error = match &outcome {
                Ok(values) => values.iter().find_map(error_of),
                Err(error) => Some(error.clone()),
            };
            if error.is_some_and(|error| is_over(&error)) {
                self.drop_connection(attempt).await;
            }
            outcome
        })
    }

    fn get_db(&self) -> i64 {
        0
    }
}
