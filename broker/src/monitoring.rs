//! The HTTP port for monitoring: `/metrics` for Prometheus, `/livez` and `/readyz` for the programs that start brokers and
//! route calls to them. It shows no secret, changes nothing, and asks for no authentication.
//!
//! Any peer that reaches the port may connect, so each connection has bounds: a number of connections, a deadline for a
//! request's head, and an age that ends an answer that is not read. `axum::serve` has none of these, so hyper serves the
//! connections and axum only routes the requests.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::body::Body;
use axum::extract::State;
use axum::response::IntoResponse;
use axum::{Router, routing};
use http::header::{ALLOW, CONTENT_TYPE};
use http::{Request, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::MissedTickBehavior;
use tower::ServiceExt as _;

use crate::clock::boottime;
use crate::limits::log_due;
use crate::readiness::{Readiness, goes_round, in_words};
use crate::signals::rounds::{RoundReporter, Rounds, Task};
use crate::telemetry;

/// The number of connections at once. A further one closes the oldest, so that readers that do not read silence no probe.
const MAX_CONNECTIONS: usize = 64;
/// The time in which a connection must send a request, and the longest quiet between two requests.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// The age at which a connection is closed, also in the middle of an answer that is not read.
const MAX_AGE: Duration = Duration::from_secs(120);
/// The pause between two upkeeps of the recorder: histograms grow until then, or until they are read.
pub const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// The state that the port shows.
#[derive(Debug, Clone)]
pub struct MonitoringState {
    /// The metrics.
    pub metrics: PrometheusHandle,
    /// The reasons for which the broker is not ready.
    pub readiness: Readiness,
    /// The last round of each task.
    pub rounds: Arc<Rounds>,
}

/// Binds the port.
///
/// # Errors
/// It cannot be bound.
pub async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("cannot serve metrics on {address}"))
}

/// Serves until the process ends.
///
/// # Errors
/// Never: an error of a connection ends that connection alone.
#[expect(clippy::disallowed_methods, reason = "the set owns the connections, and ends them with the server")]
pub async fn serve(
    listener: TcpListener,
    shown: MonitoringState,
    reporter: RoundReporter,
) -> anyhow::Result<()> {
    let metrics = shown.metrics.clone();
    let router = router(shown);
    let (mut connections, mut oldest_first) = (JoinSet::new(), VecDeque::new());
    let mut upkeep = tokio::time::interval(UPKEEP_INTERVAL);
    // After the machine stood still, one tick is as good as all that were missed.
    upkeep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((tcp, _)) => {
                    oldest_first.retain(|connection: &AbortHandle| !connection.is_finished());
                    if oldest_first.len() >= MAX_CONNECTIONS
                        && let Some(oldest) = oldest_first.pop_front()
                    {
                        oldest.abort();
                    }
                    oldest_first.push_back(connections.spawn(connection(tcp, router.clone())));
                }
                Err(error) => {
                    if let Some(omitted) = log_due("accept for metrics") {
                        tracing::error!(%error, omitted, "cannot accept a connection for metrics");
                    }
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            _ = upkeep.tick() => {
                metrics.run_upkeep();
                reporter.succeeded(boottime());
            }
        }
    }
}

/// Serves a connection until its peer has closed it, or a deadline has.
async fn connection(stream: impl AsyncRead + AsyncWrite + Unpin, router: Router) {
    // Dropped unread, a request's body is not awaited: hyper announces in the answer that it closes the connection.
    let service =
        service_fn(|request: Request<Incoming>| router.clone().oneshot(request.map(|_body| Body::empty())));
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(READ_TIMEOUT);
    match tokio::time::timeout(MAX_AGE, builder.serve_connection(TokioIo::new(stream), service)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a connection for metrics ended"),
        Err(_) => tracing::debug!("a connection for metrics has reached its age"),
    }
}

/// Routes GET and HEAD by the path, and refuses every other method on any path.
fn router(shown: MonitoringState) -> Router {
    Router::new()
        .route("/metrics", routing::get(metrics))
        .route("/livez", routing::get(livez))
        .route("/readyz", routing::get(readyz))
        .method_not_allowed_fallback(use_get)
        .fallback(routing::get(unknown_path).fallback(use_get))
        .with_state(shown)
}

async fn metrics(State(shown): State<MonitoringState>) -> impl IntoResponse {
    telemetry::rounds(&shown.rounds.list(), boottime());
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], shown.metrics.render())
}

async fn livez(State(shown): State<MonitoringState>) -> (StatusCode, String) {
    if goes_round(&shown.rounds) {
        return (StatusCode::OK, "alive\n".into());
    }
    let age = shown.rounds.age(Task::Reconciler, boottime());
    let since = age.map_or_else(|| "yet".to_owned(), |age| format!("for {} s", age.as_secs()));
    (StatusCode::SERVICE_UNAVAILABLE, format!("reconciler: it has not gone round {since}\n"))
}

async fn readyz(State(shown): State<MonitoringState>) -> (StatusCode, String) {
    let reasons = shown.readiness.reasons();
    if reasons.is_empty() {
        let shortages = in_words(&shown.readiness.shortages());
        return (
            StatusCode::OK,
            ["ready".to_owned()].into_iter().chain(shortages).map(|line| line + "\n").collect(),
        );
    }
    let lines = in_words(&reasons).into_iter().map(|line| line + "\n");
    (StatusCode::SERVICE_UNAVAILABLE, lines.collect())
}

async fn unknown_path() -> (StatusCode, &'static str) {
    (StatusCode::NOT_FOUND, "here are /metrics, /livez and /readyz\n")
}

async fn use_get() -> impl IntoResponse {
    (StatusCode::METHOD_NOT_ALLOWED, [(ALLOW, "GET, HEAD")], "use GET\n")
}

#[cfg(test)]
mod tests;
