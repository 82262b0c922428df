//! Attacks on a broker's port, of peers without a certificate and of one with a reader's, bounded in number. Each goes on for as long
//! as it is held.

use std::convert::Infallible;
use std::fs;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use http::Request;
use http_body_util::StreamBody;
use hyper::body::{Bytes, Frame};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_stream::StreamExt as _;

use crate::broker::Broker;
use crate::netns::Running;
use crate::stranger::{
    END_HEADERS, END_STREAM, ENROLL, Frames, INDEXED, Stranger, WATCH, frame, grpc, indexing_headers, kind,
    whole_call,
};

/// The number of watches that are asked for on one connection.
const WATCHES: u32 = 150_000;
/// The number of bodies that are begun, and the number of their connections.
const BODIES: usize = 1_000;
const BODY_CONNECTIONS: usize = 100;
/// The length that each of these bodies announces, and the part of it that is sent: a broker without limits takes 4 MiB.
const BODY: u32 = 4 * 1024 * 1024 - 1;
const CHUNK: &[u8] = &[0; 64 * 1024];
const CHUNKS: usize = 63;
/// The number of smaller bodies that are begun, and the number of their connections: as many and as long as a broker's
/// limits allow.
const SMALL_BODIES: usize = 2_000;
const SMALL_CONNECTIONS: usize = 250;
const SMALL_BODY: u32 = 16 * 1024;
const SMALL_CHUNK: &[u8] = &[0; 16 * 1024 - 1];
/// The number of silent connections.
const SILENT: usize = 512;
/// The number of idle connections.
const IDLE: usize = 1_000;
/// The number of connections on which handshakes are made again and again, and the number that are made.
const HANDSHAKERS: usize = 64;
const HANDSHAKES: usize = 2_000;
/// The number of watches of grants, and the number of their connections.
const WATCHERS: usize = 2_000;
const WATCHER_CONNECTIONS: usize = 16;
/// The number of verifications at once, and the number that are asked for.
const VERIFIERS: u32 = 40;
const VERIFICATIONS: usize = 400;
const WATCH_GRANTS: &str = "/postern.v1.AccessService/WatchGrants";
const VERIFY: &str = "/postern.v1.AuditService/VerifyAudit";
/// The pause before a connection that the broker ended is made again.
const AGAIN: Duration = Duration::from_millis(20);

/// An attack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attack {
    /// 150,000 health watches on one connection.
    Watches,
    /// 1,000 enrolments whose messages of 4 MiB never end.
    Bodies,
    /// 2,000 enrolments whose messages are within the limit and never end.
    SmallBodies,
    /// 512 TCP connections that send nothing.
    Silent,
    /// 1,000 connections that complete the handshake, answer pings and ask for nothing.
    Idle,
    /// 2,000 handshakes that are completed and hung up, as fast as the broker takes them.
    Handshakes,
    /// 2,000 watches of grants by one reader.
    Watchers,
    /// 40 verifications of the audit log at once by one reader, 400 in all.
    Verifications,
}

/// An attack that goes on until this is dropped.
#[derive(Debug)]
pub struct Attacking {
    running: Option<Running<()>>,
    seen: Arc<Seen>,
}

/// The progress of the attack.
#[derive(Debug, Default)]
struct Seen {
    /// Units of the attack that were sent; each counts once, also where the broker ended it.
    sent: AtomicUsize,
    bytes: AtomicU64,
}

impl Attack {
    /// Every attack.
    pub const ALL: [Self; 8] = [
        Self::Watches,
        Self::Bodies,
        Self::SmallBodies,
        Self::Silent,
        Self::Idle,
        Self::Handshakes,
        Self::Watchers,
        Self::Verifications,
    ];

    /// Returns true if the attack is that of a reader with a certificate.
    pub fn needs_certificate(self) -> bool {
        matches!(self, Self::Watchers | Self::Verifications)
    }

    /// The words for a table.
    pub fn words(self) -> &'static str {
        match self {
            Self::Watches => "150,000 health watches on one connection",
            Self::Bodies => "1,000 unfinished Enroll bodies",
            Self::SmallBodies => "2,000 unfinished Enroll bodies within the limit",
            Self::Silent => "512 silent TCP connections",
            Self::Idle => "1,000 idle anonymous connections",
            Self::Handshakes => "2,000 handshakes",
            Self::Watchers => "2,000 watches of grants by one reader",
            Self::Verifications => "40 verifications of the audit log at once by one reader",
        }
    }

    /// The number of units that the attack sends.
    pub fn size(self) -> usize {
        match self {
            Self::Watches => WATCHES as usize,
            Self::Bodies => BODIES,
            Self::SmallBodies => SMALL_BODIES,
            Self::Silent => SILENT,
            Self::Idle => IDLE,
            Self::Handshakes => HANDSHAKES,
            Self::Watchers => WATCHERS,
            Self::Verifications => VERIFICATIONS,
        }
    }

    /// Begins the attack; the connections are shared out among the strangers.
    pub fn start(self, strangers: &[Stranger]) -> Attacking {
        let seen = Arc::new(Seen::default());
        let (shared, strangers) = (Arc::clone(&seen), strangers.to_vec());
        let netns = strangers[0].netns().clone();
        let running = netns.start(async move {
            let mut all = JoinSet::new();
            let connections = match self {
                Self::Watches => 1,
                Self::Bodies => BODY_CONNECTIONS,
                Self::SmallBodies => SMALL_CONNECTIONS,
                Self::Silent => SILENT,
                Self::Idle => IDLE,
                Self::Handshakes => HANDSHAKERS,
                Self::Watchers => WATCHER_CONNECTIONS,
                Self::Verifications => 1,
            };
            for number in 0..connections {
                let (stranger, seen) = (strangers[number % strangers.len()].clone(), Arc::clone(&shared));
                all.spawn(async move {
                    match self {
                        Self::Watches => watches(&stranger, &seen).await,
                        Self::Watchers => watchers(&stranger, &seen).await,
                        Self::Handshakes => handshakes(&stranger, &seen).await,
                        Self::Verifications => verifications(&stranger, &seen).await,
                        Self::Bodies => bodies(&stranger, &seen, BODIES / connections, large).await,
                        Self::SmallBodies => {
                            bodies(&stranger, &seen, SMALL_BODIES / connections, small).await;
                        }
                        Self::Silent => silent(&stranger, &seen).await,
                        Self::Idle => idle(&stranger, &seen).await,
                    }
                });
                if number % 64 == 63 {
                    sleep(Duration::from_millis(1)).await;
                }
            }
            while all.join_next().await.is_some() {}
        });
        Attacking { running: Some(running), seen }
    }
}

impl Attacking {
    /// The number of units of the attack that were sent.
    pub fn sent(&self) -> usize {
        self.seen.sent.load(Ordering::Relaxed)
    }

    /// The number of bytes that were sent, before TLS.
    pub fn bytes(&self) -> u64 {
        self.seen.bytes.load(Ordering::Relaxed)
    }
}

impl Drop for Attacking {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            running.stop();
        }
    }
}

impl Seen {
    fn add(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// The memory that a process has now, in MiB.
///
/// # Panics
/// There is no such process.
pub fn memory_now(broker: &mut Broker) -> u64 {
    of_status(broker, "VmRSS:")
}

/// The most that a process has had in memory, in MiB.
///
/// # Panics
/// There is no such process.
pub fn peak_memory(broker: &mut Broker) -> u64 {
    of_status(broker, "VmHWM:")
}

fn of_status(broker: &mut Broker, what: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", broker.process().pid())).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix(what)).expect("the kernel says it");
    let kibibytes = line.trim().trim_end_matches(" kB").parse::<u64>().expect("it is a number");
    kibibytes / 1024
}

/// Asks for watches until all were asked for, on a new connection wherever the broker ends one.
async fn watches(stranger: &Stranger, seen: &Seen) {
    loop {
        if let Ok(frames) = stranger.http2().await
            && let Ok(()) = watch_on(frames, seen).await
        {
            return;
        }
        sleep(AGAIN).await;
    }
}

async fn watch_on(frames: Frames, seen: &Seen) -> io::Result<()> {
    let (mut read, mut write) = tokio::io::split(frames.into_inner());
    let drain = async {
        let mut sink = vec![0; 64 * 1024];
        while read.read(&mut sink).await? > 0 {}
        Err(io::Error::from(io::ErrorKind::UnexpectedEof))
    };
    let ask = async {
        let mut stream = 1;
        while seen.sent.load(Ordering::Relaxed) < WATCHES as usize {
            let mut batch = Vec::new();
            for _ in 0..500 {
                let block = if stream == 1 { indexing_headers(WATCH) } else { INDEXED.to_vec() };
                batch.extend(frame(kind::HEADERS, END_HEADERS, stream, &block));
                batch.extend(frame(kind::DATA, END_STREAM, stream, &grpc(&[])));
                stream += 2;
            }
            write.write_all(&batch).await?;
            seen.sent.fetch_add(500, Ordering::Relaxed);
            seen.add(batch.len());
        }
        write.flush().await?;
        std::future::pending().await
    };
    tokio::select! {
        ended = drain => ended,
        ended = ask => ended,
    }
}

/// Begins this connection's share of the bodies, on a new connection wherever the broker ends one.
async fn bodies(stranger: &Stranger, seen: &Seen, share: usize, unfinished: fn() -> Request<Unfinished>) {
    let begun = AtomicUsize::new(0);
    loop {
        if let Ok(io) = stranger.tls().await {
            let (mut send, connection) =
                match hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(io)).await {
                    Ok(both) => both,
                    Err(_) => continue,
                };
            let calls = async {
                let mut calls = JoinSet::new();
                for _ in 0..share {
                    if send.ready().await.is_err() {
                        break;
                    }
                    calls.spawn(send.send_request(unfinished()));
                    if begun.fetch_add(1, Ordering::Relaxed) < share {
                        seen.sent.fetch_add(1, Ordering::Relaxed);
                    }
                }
                // An answer is a refusal: the stranger goes on with the connection that it has.
                while calls.join_next().await.is_some() {}
                sleep(AGAIN).await;
            };
            tokio::select! {
                _ = connection => {}
                () = calls => {}
            }
        }
        sleep(AGAIN).await;
    }
}

type Unfinished = StreamBody<std::pin::Pin<Box<dyn tokio_stream::Stream<Item = Chunk> + Send>>>;
type Chunk = Result<Frame<Bytes>, Infallible>;

fn large() -> Request<Unfinished> {
    unfinished(BODY, CHUNK, CHUNKS)
}

fn small() -> Request<Unfinished> {
    unfinished(SMALL_BODY, SMALL_CHUNK, 1)
}

/// A call whose message is all but whole, and never ends.
fn unfinished(length: u32, chunk: &'static [u8], count: usize) -> Request<Unfinished> {
    let head = Bytes::from([&[0][..], &length.to_be_bytes()].concat());
    let chunks = std::iter::once(head).chain(std::iter::repeat_n(Bytes::from_static(chunk), count));
    let chunks = tokio_stream::iter(chunks.map(|chunk| Ok(Frame::data(chunk))));
    let body: Unfinished = StreamBody::new(Box::pin(chunks.chain(tokio_stream::pending())));
    let request = Request::post(format!("https://broker{ENROLL}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    request.body(body).expect("it is a request")
}

/// Asks for this connection's share of the watches of grants, and reads no answer.
async fn watchers(stranger: &Stranger, seen: &Seen) {
    let mut left = WATCHERS / WATCHER_CONNECTIONS;
    loop {
        let Ok(mut frames) = stranger.http2().await else {
            sleep(AGAIN).await;
            continue;
        };
        let mut stream = 1;
        while left > 0 && frames.send(&whole_call(stream, WATCH_GRANTS, &[])).await.is_ok() {
            seen.sent.fetch_add(1, Ordering::Relaxed);
            (left, stream) = (left - 1, stream + 2);
            // The broker ends a connection on which more wait for it than it reads.
            sleep(Duration::from_millis(2)).await;
        }
        if left == 0 {
            std::future::pending::<()>().await;
        }
    }
}

/// Completes one handshake after another, and hangs up each time.
async fn handshakes(stranger: &Stranger, seen: &Seen) {
    loop {
        if stranger.tls().await.is_ok() {
            seen.sent.fetch_add(1, Ordering::Relaxed);
        } else {
            sleep(AGAIN).await;
        }
    }
}

/// Keeps as many verifications as there may be at once on a connection: each answer is followed by another call.
async fn verifications(stranger: &Stranger, seen: &Seen) {
    loop {
        if let Ok(frames) = stranger.http2().await {
            // The broker ended it; the stranger makes another.
            let _ = verify_on(frames, seen).await;
        }
        sleep(AGAIN).await;
    }
}

async fn verify_on(mut frames: Frames, seen: &Seen) -> io::Result<()> {
    /// The type of WINDOW_UPDATE, which lets the broker send as much as it will.
    const WINDOW_UPDATE: u8 = 8;
    frames.send(&frame(WINDOW_UPDATE, 0, 0, &0x3fff_ffff_u32.to_be_bytes())).await?;
    let mut stream = 1;
    for _ in 0..VERIFIERS {
        frames.send(&whole_call(stream, VERIFY, &[])).await?;
        stream += 2;
    }
    loop {
        frames.until(|frame| frame.kind == kind::HEADERS && frame.flags & END_STREAM != 0).await?;
        seen.sent.fetch_add(1, Ordering::Relaxed);
        frames.send(&whole_call(stream, VERIFY, &[])).await?;
        stream += 2;
    }
}

/// Holds a TCP connection without a byte, and another wherever the broker ends it.
async fn silent(stranger: &Stranger, seen: &Seen) {
    let mut first = true;
    loop {
        if let Ok(mut tcp) = stranger.tcp().await {
            if std::mem::take(&mut first) {
                seen.sent.fetch_add(1, Ordering::Relaxed);
            }
            // Nothing comes before a byte was sent: whatever this returns, the connection has ended.
            let _ = tcp.read(&mut [0; 1]).await;
        }
        sleep(AGAIN).await;
    }
}

/// Holds an HTTP/2 connection without a call, and another wherever the broker ends it.
async fn idle(stranger: &Stranger, seen: &Seen) {
    let mut first = true;
    loop {
        if let Ok(mut frames) = stranger.http2().await {
            if std::mem::take(&mut first) {
                seen.sent.fetch_add(1, Ordering::Relaxed);
            }
            frames.until_end().await;
        }
        sleep(AGAIN * 10).await;
    }
}
