//! The HTTP port for monitoring: `/metrics` for Prometheus, `/livez` and `/readyz` for the programs that start brokers and
//! route calls to them. It shows no secret, changes nothing, and asks for no authentication.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use http::header::{ALLOW, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::MissedTickBehavior;

use crate::clock::Clock;
use crate::readiness::{Readiness, goes_round, in_words};
use crate::signals::Heartbeat;

/// The number of connections at once. A further one closes the oldest, so that readers that do not read silence no probe.
const MAX_CONNECTIONS: usize = 64;
/// The time in which a connection must send a request, and the longest quiet between two requests.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// The age at which a connection is closed, also in the middle of an answer that is not read.
const MAX_AGE: Duration = Duration::from_secs(120);
/// The pause between two upkeeps of the recorder: histograms grow until then, or until they are read.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// The state that the port shows.
#[derive(Debug, Clone)]
pub struct Shown {
    /// The metrics.
    pub metrics: PrometheusHandle,
    /// The reasons for which the broker is not ready.
    pub readiness: Readiness,
    /// The heartbeat of the reconciler.
    pub heartbeat: Arc<Heartbeat>,
    /// The broker's clock.
    pub clock: Clock,
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
pub async fn serve(listener: TcpListener, shown: Shown) -> anyhow::Result<()> {
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
                    oldest_first.push_back(connections.spawn(connection(tcp, shown.clone())));
                }
                Err(error) => {
                    tracing::error!(%error, "cannot accept a connection for metrics");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            _ = upkeep.tick() => shown.metrics.run_upkeep(),
        }
    }
}

async fn connection(tcp: TcpStream, shown: Shown) {
    let service = service_fn(|request: Request<Incoming>| {
        let answer = shown.answer(request.method(), request.uri().path());
        async move { Ok::<_, Infallible>(answer) }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(READ_TIMEOUT);
    match tokio::time::timeout(MAX_AGE, builder.serve_connection(TokioIo::new(tcp), service)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a connection for metrics ended"),
        Err(_) => tracing::debug!("a connection for metrics has reached its age"),
    }
}

impl Shown {
    fn answer(&self, method: &Method, path: &str) -> Response<String> {
        if method != Method::GET && method != Method::HEAD {
            let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "use GET\n".into());
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        match path {
            "/metrics" => {
                let mut response = plain(StatusCode::OK, self.metrics.render());
                let format = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
                response.headers_mut().insert(CONTENT_TYPE, format);
                response
            }
            "/livez" if goes_round(&self.heartbeat, self.clock) => plain(StatusCode::OK, "alive\n".into()),
            "/livez" => {
                let last =
                    self.heartbeat.last().map_or_else(|| "its start".to_owned(), |last| last.to_string());
                let body = format!("reconciler: it has not gone round since {last}\n");
                plain(StatusCode::SERVICE_UNAVAILABLE, body)
            }
            "/readyz" => {
                let reasons = self.readiness.reasons();
                if reasons.is_empty() {
                    return plain(StatusCode::OK, "ready\n".into());
                }
                let lines = in_words(&reasons).into_iter().map(|line| line + "\n");
                plain(StatusCode::SERVICE_UNAVAILABLE, lines.collect())
            }
            _ => plain(StatusCode::NOT_FOUND, "here are /metrics, /livez and /readyz\n".into()),
        }
    }
}

fn plain(status: StatusCode, body: String) -> Response<String> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

#[cfg(test)]
mod tests {
    use jiff::{SignedDuration, Timestamp};

    use super::*;
    use crate::signals::parts::{ENDING, RECONCILER, STORE};
    use crate::telemetry;

    fn shown() -> Shown {
        Shown {
            metrics: telemetry::recorder().unwrap().handle(),
            readiness: Readiness::default(),
            heartbeat: Arc::default(),
            clock: Clock::start(Timestamp::UNIX_EPOCH),
        }
    }

    fn get(shown: &Shown, path: &str) -> (u16, String) {
        let response = shown.answer(&Method::GET, path);
        (response.status().as_u16(), response.into_body())
    }

    #[test]
    fn liveness_is_that_the_reconciler_goes_round() {
        let shown = shown();
        let now = shown.clock.now();
        assert_eq!(get(&shown, "/livez").0, 503);
        shown.heartbeat.beat(now);
        assert_eq!(get(&shown, "/livez"), (200, "alive\n".into()));
        shown.heartbeat.beat(now - SignedDuration::from_secs(31));
        assert_eq!(get(&shown, "/livez").0, 503);
    }

    #[test]
    fn readiness_is_that_no_part_has_a_reason_and_shows_each() {
        let shown = shown();
        let (code, body) = get(&shown, "/readyz");
        assert!(code == 503 && body.contains("store: ") && body.contains("reconciler: "), "{body}");
        shown.readiness.clear(STORE);
        shown.readiness.clear(RECONCILER);
        assert_eq!(get(&shown, "/readyz"), (200, "ready\n".into()));
        shown.readiness.set(ENDING, "the broker is ending");
        assert_eq!(get(&shown, "/readyz"), (503, "ending: the broker is ending\n".into()));
    }

    #[test]
    fn nothing_else_is_there_and_nothing_can_be_changed() {
        let shown = shown();
        assert_eq!(get(&shown, "/").0, 404);
        assert_eq!(shown.answer(&Method::POST, "/metrics").status(), StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(shown.answer(&Method::HEAD, "/metrics").status(), StatusCode::OK);
    }
}
