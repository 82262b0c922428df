//! A relay: what connects to it is connected on to something else, until a test cuts that line or hangs it. So a
//! scenario takes a store away from one broker, and leaves it to another.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, split};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::net::Host;

/// The largest number of bytes that are carried at once.
const CHUNK: usize = 16 << 10;
/// The time for which the relay waits for the answer to the last bytes of a side that has gone.
const LAST_WORD: Duration = Duration::from_secs(1);

/// The state of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line {
    /// All bytes get through.
    Whole,
    /// Connections are broken, and refused.
    Cut,
    /// Connections stand and are made, and nothing gets through: it does once the line is whole again, late.
    Hung,
}

/// A relay. It ends when it is dropped.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    line: watch::Sender<Line>,
}

impl Relay {
    /// Listens on an address of a host, for connections to a socket.
    ///
    /// # Panics
    /// The address is taken.
    pub fn to_socket(host: &Host, address: SocketAddr, socket: PathBuf) -> Self {
        let (line, seen) = watch::channel(Line::Whole);
        let listener = host.netns().run(TcpListener::bind(address)).expect("the relay's address is free");
        host.netns().start(serve(listener, address, socket, seen));
        Self { address, line }
    }

    /// The address that the relay listens on.
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
    socket: PathBuf,
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
                connections.spawn(carry(stream, socket.clone(), line.clone()));
            }
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}

async fn carry(stream: TcpStream, socket: PathBuf, line: watch::Receiver<Line>) {
    // Without a goal there is no connection: the client sees it end.
    let Ok(goal) = UnixStream::connect(socket).await else { return };
    stream.set_nodelay(true).ok();
    join(stream, goal, line).await;
}

/// Carries bytes between two connections until one of them ends, and then ends the other.
pub(crate) async fn join<A, B>(near: A, far: B, line: watch::Receiver<Line>)
where
    A: AsyncRead + AsyncWrite,
    B: AsyncRead + AsyncWrite,
{
    let ((near_read, near_write), (far_read, far_write)) = (split(near), split(far));
    let there = pump(near_read, far_write, line.clone());
    let back = pump(far_read, near_write, line);
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
    mut line: watch::Receiver<Line>,
) -> io::Result<()> {
    let mut bytes = vec![0; CHUNK];
    loop {
        let length = from.read(&mut bytes).await?;
        until(&mut line, |line| line == Line::Whole).await;
        if length == 0 {
            return to.shutdown().await;
        }
        to.write_all(&bytes[..length]).await?;
    }
}

/// Waits until the line is in a state. Returns false where the relay has ended.
async fn until(line: &mut watch::Receiver<Line>, is_so: impl Fn(Line) -> bool) -> bool {
    line.wait_for(|line| is_so(*line)).await.is_ok()
}
