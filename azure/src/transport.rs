//! The transport to Azure Resource Manager: it sends requests to the configured host only, within a deadline and under Azure's
//! rates, and repeats them when Azure says that it is busy.

use std::time::Duration;

use async_trait::async_trait;
use azure_core::error::{Error, ErrorKind, ResultExt as _};
use azure_core::headers::{HeaderName, Headers, IF_MATCH};
use azure_core::{Body, BytesStream, HttpClient, Method, Request, Response, StatusCode, Url};
use bytes::Bytes;
use postern_provider::kit::Buckets;
use postern_runtime::backoff::Backoff;

use crate::clock;
use crate::settings::Rates;

/// The deadline of one request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// The deadline of a connection attempt.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The time that a call is repeated while Azure is busy.
const BUSY_TIMEOUT: Duration = Duration::from_secs(180);

/// A client for requests whose answers hold or need secrets: no proxy, no redirects.
pub(crate) fn http() -> reqwest::Result<reqwest::Client> {
    http_within(REQUEST_TIMEOUT)
}

fn http_within(timeout: Duration) -> reqwest::Result<reqwest::Client> {
    reqwest::Client::builder()
        .timeout(timeout)
        .connect_timeout(CONNECT_TIMEOUT)
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .build()
}

/// The SDK's way to the network.
pub(crate) struct Transport {
    http: reqwest::Client,
    endpoint: Url,
    buckets: Buckets<CallKind>,
}

impl Transport {
    pub(crate) fn new(http: reqwest::Client, endpoint: Url, rates: &Rates) -> Self {
        Self { http, endpoint, buckets: buckets(*rates) }
    }

    /// Sends a request once, and returns the status, the headers and the whole body.
    async fn once(&self, request: &Request) -> azure_core::Result<(StatusCode, Headers, Bytes)> {
        let method = reqwest::Method::from_bytes(request.method().as_ref().as_bytes())
            .map_kind(ErrorKind::DataConversion)?;
        let mut builder = self.http.request(method, request.url().clone());
        for (name, value) in request.headers().iter() {
            builder = builder.header(name.as_str(), value.as_str());
        }
        let Body::Bytes(body) = request.body() else {
            return Err(Error::message(ErrorKind::Other, "a body that is a stream is never sent"));
        };
        let sent = builder.body(body.clone()).send().await;
        let answer = sent.map_err(|error| Error::new(ErrorKind::Io, error.without_url()))?;
        let status = StatusCode::try_from(answer.status().as_u16()).map_err(|_| {
            Error::message(ErrorKind::DataConversion, "the answer's status is not one of HTTP's")
        })?;
        let mut headers = Headers::new();
        for (name, value) in answer.headers() {
            if let Ok(value) = value.to_str() {
                headers.insert(HeaderName::from(name.as_str().to_owned()), value.to_owned());
            }
        }
        let body = answer.bytes().await.map_err(|error| Error::new(ErrorKind::Io, error.without_url()))?;
        Ok((status, headers, body))
    }
}

#[async_trait]
impl HttpClient for Transport {
    async fn execute_request(&self, request: &Request) -> azure_core::Result<Response> {
        // Links and the URLs of operations come from answers: the token must not go to another host with them.
        if request.url().origin() != self.endpoint.origin() {
            let host = request.url().host_str().unwrap_or_default();
            return Err(Error::message(
                ErrorKind::Other,
                format!("an answer leads to {host}, which is not Azure Resource Manager"),
            ));
        }
        let mut waits = busy_waits();
        let mut deadline = None;
        loop {
            take(&self.buckets, *request.method()).await;
            // The wait for a token is this broker's own, and no sign of a busy cloud.
            let deadline = *deadline.get_or_insert_with(|| clock::instant() + BUSY_TIMEOUT);
            let (status, headers, body) = self.once(request).await?;
            // A write with an etag builds on a read that the change under way makes old: its caller must read again.
            let is_old = request.headers().get_optional_str(&IF_MATCH).is_some() && is_other_change(&body);
            if is_busy(status, &body) && !is_old && clock::instant() < deadline {
                let wait = retry_after(&headers).max(waits.next()).unwrap_or(Duration::from_secs(1));
                tracing::debug!(path = request.url().path(), %status, ?wait, "Azure is busy");
                tokio::time::sleep(wait).await;
                continue;
            }
            let body = Box::pin(BytesStream::new(body));
            return Ok(Response::new(status, headers, body));
        }
    }
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transport").field("endpoint", &self.endpoint.as_str()).finish_non_exhaustive()
    }
}

/// The time that an answer asks the broker to wait.
pub(crate) fn retry_after(headers: &Headers) -> Option<Duration> {
    let seconds: u64 = headers.get_optional_str(&HeaderName::from_static("retry-after"))?.parse().ok()?;
    Some(Duration::from_secs(seconds.min(600)))
}

/// Reports whether the call had no effect but may succeed a moment later: too many calls, or another change of the same
/// resource is under way.
fn is_busy(status: StatusCode, body: &[u8]) -> bool {
    status == StatusCode::TooManyRequests || status == StatusCode::Conflict && is_other_change(body)
}

fn is_other_change(body: &[u8]) -> bool {
    let says = |code: &[u8]| body.windows(code.len()).any(|part| part == code);
    says(b"\"AnotherOperationInProgress\"") || says(b"\"RetryableError")
}

/// The least waits for a busy Azure: from a tenth of a second to five, each with jitter, so that callers that wait for one another
/// do not collide again.
pub(crate) fn busy_waits() -> impl Iterator<Item = Duration> {
    Backoff { first: Duration::from_millis(100), longest: Duration::from_secs(5) }.endless()
}

/// The kinds of call that Azure meters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum CallKind {
    Read,
    Write,
    NetworkWrite,
}

impl CallKind {
    /// Returns the kinds as which a call with this method counts. Every write is one of Microsoft.Network.
    fn of(method: Method) -> &'static [Self] {
        if matches!(method, Method::Get | Method::Head) {
            &[Self::Read]
        } else {
            &[Self::NetworkWrite, Self::Write]
        }
    }
}

/// Creates full buckets.
fn buckets(rates: Rates) -> Buckets<CallKind> {
    Buckets::new(move |kind| match kind {
        CallKind::Read => rates.reads,
        CallKind::Write => rates.writes,
        CallKind::NetworkWrite => rates.network_writes,
    })
}

/// Waits until a call may be made.
async fn take(buckets: &Buckets<CallKind>, method: Method) {
    for kind in CallKind::of(method) {
        buckets.take(kind).await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use postern_provider::kit::Rate;

    use super::*;

    async fn listen() -> (TcpListener, Url) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        (listener, url)
    }

    async fn ask(endpoint: &Url, rates: &Rates) -> azure_core::Result<Response> {
        let http = http_within(Duration::from_secs(2)).unwrap();
        let mut request = Request::new(endpoint.clone(), Method::Put);
        request.insert_header("authorization", "Bearer a-token");
        request.set_body(azure_core::EMPTY_BODY);
        Transport::new(http, endpoint.clone(), rates).execute_request(&request).await
    }

    #[tokio::test]
    async fn a_request_without_an_answer_ends_at_its_deadline() {
        let (silent, url) = listen().await;
        let asked = tokio::time::timeout(Duration::from_secs(20), ask(&url, &Rates::default())).await;
        let error = asked.unwrap().unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Io), "{error:?}");
        drop(silent);
    }

    #[tokio::test]
    async fn a_redirect_leads_no_token_elsewhere() {
        let ((here, url), (elsewhere, to)) = (listen().await, listen().await);
        let redirecting = async {
            let (mut stream, _) = here.accept().await.unwrap();
            let mut head = [0; 4096];
            let read = stream.read(&mut head).await.unwrap();
            assert!(String::from_utf8_lossy(&head[..read]).contains("Bearer a-token"));
            let answer =
                format!("HTTP/1.1 307 Temporary Redirect\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n");
            stream.write_all(answer.as_bytes()).await.unwrap();
        };
        let rates = Rates::default();
        let (answer, ()) = tokio::join!(ask(&url, &rates), redirecting);
        assert_eq!(u16::from(answer.unwrap().status()), 307);
        let connected = tokio::time::timeout(Duration::from_millis(100), elsewhere.accept()).await;
        assert!(connected.is_err(), "the token went elsewhere");
    }

    #[tokio::test]
    async fn calls_are_held_to_their_rates() {
        let rate = |at_once, per_second| Rate { at_once, per_second };
        let rates = Rates { reads: rate(1, 4), writes: rate(100, 100), network_writes: rate(2, 4) };
        let buckets = buckets(rates);
        for (method, calls) in [(Method::Get, 3), (Method::Put, 4)] {
            let start = clock::instant();
            for _ in 0..calls {
                take(&buckets, method).await;
            }
            assert!(start.elapsed() >= Duration::from_millis(450), "{calls} of {method:?}");
        }
    }

    #[test]
    fn only_an_answer_that_says_so_is_busy() {
        let busy = |status, code: &str| {
            is_busy(status, format!(r#"{{"error":{{"code":"{code}","message":"x"}}}}"#).as_bytes())
        };
        assert!(busy(StatusCode::TooManyRequests, "TooManyRequests"));
        assert!(busy(StatusCode::Conflict, "AnotherOperationInProgress"));
        assert!(busy(StatusCode::Conflict, "RetryableErrorDueToAnotherOperation"));
        assert!(!busy(StatusCode::Conflict, "ScopeLocked"));
        assert!(!busy(StatusCode::BadRequest, "AnotherOperationInProgress"));
    }
}
