//! The bounds of a call: the size of its headers and of each message, the time to receive the request and to answer it, and the
//! number of calls that a principal has at once.
//!
//! A message is refused by the length that it announces, before any of it is kept. Streams of messages have no deadline:
//! an agent's session has one of its own (`services/session.rs`), and the others end with their connection.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderMap, Request, Response};
use hyper::body::{Body as HttpBody, Bytes, Frame};
use postern_core::CallerKind;
use postern_proto::status::plain;
use prost::Message as _;
use prost_types::FileDescriptorSet;
use tokio::time::{Sleep, sleep};
use tonic::body::Body;
use tonic::{Code, Status};
use tower::{Layer, Service};

use super::answer::Answer;
use super::middleware::permissions::{Allow, row};
use super::peer::Peer;
use crate::limits::{Admission, CallPlace, Limit, Limits, Owner};

/// The calls whose answer takes as long as a cloud or the audit log. Their callers are administrators and readers.
const SLOW_CALLS: [&str; 4] = [
    "/postern.v1.TargetService/AssessTargets",
    "/postern.v1.TargetService/LockdownTargets",
    "/postern.v1.TargetService/ReleaseTargets",
    "/postern.v1.AuditService/VerifyAudit",
];
/// The call whose message is a whole policy.
const POLICY_CALL: &str = "/postern.v1.PolicyService/PutPolicy";
/// The calls of principals whose messages name many targets. The messages of all others name one thing or a page.
const REQUEST_CALLS: [&str; 4] = [
    "/postern.v1.AccessService/RequestAccess",
    "/postern.v1.TargetService/AssessTargets",
    "/postern.v1.TargetService/LockdownTargets",
    "/postern.v1.TargetService/ReleaseTargets",
];
/// The bytes that HTTP/2 counts for each header besides its name and value (RFC 9113, section 6.5.2).
const HEADER_COST: usize = 32;
/// The deadline of [`SLOW_CALLS`].
const SLOW_CALL_TIMEOUT: Duration = Duration::from_secs(3600);
/// The bytes that gRPC puts before each message: a flag, and the message's length.
const PREFIX_LENGTH: usize = 5;

/// The sides of a call that are streams of messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Shape {
    requests: bool,
    answers: bool,
}

/// Applies the bounds before a service.
#[derive(Clone)]
pub(super) struct BoundedLayer {
    admission: Arc<Admission>,
    shapes: Arc<HashMap<String, Shape>>,
}

impl BoundedLayer {
    /// Makes the bounds for the calls of the services that these descriptors hold.
    ///
    /// # Errors
    /// A descriptor cannot be read.
    pub(super) fn new(admission: Arc<Admission>, descriptors: &[&[u8]]) -> anyhow::Result<Self> {
        let mut shapes = HashMap::new();
        for set in descriptors {
            for file in FileDescriptorSet::decode(*set)?.file {
                for service in &file.service {
                    for method in &service.method {
                        let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                        let shape =
                            Shape { requests: method.client_streaming(), answers: method.server_streaming() };
                        shapes.insert(path, shape);
                    }
                }
            }
        }
        Ok(Self { admission, shapes: Arc::new(shapes) })
    }
}

impl<S> Layer<S> for BoundedLayer {
    type Service = Bounded<S>;
    fn layer(&self, inner: S) -> Bounded<S> {
        Bounded { layer: self.clone(), inner }
    }
}

/// A service behind the bounds.
#[derive(Clone)]
pub(super) struct Bounded<S> {
    layer: BoundedLayer,
    inner: S,
}

impl<S> Service<Request<Body>> for Bounded<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let limits = &self.layer.admission.limits;
        let path = request.uri().path();
        // The authorization refuses a path that no service has; until then it is a call like others.
        let shape = self.layer.shapes.get(path).copied().unwrap_or_default();
        let (message_limit, message) = message_limit(limits, path);
        let proven = request.extensions().get::<Peer>();
        let peer = proven.map(|peer| peer.address.to_string()).unwrap_or_default();
        let kind = proven.and_then(|peer| peer.certificate.as_ref()).map(|proof| &proof.caller().kind);
        let place = match self.layer.admit(&request, kind, &peer) {
            Ok(place) => place,
            Err(status) => return Box::pin(async move { Ok(status.into_http()) }),
        };
        let answer = match shape {
            Shape { requests: false, answers: false } if SLOW_CALLS.contains(&path) => {
                Some(SLOW_CALL_TIMEOUT)
            }
            Shape { requests: false, answers: false } => Some(limits.answer),
            Shape { .. } => None,
        };
        let asked = client_timeout(request.headers());
        let deadline = answer.into_iter().chain(asked).min();
        let receive = limits.receive;
        let admission = Arc::clone(&self.layer.admission);
        let body = |inner| Incoming {
            inner,
            framing: Framing::new(message_limit),
            deadline: (!shape.requests).then(|| Box::pin(sleep(receive))),
            receive,
            limit: message,
            peer: peer.clone(),
            admission: Arc::clone(&admission),
        };
        let call = self.inner.call(request.map(|inner| Body::new(body(inner))));
        Box::pin(async move {
            let answered = match deadline {
                None => Ok(call.await),
                Some(deadline) => tokio::time::timeout(deadline, call).await.map_err(|_| deadline),
            };
            let deadline = match answered {
                Ok(answered) => return answered.map(|answer| Answer::over(answer, place)),
                Err(deadline) => deadline,
            };
            // A caller that gives less time than the broker meets no limit of the broker.
            if answer == Some(deadline) {
                admission.report.hit(Limit::Answer, &peer);
            }
            let message = format!("the call was not answered within {} s", deadline.as_secs_f64());
            Ok(plain(Code::DeadlineExceeded, "ANSWER_LATE", message).into_http())
        })
    }
}

impl BoundedLayer {
    /// Admits a call by the size of its headers and the calls of its principal, and returns its place among these.
    ///
    /// # Errors
    /// The headers are larger than the limit, or the principal has as many calls as it may.
    fn admit(
        &self,
        request: &Request<Body>,
        kind: Option<&CallerKind>,
        peer: &str,
    ) -> Result<Option<CallPlace>, Box<Status>> {
        let limits = &self.admission.limits;
        let (most, limit) = match kind {
            None => (limits.anonymous_headers, Limit::AnonymousHeaders),
            Some(CallerKind::Agent(_)) => (limits.agent_headers, Limit::AgentHeaders),
            Some(CallerKind::Principal(_) | CallerKind::Broker) => (limits.headers, Limit::Headers),
        };
        let size = headers_size(request);
        if size > usize::try_from(most).unwrap_or(usize::MAX) {
            let message = format!("headers of {size} bytes are over the limit of {most} bytes");
            return Err(Box::new(self.refuse(limit, peer, "HEADERS_TOO_LARGE", &message)));
        }
        let Some(kind @ CallerKind::Principal(_)) = kind else { return Ok(None) };
        let place = self.admission.begin_call(Owner::from(kind)).ok_or_else(|| {
            let most = limits.calls_per_principal;
            let message = format!("{most} calls of yours are not answered yet; wait for one of them");
            Box::new(self.refuse(Limit::CallsPerPrincipal, peer, "TOO_MANY_CALLS", &message))
        });
        place.map(Some)
    }

    fn refuse(&self, limit: Limit, peer: &str, reason: &str, message: &str) -> Status {
        self.admission.report.hit(limit, &peer);
        let message = format!("{message}; see [limits] {} of the broker", limit.word());
        plain(Code::ResourceExhausted, reason, message)
    }
}

/// Returns the limit on the size of a message of an RPC.
fn message_limit(limits: &Limits, path: &str) -> (usize, Limit) {
    match row(path) {
        Some(Allow::Anyone) | None => (limits.anonymous_message, Limit::AnonymousMessage),
        Some(Allow::Agent) => (limits.agent_message, Limit::AgentMessage),
        Some(Allow::Roles(_)) if path == POLICY_CALL => (limits.message, Limit::Message),
        Some(Allow::Roles(_)) if REQUEST_CALLS.contains(&path) => {
            (limits.request_message, Limit::RequestMessage)
        }
        Some(Allow::Roles(_)) => (limits.small_message, Limit::SmallMessage),
    }
}

/// Returns the size of a call's headers as HTTP/2 counts it. The method is POST and the scheme https.
fn headers_size(request: &Request<Body>) -> usize {
    let authority = request.uri().authority().map_or(0, |authority| authority.as_str().len());
    let path = request.uri().path_and_query().map_or(0, |path| path.as_str().len());
    let pseudo = ":method:scheme:authority:pathPOSThttps".len() + authority + path + 4 * HEADER_COST;
    let headers = request.headers().iter();
    pseudo + headers.map(|(name, value)| name.as_str().len() + value.len() + HEADER_COST).sum::<usize>()
}

/// A request's body within its bounds.
struct Incoming {
    inner: Body,
    framing: Framing,
    /// The moment by which all of it must have come; none for a stream of messages.
    deadline: Option<Pin<Box<Sleep>>>,
    receive: Duration,
    /// The limit on the size of a message.
    limit: Limit,
    peer: String,
    admission: Arc<Admission>,
}

impl HttpBody for Incoming {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        // Checked first, so that a peer that sends one byte at a time meets the deadline too.
        if this.deadline.as_mut().is_some_and(|deadline| deadline.as_mut().poll(context).is_ready()) {
            this.deadline = None;
            this.admission.report.hit(Limit::Receive, &this.peer);
            let message = format!(
                "the request was not received within {} s; see [limits] receive of the broker",
                this.receive.as_secs_f64()
            );
            return Poll::Ready(Some(Err(plain(Code::DeadlineExceeded, "REQUEST_LATE", message))));
        }
        let polled = Pin::new(&mut this.inner).poll_frame(context);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(Err(length)) = frame.data_ref().map(|data| this.framing.take(data)) {
                    this.admission.report.hit(this.limit, &this.peer);
                    let message = format!(
                        "a message of {length} bytes is over the limit of {} bytes; see [limits] {} of the broker",
                        this.framing.limit,
                        this.limit.word()
                    );
                    let status = plain(Code::ResourceExhausted, "MESSAGE_TOO_LARGE", message);
                    return Poll::Ready(Some(Err(status)));
                }
            }
            Poll::Ready(_) => this.deadline = None,
            Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }
}

/// Follows gRPC's framing through a body, regardless of where its chunks are cut.
#[derive(Debug)]
struct Framing {
    limit: usize,
    prefix: [u8; PREFIX_LENGTH],
    /// The bytes of the prefix that have come.
    have: usize,
    /// The bytes of the message that are still to come.
    left: usize,
}

impl Framing {
    fn new(limit: usize) -> Self {
        Self { limit, prefix: [0; PREFIX_LENGTH], have: 0, left: 0 }
    }

    /// Reads the next bytes.
    ///
    /// # Errors
    /// The length of a message that is too large.
    fn take(&mut self, mut bytes: &[u8]) -> Result<(), usize> {
        while !bytes.is_empty() {
            let skipped = self.left.min(bytes.len());
            self.left -= skipped;
            bytes = &bytes[skipped..];
            let (head, rest) = bytes.split_at(bytes.len().min(PREFIX_LENGTH - self.have));
            self.prefix[self.have..self.have + head.len()].copy_from_slice(head);
            self.have += head.len();
            bytes = rest;
            if self.have == PREFIX_LENGTH {
                let [_, length @ ..] = self.prefix;
                let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
                if length > self.limit {
                    return Err(length);
                }
                (self.left, self.have) = (length, 0);
            }
        }
        Ok(())
    }
}

/// Returns the time that the caller gives the call (gRPC over HTTP/2, `grpc-timeout`), if it names one.
fn client_timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(count * 3600)),
        "M" => Some(Duration::from_secs(count * 60)),
        "S" => Some(Duration::from_secs(count)),
        "m" => Some(Duration::from_millis(count)),
        "u" => Some(Duration::from_micros(count)),
        "n" => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
