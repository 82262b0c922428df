//! A connection after its handshake: HTTP/2, with bounds for each class of peer.
//!
//! tonic's server passes "no limit" for streams and for streams that were reset after an error, which switches off the
//! defaults of hyper and h2; so hyper serves the connections here. With `streams` calls at once, a connection makes the
//! broker hold at most its window, and for each call its headers, one message and one send buffer.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tower::{Service, ServiceExt as _};

use super::peer::Peer;
use super::sent_frames::SentFrames;
use crate::clock::boottime;
use crate::limits::{Admission, Class, Limit, Seat, Waiting};

/// The interval of probes on a quiet connection, and the time that a peer has to answer one.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// The time that a connection past its age has for the calls that it is in.
const LAST_CALLS_TIMEOUT: Duration = Duration::from_secs(5);
/// The bytes that a client sends first: the HTTP/2 preface, and the head of its settings.
const PREFACE_LENGTH: usize = 24 + 9;
/// The largest frame that a peer may send; HTTP/2 allows no less.
const MAX_FRAME_SIZE: u32 = 16 * 1024;
/// The bytes of headers past the limit with which a call still reaches `bounded`, which refuses it with the limit's name. HTTP/2
/// itself refuses a call past them (431).
const HEADERS_SLACK: u32 = 4 * 1024;
/// The streams that a peer may reset before the broker has accepted them; past that, the connection is closed (rapid reset).
const MAX_PENDING_RESETS: usize = 20;

/// The bounds of a connection, by its class.
struct Bounds {
    streams: u32,
    /// Bytes of one call that the peer may send before the broker has taken them.
    stream_window: u32,
    /// Bytes of all calls of the connection that the peer may send before the broker has taken them.
    window: u32,
    /// Bytes of a call's headers, and with them the number of CONTINUATION frames.
    headers: u32,
    /// The limit on streams, for the count of refusals.
    refused: Limit,
    /// Bytes of one call's answer that wait for the peer.
    send: usize,
    /// Streams that the broker may reset for errors of the peer until the connection is closed.
    errors: usize,
    /// Bytes that the peer may send in all. HTTP/2 has frames that are no calls, and whose number it does not limit.
    bytes: Option<usize>,
    age: Option<Duration>,
}

impl Bounds {
    fn of(seat: &Seat) -> Self {
        const KIB: u32 = 1024;
        let limits = seat.limits();
        match seat.class() {
            Class::Anonymous => Self {
                streams: limits.anonymous_streams,
                stream_window: 16 * KIB,
                window: 64 * KIB,
                headers: limits.anonymous_headers + HEADERS_SLACK,
                refused: Limit::AnonymousStreams,
                send: 16 * 1024,
                errors: 64,
                bytes: Some(limits.anonymous_bytes),
                age: Some(limits.anonymous_age),
            },
            Class::Agents => Self {
                streams: limits.agent_streams,
                stream_window: 64 * KIB,
                window: 128 * KIB,
                headers: limits.agent_headers + HEADERS_SLACK,
                refused: Limit::AgentStreams,
                send: 64 * 1024,
                errors: 64,
                bytes: None,
                age: None,
            },
            Class::People | Class::Administrators => Self {
                streams: limits.streams,
                stream_window: 64 * KIB,
                window: 256 * KIB,
                headers: limits.headers + HEADERS_SLACK,
                refused: Limit::Streams,
                send: 64 * 1024,
                errors: 1024,
                bytes: None,
                age: None,
            },
        }
    }
}

/// Serves a connection until it ends, another connection takes its seat, or the broker shuts down and its last call is answered.
pub(super) async fn serve<S>(connection: Connection, seat: Seat, service: S, ending: CancellationToken)
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    let bounds = Bounds::of(&seat);
    let peer = connection.peer.clone();
    let address = peer.address;
    let service = service_fn(move |request: Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(peer.clone());
        service.clone().oneshot(request)
    });
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(bounds.streams)
        .adaptive_window(false)
        .initial_stream_window_size(bounds.stream_window)
        .initial_connection_window_size(bounds.window)
        .max_frame_size(MAX_FRAME_SIZE)
        .max_header_list_size(bounds.headers)
        .max_send_buf_size(bounds.send)
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
        .max_local_error_reset_streams(bounds.errors)
        .keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_INTERVAL);
    let (late, spent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let mut stream = connection.stream;
    stream.get_mut().0.budget = bounds.bytes.map(|left| Budget { left, spent: Arc::clone(&spent) });
    let stream = PrefaceStream {
        stream,
        sent: SentFrames::default(),
        refused: RefusedStreams { admission: Arc::clone(seat.admission()), limit: bounds.refused, address },
        preface: Some(Preface {
            left: PREFACE_LENGTH,
            due: Box::pin(sleep(seat.limits().preface)),
            late: Arc::clone(&late),
        }),
    };
    let mut served = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let mut aged = pin!(async {
        match bounds.age {
            Some(age) => sleep(age).await,
            None => std::future::pending().await,
        }
    });
    let ended = tokio::select! {
        result = &mut served => {
            if late.load(Ordering::Relaxed) {
                seat.report().hit(Limit::Preface, &address);
            }
            if spent.load(Ordering::Relaxed) {
                seat.report().hit(Limit::AnonymousBytes, &address);
            }
            return log(result);
        }
        () = seat.evicted() => return,
        () = &mut aged => {
            seat.report().hit(Limit::AnonymousAge, &address);
            Some(LAST_CALLS_TIMEOUT)
        }
        () = ending.cancelled() => None,
    };
    served.as_mut().graceful_shutdown();
    let hard = async {
        match ended {
            Some(last) => sleep(last).await,
            // The shutdown of the broker bounds it.
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        result = &mut served => log(result),
        () = seat.evicted() => {}
        () = hard => {}
    }
}

fn log(result: Result<(), hyper::Error>) {
    if let Err(error) = result {
        tracing::debug!(error = &error as &dyn std::error::Error, "a connection failed");
    }
}

/// A TCP connection that records, until its handshake is done, whether it waits for its peer, and that fails after the handshake
/// once the peer has sent its budget of bytes.
pub(super) struct PeerStream {
    tcp: TcpStream,
    pub(super) waiting: Option<Arc<Waiting>>,
    budget: Option<Budget>,
}

/// The bytes that a peer may still send.
struct Budget {
    left: usize,
    /// Set when the peer has sent more: HTTP/2 does not report why reading failed.
    spent: Arc<AtomicBool>,
}

impl Budget {
    fn spend(&mut self, bytes: usize) -> io::Result<()> {
        let left = self.left.checked_sub(bytes);
        self.left = left.unwrap_or(0);
        left.map(drop).ok_or_else(|| {
            self.spent.store(true, Ordering::Relaxed);
            io::Error::other("a peer without a certificate has sent more than its share")
        })
    }
}

impl PeerStream {
    pub(super) fn new(tcp: TcpStream, waiting: Arc<Waiting>) -> Self {
        Self { tcp, waiting: Some(waiting), budget: None }
    }

    fn note<T>(&self, polled: Poll<T>) -> Poll<T> {
        if let Some(waiting) = &self.waiting {
            match polled {
                Poll::Pending => waiting.for_peer(boottime()),
                Poll::Ready(_) => waiting.no_more(boottime()),
            }
        }
        polled
    }
}

impl AsyncRead for PeerStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.tcp).poll_read(context, buf);
        if let (Poll::Ready(Ok(())), Some(budget)) = (&polled, &mut self.budget) {
            budget.spend(buf.filled().len() - before)?;
        }
        self.note(polled)
    }
}

impl AsyncWrite for PeerStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.tcp).poll_write(context, bytes);
        self.note(polled)
    }
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(context)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(context)
    }
}

/// A connection after its handshake, with its peer.
pub(super) struct Connection {
    /// On the heap: it passes through several futures, and each would keep room for it as long as the session lasts.
    pub(super) stream: Box<TlsStream<PeerStream>>,
    pub(super) peer: Peer,
}

/// A connection that fails unless HTTP/2 begins in time.
struct PrefaceStream {
    stream: Box<TlsStream<PeerStream>>,
    preface: Option<Preface>,
    sent: SentFrames,
    refused: RefusedStreams,
}

/// The count of streams that HTTP/2 refuses because the peer has too many: it does not report them.
struct RefusedStreams {
    admission: Arc<Admission>,
    limit: Limit,
    address: SocketAddr,
}

struct Preface {
    left: usize,
    due: Pin<Box<Sleep>>,
    /// Set if the preface did not come in time: HTTP/2 does not report why reading failed.
    late: Arc<AtomicBool>,
}

impl AsyncRead for PrefaceStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        // Checked first, so that a peer that sends one byte at a time meets the deadline too.
        if let Some(preface) = this.preface.as_mut()
            && preface.due.as_mut().poll(context).is_ready()
        {
            preface.late.store(true, Ordering::Relaxed);
            this.preface = None;
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "HTTP/2 was not begun in time")));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(context, buf))?;
        if let Some(preface) = &mut this.preface {
            preface.left = preface.left.saturating_sub(buf.filled().len() - before);
            if preface.left == 0 {
                this.preface = None;
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for PrefaceStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let written = ready!(Pin::new(&mut this.stream).poll_write(context, bytes))?;
        for _ in 0..this.sent.take(&bytes[..written]) {
            this.refused.admission.report.hit(this.refused.limit, &this.refused.address);
        }
        Poll::Ready(Ok(written))
    }
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
