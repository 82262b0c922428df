//! A relay: a TCP line between a client and a service, until a test cuts it, hangs it, or lets one direction alone through. So a scenario
//! takes a store away from one broker, and leaves it to another.

#[cfg(test)]
mod tests;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, split};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// The largest number of bytes that are carried at once.
const CHUNK: usize = 16 << 10;
/// The time for which the relay waits for the answer to the last bytes of a side that has gone.
const LAST_WORD: Duration = Duration::from_secs(1);
/// The bytes of the record that a TLS client sends in the middle of the service's part of the handshake (RFC 8446, D.4). It asks
/// for nothing.
const CHANGE_CIPHER_SPEC: usize = 6;

/// The state of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line {
    /// All bytes get through.
    Whole,
    /// Connections are broken, and refused.
    Cut,
    /// Connections stand and are made, and nothing gets through: it does once the line is whole again, late.
    Hung,
    /// All bytes get through, each part of them late.
    Slow(Duration),
    /// The client's bytes get through, and the service's wait as on a line that hangs.
    OnlyThere,
    /// The service's bytes get through, and the client's wait as on a line that hangs.
    OnlyBack,
    /// On each connection the client gets one answer, such as the service's part of a TLS handshake. What the client sends after it
    /// gets through, and what the service answers to that waits as on a line that hangs.
    OneAnswer,
}

/// The service behind a relay.
#[derive(Debug, Clone)]
pub enum RelayTarget {
    /// A Unix socket.
    Socket(PathBuf),
    /// A TCP address.
    Address(SocketAddr),
}

/// A relay. It ends when it is dropped.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    line: watch::Sender<Line>,
    #[allow(dead_code, reason = "the relay ends when this is dropped")]
    serving: JoinSet<()>,
}

#[derive(Debug, Clone, Copy)]
enum Direction {
    There,
    Back,
}

/// The turns of one connection.
#[derive(Debug, Default)]
struct Turns {
    answered: AtomicBool,
    asked_again: AtomicBool,
}

impl Turns {
    /// Notes that the client has sent so many bytes.
    fn asked(&self, bytes: usize) {
        if bytes > CHANGE_CIPHER_SPEC && self.answered.load(Ordering::Relaxed) {
            self.asked_again.store(true, Ordering::Relaxed);
        }
    }

    /// Notes that the client is about to get bytes of the service.
    fn answered(&self) {
        self.answered.store(true, Ordering::Relaxed);
    }
}

impl Line {
    fn carries(self, direction: Direction, turns: &Turns) -> bool {
        match self {
            Self::Whole | Self::Slow(_) => true,
            Self::OneAnswer => {
                matches!(direction, Direction::There) || !turns.asked_again.load(Ordering::Relaxed)
            }
            Self::Cut | Self::Hung => false,
            Self::OnlyThere => matches!(direction, Direction::There),
            Self::OnlyBack => matches!(direction, Direction::Back),
        }
    }
}

impl Relay {
    /// Listens on an address, for connections to a service.
    ///
    /// # Panics
    /// The address is taken.
    pub async fn start(address: SocketAddr, target: RelayTarget) -> Self {
        let listener = TcpListener::bind(address).await.expect("the relay's address is free");
        let address = listener.local_addr().expect("a listener has an address");
        let (line, seen) = watch::channel(Line::Whole);
        let mut serving = JoinSet::new();
        serving.spawn(serve(listener, address, target, seen));
        Self { address, line, serving }
    }

    /// Returns the address that the relay listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sets the state of the line.
    pub fn set(&self, line: Line) {
        self.line.send_replace(line);
    }
}

async fn serve(
    mut listener: TcpListener,
    address: SocketAddr,
    target: RelayTarget,
    mut line: watch::Receiver<Line>,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            is_there = until(&mut line, |line| line == Line::Cut) => {
                drop(listener);
                connections.shutdown().await;
                if !is_there || !until(&mut line, |line| line != Line::Cut).await {
                    return;
                }
                listener = TcpListener::bind(address).await.expect("the relay's address is its own");
            }
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                connections.spawn(carry(stream, target.clone(), line.clone()));
            }
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}

async fn carry(stream: TcpStream, target: RelayTarget, line: watch::Receiver<Line>) {
    stream.set_nodelay(true).ok();
    // Without a service there is no connection: the client sees it end.
    match target {
        RelayTarget::Socket(path) => {
            let Ok(service) = UnixStream::connect(path).await else { return };
            join(stream, service, line).await;
        }
        RelayTarget::Address(address) => {
            let Ok(service) = TcpStream::connect(address).await else { return };
            service.set_nodelay(true).ok();
            join(stream, service, line).await;
        }
    }
}

/// Carries bytes between a client and a service until one of them ends, and then ends the other.
pub async fn join<A, B>(client: A, service: B, line: watch::Receiver<Line>)
where
    A: AsyncRead + AsyncWrite,
    B: AsyncRead + AsyncWrite,
{
    let ((client_read, client_write), (service_read, service_write)) = (split(client), split(service));
    let turns = Turns::default();
    let there = pump(client_read, service_write, Direction::There, line.clone(), &turns);
    let back = pump(service_read, client_write, Direction::Back, line, &turns);
    tokio::pin!(there, back);
    // The reason does not matter: both ends see an end.
    tokio::select! {
        _ = &mut there => drop(timeout(LAST_WORD, back).await),
        _ = &mut back => {}
    }
}

/// Carries bytes one way. Bytes that were read before the line hung, or while it hung, get through later, also where their
/// sender has gone by then.
async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    direction: Direction,
    mut line: watch::Receiver<Line>,
    turns: &Turns,
) -> io::Result<()> {
    let mut bytes = vec![0; CHUNK];
    loop {
        let length = from.read(&mut bytes).await?;
        if let Direction::There = direction {
            turns.asked(length);
        }
        until(&mut line, |line| line.carries(direction, turns)).await;
        let slow = match *line.borrow() {
            Line::Slow(span) => Some(span),
            Line::Whole | Line::Cut | Line::Hung | Line::OnlyThere | Line::OnlyBack | Line::OneAnswer => None,
        };
        if let Some(span) = slow {
            sleep(span).await;
        }
        if length == 0 {
            return to.shutdown().await;
        }
        if let Direction::Back = direction {
            turns.answered();
        }
        to.write_all(&bytes[..length]).await?;
    }
}

/// Waits until the line is in a state. Returns false where the relay has ended.
async fn until(line: &mut watch::Receiver<Line>, is_so: impl Fn(Line) -> bool) -> bool {
    line.wait_for(|line| is_so(*line)).await.is_ok()
}
