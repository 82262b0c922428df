//! The proxy: every call of EC2's query protocol goes through it, is counted, and may go wrong in a way that moto cannot.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::{HeaderMap, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use postern_testkit::{FaultPlan, Handling, StaleReads, serve_each};
use tokio::net::TcpListener;

use super::iam;
use super::meter::Meter;
use super::protocol::{Broken, Call, error_body};
use super::semantics;
use crate::clock::monotonic;
use crate::netns::Netns;

/// The error of a call that is one too many.
const THROTTLED: Refusal = (503, "RequestLimitExceeded");

/// An error of EC2 in the place of an answer: a status and a code.
pub(super) type Refusal = (u16, &'static str);
/// A fault of a call.
pub type Fault = postern_testkit::Fault<Refusal>;

/// Returns the fault of a call that EC2 answers with a status and a code.
pub fn refused(status: u16, code: &'static str) -> Fault {
    Fault::Refused((status, code))
}

/// Returns the fault of a call that is one too many.
pub fn throttled() -> Fault {
    Fault::Refused(THROTTLED)
}

/// The proxy.
#[derive(Debug)]
pub(super) struct Proxy {
    moto: String,
    client: Client<HttpConnector, Full<Bytes>>,
    state: Mutex<State>,
    faults: FaultPlan<Call>,
    answers: semantics::Answers,
}

#[derive(Debug, Default)]
struct State {
    calls: Vec<Call>,
    meter: Option<Meter>,
    policy: Option<Arc<serde_json::Value>>,
    short_pages: Option<usize>,
    reads: StaleReads<Bytes>,
    replica: Replica,
    /// The interfaces that a service manages.
    managed: BTreeSet<String>,
}

/// A replica of EC2 that is behind: one read is answered by it as before the last changes (EC2 API reference, "Eventual
/// consistency": reads of different servers differ).
#[derive(Debug, Default)]
struct Replica {
    changes: u64,
    /// The last answer to each read with the number of changes before it, and the last one before other changes.
    answers: HashMap<Vec<u8>, Answers>,
    /// The words of the read that the replica answers next.
    asked: Option<String>,
}

/// The answers to one read.
#[derive(Debug)]
struct Answers {
    last: Bytes,
    /// The number of changes before the last answer.
    changes: u64,
    /// The last answer before other changes.
    before: Option<Bytes>,
}

impl Replica {
    fn answered(&mut self, key: Vec<u8>, answer: Bytes) {
        let changes = self.changes;
        let before = match self.answers.remove(&key) {
            Some(known) if known.changes < changes => Some(known.last),
            Some(known) => known.before,
            None => None,
        };
        self.answers.insert(key, Answers { last: answer, changes, before });
    }

    /// Returns the old answer to the read that the replica was asked to answer.
    fn old(&mut self, key: &[u8]) -> Option<Bytes> {
        let words = self.asked.as_deref()?;
        if !String::from_utf8_lossy(key).contains(words) {
            return None;
        }
        let known = self.answers.get(key)?;
        let old = if known.changes < self.changes { known.last.clone() } else { known.before.clone()? };
        self.asked = None;
        Some(old)
    }
}

impl postern_testkit::Call for Call {
    /// An action, or `*`.
    type Pattern = String;
    type Refusal = Refusal;

    fn is_change(&self) -> bool {
        self.is_change()
    }

    fn matches(&self, pattern: &String) -> bool {
        pattern == "*" || *pattern == self.action
    }
}

impl Proxy {
    pub(super) fn start(netns: &Netns, at: &'static str, moto: &str) -> Arc<Self> {
        let client = Client::builder(TokioExecutor::new()).build_http();
        let proxy = Arc::new(Self {
            moto: moto.to_owned(),
            client,
            state: Mutex::default(),
            faults: FaultPlan::default(),
            answers: Mutex::default(),
        });
        let listener = netns.run(TcpListener::bind(at)).unwrap_or_else(|error| panic!("{at}: {error}"));
        let serving = Arc::clone(&proxy);
        netns.start(async move {
            let serving = serve_each(listener, |stream| {
                let proxy = Arc::clone(&serving);
                async move {
                    let service = service_fn(move |request| Arc::clone(&proxy).serve(request));
                    // A connection that is broken on purpose ends with an error.
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await
                        .ok();
                }
            });
            serving.await.expect("connections can be accepted")
        });
        proxy
    }

    pub(super) fn calls(&self) -> Vec<Call> {
        self.lock().calls.clone()
    }

    pub(super) fn forget_calls(&self) {
        self.lock().calls.clear();
    }

    /// Returns the plan of the calls that go wrong.
    pub(super) fn faults(&self) -> &FaultPlan<Call> {
        &self.faults
    }

    /// Allows from now on what the policy allows.
    pub(super) fn enforce(&self, policy: serde_json::Value) {
        self.lock().policy = Some(Arc::new(policy));
    }

    /// Returns the first need of a call that the policy does not allow, if any.
    async fn denied(&self, headers: &HeaderMap, call: &Call) -> Result<Option<String>, Broken> {
        let policy = self.lock().policy.clone();
        let Some(policy) = policy.filter(|_| call.is_of_ec2()) else { return Ok(None) };
        for need in iam::needs(call) {
            let tags = match need.resource() {
                Some(id) => semantics::tags(id, |body| self.ask(headers, body)).await?,
                None => iam::Tags::new(),
            };
            if !iam::allows(&policy, &need, &tags) {
                return Ok(Some(format!("{need:?} on a resource with the tags {tags:?}")));
            }
        }
        Ok(None)
    }

    /// Meters calls from now on as EC2 does.
    pub(super) fn meter(&self) {
        self.lock().meter = Some(Meter::default());
    }

    /// The number of calls that the meter refused since [`Self::meter`].
    pub(super) fn throttled(&self) -> usize {
        self.lock().meter.as_ref().map_or(0, Meter::refused)
    }

    pub(super) fn stale_reads(&self, span: Duration) {
        self.lock().reads.lag(span);
    }

    /// Has a service manage an interface: EC2 then shows it so, and refuses to change it (EC2 User Guide, "Requester-managed
    /// network interfaces").
    pub(super) fn manage(&self, interface: &str) {
        self.lock().managed.insert(interface.to_owned());
    }

    pub(super) fn stale_once(&self, words: &str) {
        self.lock().replica.asked = Some(words.to_owned());
    }

    /// Reports whether the replica has given its old answer.
    pub(super) fn was_stale(&self) -> bool {
        self.lock().replica.asked.is_none()
    }

    pub(super) fn short_pages(&self, items: usize) {
        self.lock().short_pages = Some(items);
    }

    async fn serve(self: Arc<Self>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Broken> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.map_err(|_| Broken)?.to_bytes();
        let call = Call::parse(&parts.headers, &body);
        let handling = self.handling(&call);
        let forward = self.forward(&parts.headers, call, body);
        let answer = handling.answer(forward, |(status, code)| Ok(error(*status, code, "a test"))).await;
        self.faults.hold(&handling).await;
        answer.unwrap_or(Err(Broken))
    }

    fn handling(&self, call: &Call) -> Handling<Refusal> {
        let handling = self.faults.handle(call);
        if handling == Handling::Hold {
            return handling;
        }
        let mut state = self.lock();
        state.calls.push(call.clone());
        if handling == Handling::Serve
            && let Some(meter) = &mut state.meter
            && !meter.admits(call, monotonic())
        {
            return Handling::Refuse(THROTTLED);
        }
        handling
    }

    async fn forward(
        &self,
        headers: &HeaderMap,
        call: Call,
        body: Bytes,
    ) -> Result<Response<Full<Bytes>>, Broken> {
        if let Some(what) = self.denied(headers, &call).await? {
            // The error's text is XML: no angle brackets, no ampersands.
            let what: String = what.chars().filter(|c| !"<>&".contains(*c)).collect();
            return Ok(error(403, "UnauthorizedOperation", &what));
        }
        let ask = |body: Vec<u8>| self.ask(headers, body);
        if !call.is_change() {
            let began = monotonic();
            if let Some(old) = self.lock().replica.old(&call.key(&body)) {
                return Ok(Response::new(Full::new(old)));
            }
            if let Some(old) = self.lock().reads.old(&call.key(&body), began) {
                return Ok(Response::new(Full::new(old)));
            }
            let most = self.lock().short_pages.unwrap_or(usize::MAX);
            let (status, answer) = semantics::read(&call, most, &self.answers, ask).await?;
            let answer = semantics::with_managed(answer, &self.lock().managed);
            if status == StatusCode::OK {
                let mut state = self.lock();
                state.reads.answered(call.key(&body), answer.clone(), began);
                state.replica.answered(call.key(&body), answer.clone());
            }
            return Ok(with_status(status, answer));
        }
        if call.action == "ModifyNetworkInterfaceAttribute"
            && call.parameter("NetworkInterfaceId").is_some_and(|id| self.lock().managed.contains(id))
        {
            return Ok(error(
                400,
                "OperationNotPermitted",
                "You do not have permission to change this interface.",
            ));
        }
        let (status, answer) = semantics::change(&call, body.to_vec(), ask).await?;
        let mut state = self.lock();
        state.reads.changed(monotonic());
        state.replica.changes += 1;
        drop(state);
        Ok(with_status(status, answer))
    }

    /// Asks moto, and returns its answer.
    async fn ask(&self, headers: &HeaderMap, body: Vec<u8>) -> Result<(StatusCode, Bytes), Broken> {
        let mut request = Request::post(format!("http://{}/", self.moto));
        for name in ["authorization", "content-type", "x-amz-date", "x-amz-security-token"] {
            if let Some(value) = headers.get(name) {
                request = request.header(name, value);
            }
        }
        let request = request.body(Full::new(Bytes::from(body))).map_err(|_| Broken)?;
        let answer = self.client.request(request).await.map_err(|_| Broken)?;
        let status = answer.status();
        Ok((status, answer.into_body().collect().await.map_err(|_| Broken)?.to_bytes()))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn with_status(status: StatusCode, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response
}

fn error(status: u16, code: &str, message: &str) -> Response<Full<Bytes>> {
    with_status(
        StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
        error_body(code, message),
    )
}
