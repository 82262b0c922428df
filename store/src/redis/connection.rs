//! A connection to the primary that many tasks share, and that reconnects by itself.
//!
//! A command that was sent on a connection that broke may have been applied. It is sent once more, on a new connection, only
//! if the connection is for reading, or if the server refused the command because it is not a primary.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use postern_runtime::clock::instant;
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{Cmd, Pipeline, RedisError, RedisFuture, RedisResult, Value};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::discovery::{Discovery, is_over};

/// The interval at which the sentinels are asked for the primary: a primary that is cut off from them acts as if it were one.
const ASK_EVERY: Duration = Duration::from_secs(2);

/// A connection to the primary. Cheap to clone.
#[derive(Clone)]
pub(super) struct SharedConnection {
    inner: Arc<Inner>,
    /// Set if every command on it only reads.
    reads: bool,
}

struct Inner {
    discovery: Arc<Discovery>,
    /// The number of attempts to connect that have ended.
    attempts: AtomicU64,
    state: Mutex<ConnectionState>,
}

#[derive(Default)]
struct ConnectionState {
    open: Option<OpenConnection>,
    /// The error of the last attempt, if it failed.
    failure: Option<RedisError>,
}

struct OpenConnection {
    connection: MultiplexedConnection,
    address: String,
    /// The number of the attempt that made it.
    attempt: u64,
    asked: Instant,
}

impl SharedConnection {
    /// Makes a connection that connects when it is first used.
    pub(super) fn new(discovery: Arc<Discovery>) -> Self {
        let inner = Inner { discovery, attempts: AtomicU64::new(0), state: Mutex::default() };
        Self { inner: Arc::new(inner), reads: false }
    }

    /// Declares that every command on it only reads, or may be applied twice.
    pub(super) fn reading(self) -> Self {
        Self { reads: true, ..self }
    }

    /// Returns the open connection and the number of its attempt; connects if there is none.
    async fn connection(&self) -> RedisResult<(MultiplexedConnection, u64)> {
        let Inner { discovery, attempts, state } = &*self.inner;
        let seen = attempts.load(Ordering::SeqCst);
        let mut state = state.lock().await;
        if let Some(open) = &mut state.open {
            let is_due = open.asked.elapsed() > ASK_EVERY;
            if discovery.is_last(&open.address) && (!is_due || discovery.is_still_named(&open.address).await)
            {
                // Only now: a caller that leaves while the sentinels are asked leaves the question to the next one.
                open.asked = if is_due { instant() } else { open.asked };
                return Ok((open.connection.clone(), open.attempt));
            }
            state.open = None;
        }
        // A task that waited for a failed attempt of another task does not try again: with many, the last would wait for ever.
        if let Some(failure) = state.failure.clone().filter(|_| attempts.load(Ordering::SeqCst) > seen) {
            return Err(failure);
        }
        let outcome = discovery.primary().await;
        let attempt = attempts.fetch_add(1, Ordering::SeqCst) + 1;
        match outcome {
            Ok(primary) => {
                let connection = primary.connection.clone();
                let (address, asked) = (primary.address, instant());
                state.open = Some(OpenConnection { connection: primary.connection, address, attempt, asked });
                state.failure = None;
                Ok((connection, attempt))
            }
            Err(error) => {
                state.failure = Some(error.clone());
                Err(error)
            }
        }
    }

    /// Drops the connection of this attempt.
    async fn drop_connection(&self, attempt: u64) {
        let mut state = self.inner.state.lock().await;
        if state.open.as_ref().is_some_and(|open| open.attempt == attempt) {
            state.open = None;
        }
    }

    /// Sends a command.
    async fn send(&self, command: &Cmd) -> Sent<Value> {
        let (mut connection, attempt) = self.connection().await?;
        let outcome = connection.send_packed_command(command).await;
        let error = outcome.as_ref().map_or_else(|error| Some(error.clone()), error_of);
        self.sent(outcome, error, attempt).await
    }

    /// Sends several commands.
    async fn send_all(&self, pipeline: &Pipeline, offset: usize, count: usize) -> Sent<Vec<Value>> {
        let (mut connection, attempt) = self.connection().await?;
        let outcome = connection.send_packed_commands(pipeline, offset, count).await;
        let error_in = |values: &Vec<Value>| values.iter().find_map(error_of);
        let error = outcome.as_ref().map_or_else(|error| Some(error.clone()), error_in);
        self.sent(outcome, error, attempt).await
    }

    async fn sent<T>(&self, outcome: RedisResult<T>, error: Option<RedisError>, attempt: u64) -> Sent<T> {
        let over = error.filter(is_over);
        if over.is_some() {
            self.drop_connection(attempt).await;
        }
        Ok((outcome, over))
    }

    /// Reports whether to retry the command after this error. Timeouts are never retried.
    fn goes_again(&self, error: &RedisError) -> bool {
        is_refused(error) || (self.reads && !error.is_timeout())
    }
}

/// The answer, and the error in it that makes the connection useless, if any. `Err`: nothing was sent.
type Sent<T> = RedisResult<(RedisResult<T>, Option<RedisError>)>;

/// Reports whether the server has refused to do anything.
fn is_refused(error: &RedisError) -> bool {
    matches!(error.code(), Some("READONLY" | "LOADING" | "MASTERDOWN" | "MOVED"))
}

fn error_of(value: &Value) -> Option<RedisError> {
    if let Value::ServerError(error) = value { Some(error.clone().into()) } else { None }
}

impl ConnectionLike for SharedConnection {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        Box::pin(async move {
            match self.send(command).await? {
                (_, Some(error)) if self.goes_again(&error) => self.send(command).await?.0,
                (outcome, _) => outcome,
            }
        })
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        Box::pin(async move {
            match self.send_all(pipeline, offset, count).await? {
                // If the server refused one of several commands, it may have applied those before it.
                (_, Some(error)) if self.reads && self.goes_again(&error) => {
                    self.send_all(pipeline, offset, count).await?.0
                }
                (outcome, _) => outcome,
            }
        })
    }

    fn get_db(&self) -> i64 {
        0
    }
}
