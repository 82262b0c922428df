//! The proxy: every call of EC2's query protocol goes through it, is counted, and may go wrong in a way that moto cannot.

use std::collections::{HashMap, VecDeque};
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
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::iam;
use super::meter::Meter;
use super::protocol::{Broken, Call, error_body};
use super::reads::Reads;
use super::semantics;
use crate::clock::monotonic;
use crate::netns::Netns;

/// A fault of a call.
#[derive(Debug, Clone)]
pub enum Fault {
    /// The call is answered with an error: a status, and EC2's code.
    Error(u16, &'static str),
    /// The call takes effect, and its answer is lost.
    Lost,
    /// The call does not arrive.
    Dropped,
    /// The call is answered only after a while.
    Slow(Duration),
}

impl Fault {
    /// The fault of too many calls.
    pub fn throttled() -> Self {
        Self::Error(503, "RequestLimitExceeded")
    }
}

impl Fault {
    fn verdict(self) -> Verdict {
        match self {
            Self::Error(status, code) => Verdict::Answer(error(status, code, "a test")),
            Self::Lost => Verdict::ForwardAndBreak,
            Self::Dropped => Verdict::Break,
            Self::Slow(span) => Verdict::Wait(span),
        }
    }
}

/// A point on the way of a program that changes EC2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CrashPoint {
    /// The number of the change, from 1.
    pub change: usize,
    /// The side of the change on which the point is.
    pub when: When,
}

/// A side of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// The change has not arrived.
    Before,
    /// The change took effect, and is not answered.
    After,
}

/// The proxy.
#[derive(Debug)]
pub(super) struct Proxy {
    moto: String,
    client: Client<HttpConnector, Full<Bytes>>,
    state: Mutex<State>,
    answers: semantics::Answers,
    go_on: Notify,
}

#[derive(Debug, Default)]
struct State {
    calls: Vec<Call>,
    faults: HashMap<String, VecDeque<Fault>>,
    /// The fault of a coming change, and the number of changes until then.
    at_change: Option<(usize, Fault)>,
    down: bool,
    meter: Option<Meter>,
    policy: Option<Arc<serde_json::Value>>,
    halt: Option<Halt>,
    short_pages: Option<usize>,
    reads: Reads,
}

#[derive(Debug)]
struct Halt {
    point: CrashPoint,
    changes: usize,
    reached: bool,
}

/// The proxy's way to handle a call.
enum Verdict {
    Forward,
    Answer(Response<Full<Bytes>>),
    Break,
    ForwardAndBreak,
    ForwardAndHold,
    Hold,
    Wait(Duration),
}

impl Proxy {
    pub(super) fn start(netns: &Netns, at: &'static str, moto: &str) -> Arc<Self> {
        let client = Client::builder(TokioExecutor::new()).build_http();
        let proxy = Arc::new(Self {
            moto: moto.to_owned(),
            client,
            state: Mutex::default(),
            answers: Mutex::default(),
            go_on: Notify::new(),
        });
        let listener = netns.run(TcpListener::bind(at)).unwrap_or_else(|error| panic!("{at}: {error}"));
        let serving = Arc::clone(&proxy);
        netns.start(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let proxy = Arc::clone(&serving);
                stream.set_nodelay(true).ok();
                connections.spawn(async move {
                    let service = service_fn(move |request| Arc::clone(&proxy).serve(request));
                    // A connection that is broken on purpose ends with an error.
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await
                        .ok();
                });
                while connections.try_join_next().is_some() {}
            }
        });
        proxy
    }

    pub(super) fn calls(&self) -> Vec<Call> {
        self.lock().calls.clone()
    }

    pub(super) fn forget_calls(&self) {
        self.lock().calls.clear();
    }

    pub(super) fn fail(&self, action: &str, times: usize, fault: Fault) {
        let mut state = self.lock();
        state.faults.entry(action.to_owned()).or_default().extend(std::iter::repeat_n(fault, times));
    }

    /// Lets the change with this number from now on go wrong.
    pub(super) fn fail_change(&self, number: usize, fault: Fault) {
        self.lock().at_change = Some((number, fault));
    }

    /// Reports whether the change that should go wrong has come.
    pub(super) fn has_failed(&self) -> bool {
        self.lock().at_change.is_none()
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

    pub(super) fn forgive(&self) {
        self.lock().faults.clear();
    }

    pub(super) fn outage(&self, down: bool) {
        self.lock().down = down;
    }

    pub(super) fn stale_reads(&self, span: Duration) {
        self.lock().reads.lag(span);
    }

    pub(super) fn short_pages(&self, items: usize) {
        self.lock().short_pages = Some(items);
    }

    pub(super) fn halt_at(&self, point: Option<CrashPoint>) {
        self.lock().halt = point.map(|point| Halt { point, changes: 0, reached: false });
        self.go_on.notify_waiters();
    }

    pub(super) fn has_halted(&self) -> bool {
        self.lock().halt.as_ref().is_some_and(|halt| halt.reached)
    }

    async fn serve(self: Arc<Self>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Broken> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.map_err(|_| Broken)?.to_bytes();
        let call = Call::parse(&parts.headers, &body);
        match self.verdict(&call) {
            Verdict::Answer(answer) => Ok(answer),
            Verdict::Break => Err(Broken),
            Verdict::Hold => self.hold().await,
            Verdict::Wait(span) => {
                tokio::time::sleep(span).await;
                self.forward(&parts.headers, call, body).await
            }
            Verdict::Forward => self.forward(&parts.headers, call, body).await,
            Verdict::ForwardAndBreak => {
                self.forward(&parts.headers, call, body).await.ok();
                Err(Broken)
            }
            Verdict::ForwardAndHold => {
                self.forward(&parts.headers, call, body).await.ok();
                self.reached();
                self.hold().await
            }
        }
    }

    fn verdict(&self, call: &Call) -> Verdict {
        let mut state = self.lock();
        let is_change = call.is_change();
        if let Some(halt) = &mut state.halt {
            if halt.reached {
                return Verdict::Hold;
            }
            halt.changes += usize::from(is_change);
            if is_change && halt.changes == halt.point.change {
                if halt.point.when == When::After {
                    state.calls.push(call.clone());
                    return Verdict::ForwardAndHold;
                }
                halt.reached = true;
                return Verdict::Hold;
            }
        }
        state.calls.push(call.clone());
        if state.down {
            return Verdict::Break;
        }
        if let Some(meter) = &mut state.meter
            && !meter.admits(call, monotonic())
        {
            return Fault::throttled().verdict();
        }
        if let Some((number, _)) = &mut state.at_change
            && is_change
        {
            *number -= 1;
            if *number == 0 {
                return state.at_change.take().map_or(Verdict::Forward, |(_, fault)| fault.verdict());
            }
        }
        let mut next = |action: &str| state.faults.get_mut(action).and_then(VecDeque::pop_front);
        match next(&call.action).or_else(|| next("*")) {
            None => Verdict::Forward,
            Some(fault) => fault.verdict(),
        }
    }

    fn reached(&self) {
        if let Some(halt) = &mut self.lock().halt {
            halt.reached = true;
        }
    }

    /// Holds the call without an answer, and breaks its connection once the proxy goes on.
    async fn hold(&self) -> Result<Response<Full<Bytes>>, Broken> {
        self.go_on.notified().await;
        Err(Broken)
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
            if let Some(old) = self.lock().reads.old(&call.key(&body), began) {
                return Ok(Response::new(Full::new(old)));
            }
            let most = self.lock().short_pages.unwrap_or(usize::MAX);
            let (status, answer) = semantics::read(&call, most, &self.answers, ask).await?;
            if status == StatusCode::OK {
                self.lock().reads.answered(call.key(&body), answer.clone(), began);
            }
            return Ok(with_status(status, answer));
        }
        let (status, answer) = semantics::change(&call, body.to_vec(), ask).await?;
        self.lock().reads.changed(monotonic());
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
