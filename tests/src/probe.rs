//! Probes: what a client on one host sees of a port on another.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::net::{Endpoint, Host};
use crate::netns::Netns;

/// The time for which a probe waits for an answer: well under the second after which TCP sends its SYN again, so that a
/// probe's result is about the moment it was sent, and well over the time that a busy machine takes to answer.
pub(crate) const PROBE_TIMEOUT: Duration = Duration::from_millis(400);

/// The outcome of a new connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// The host accepted the connection (TCP), or answered (UDP).
    Open,
    /// Nothing came back: the packet was dropped.
    Filtered,
    /// The packet got through, and there is no listener.
    Refused,
}

/// An established TCP connection to an echoing listener.
#[derive(Debug)]
pub struct Connection {
    netns: Netns,
    stream: Arc<Mutex<TcpStream>>,
}

impl Host {
    /// Tries a new connection.
    pub fn reach(&self, to: Endpoint) -> Reach {
        self.netns().run(reach(None, to))
    }

    /// Tries a new connection from one of this host's further addresses.
    pub fn reach_from(&self, from: impl Into<IpAddr>, to: Endpoint) -> Reach {
        self.netns().run(reach(Some(from.into()), to))
    }

    /// Tries a new connection from each of these addresses, all at once.
    pub fn reach_from_each(&self, from: &[IpAddr], to: Endpoint) -> Vec<Reach> {
        let probes: Vec<_> = from.iter().map(|from| self.netns().start(reach(Some(*from), to))).collect();
        probes.into_iter().map(|probe| probe.join()).collect()
    }

    /// Opens a connection and keeps it.
    ///
    /// # Panics
    /// The port is not open.
    pub fn connect(&self, to: Endpoint) -> Connection {
        self.connect_from(None, to)
    }

    /// Opens a connection from one of this host's further addresses and keeps it.
    ///
    /// # Panics
    /// The port is not open.
    pub fn connect_from(&self, from: Option<IpAddr>, to: Endpoint) -> Connection {
        let stream =
            self.netns().run(async move { timeout(5 * PROBE_TIMEOUT, tcp(from, to.address())).await });
        let stream = stream.unwrap_or_else(|_| panic!("{} cannot connect to {to:?}: no answer", self.name()));
        let stream =
            stream.unwrap_or_else(|error| panic!("{} cannot connect to {to:?}: {error}", self.name()));
        Connection { netns: self.netns().clone(), stream: Arc::new(Mutex::new(stream)) }
    }
}

impl Connection {
    /// Reports whether a line still goes to the listener and comes back.
    pub fn echoes(&self) -> bool {
        let stream = Arc::clone(&self.stream);
        self.netns.run(async move {
            let mut stream = stream.lock().await;
            timeout(5 * PROBE_TIMEOUT, echo(&mut stream)).await.is_ok_and(|echoed| echoed.is_ok())
        })
    }
}

async fn echo(stream: &mut TcpStream) -> std::io::Result<()> {
    let mut answer = [0; 6];
    stream.write_all(b"still\n").await?;
    stream.read_exact(&mut answer).await.map(|_| ())
}

pub(crate) async fn reach(from: Option<IpAddr>, to: Endpoint) -> Reach {
    let answer = match to {
        Endpoint::Tcp(address) => {
            timeout(PROBE_TIMEOUT, async { tcp(from, address).await.map(|_| ()) }).await
        }
        Endpoint::Udp(address) => timeout(PROBE_TIMEOUT, udp(from, address)).await,
    };
    match answer {
        Ok(Ok(())) => Reach::Open,
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused => Reach::Refused,
        Ok(Err(error)) => panic!("a probe of {to:?} could not be sent: {error}"),
        Err(_) => Reach::Filtered,
    }
}

async fn tcp(from: Option<IpAddr>, to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if let Some(from) = from {
        socket.bind((from, 0).into())?;
    }
    socket.connect(to).await
}

/// A new socket each time: for the VM's connection tracking that is a new connection.
async fn udp(from: Option<IpAddr>, to: SocketAddr) -> std::io::Result<()> {
    let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    let socket = UdpSocket::bind((from.unwrap_or(any), 0)).await?;
    socket.connect(to).await?;
    socket.send(b"anyone?").await?;
    socket.recv(&mut [0; 16]).await.map(|_| ())
}
