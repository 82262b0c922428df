//! The listener: accepts TCP connections, does the TLS handshake, reads the peer's certificate once for the connection, and
//! takes a seat for it. Every limit on connections ([`crate::limits`]) is applied here.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use http::{Request, Response};
use postern_pki::identity::TrustDomain;
use rustix::net::RecvFlags;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tower::Service;

use super::authentication::ClientCertificate;
use super::connection::{self, Connection, PeerStream};
use super::peer::Peer;
use crate::clock::boottime;
use crate::limits::{Admission, HandshakePermit, Limit, Limits, NotAdmitted, log_due};

/// The pause before the listener tries again, when file descriptors or places for handshakes are used up.
const ACCEPT_RETRY: Duration = Duration::from_millis(20);

/// The protocol that every client of the broker speaks.
const ALPN: &[u8] = b"h2";
/// The TLS record of the fatal alert `no_application_protocol` (RFC 8446, sections 5.1 and 6; RFC 7301, section 3.2). No key
/// protects it, because it answers a ClientHello.
const NO_APPLICATION_PROTOCOL: [u8; 7] = [21, 3, 3, 0, 2, 2, 120];

/// Accepts connections.
pub struct Listener {
    tcp: TcpListener,
    shared: Arc<Shared>,
}

/// The parts that the connections of a listener share.
struct Shared {
    tls: Arc<rustls::ServerConfig>,
    trust_domain: TrustDomain,
    admission: Arc<Admission>,
}

impl Listener {
    /// Binds the address.
    ///
    /// # Errors
    /// The address cannot be bound.
    pub fn bind(
        address: SocketAddr,
        tls: Arc<rustls::ServerConfig>,
        trust_domain: TrustDomain,
        limits: Limits,
    ) -> anyhow::Result<Self> {
        let tcp = bound(address, limits.backlog).with_context(|| format!("cannot listen on {address}"))?;
        let shared = Shared { tls, trust_domain, admission: Admission::new(limits) };
        Ok(Self { tcp, shared: Arc::new(shared) })
    }

    /// Returns the address that is bound.
    ///
    /// # Errors
    /// The system does not report it.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.tcp.local_addr()
    }

    /// Returns the admission of connections.
    pub(super) fn admission(&self) -> &Arc<Admission> {
        &self.shared.admission
    }

    /// Serves each connection until `shutdown` is done and the last call of every connection is answered.
    #[expect(
        clippy::disallowed_methods,
        reason = "the set owns the connections, and the server waits for their end"
    )]
    pub(super) async fn serve<S>(self, service: S, shutdown: impl Future<Output = ()>)
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
        S::Future: Send + 'static,
    {
        let Self { tcp, shared } = self;
        let (mut connections, ending) = (JoinSet::new(), CancellationToken::new());
        let mut shutdown = pin!(shutdown);
        // An accepted connection that has no place for its handshake yet.
        let mut held: Option<(TcpStream, SocketAddr)> = None;
        loop {
            tokio::select! {
                () = &mut shutdown => break,
                accepted = tcp.accept(), if held.is_none() => match accepted {
                    Ok(accepted) => held = Some(accepted),
                    Err(error) => {
                        accept_failed(&shared.admission, &error);
                        tokio::time::sleep(ACCEPT_RETRY).await;
                    }
                },
                () = tokio::time::sleep(ACCEPT_RETRY), if held.is_some() => {}
                Some(done) = connections.join_next(), if !connections.is_empty() => ended(done),
            }
            if let Some((tcp, address)) = held.take() {
                match shared.admission.admit_handshake(address, is_silent(&tcp)) {
                    Ok(place) => {
                        let (shared, service) = (Arc::clone(&shared), service.clone());
                        connections.spawn(connection(shared, tcp, address, place, service, ending.clone()));
                    }
                    Err(NotAdmitted::Busy) => held = Some((tcp, address)),
                    Err(NotAdmitted::Refused) => drop(tcp),
                }
            }
        }
        drop((tcp, held));
        ending.cancel();
        while let Some(done) = connections.join_next().await {
            ended(done);
        }
    }
}

/// Binds an address as tokio does, with a backlog of its own.
fn bound(address: SocketAddr, backlog: u32) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(backlog)
}

/// Counts and logs that a connection cannot be accepted: most likely because the process is out of file descriptors, which
/// last until other connections close.
fn accept_failed(admission: &Admission, error: &std::io::Error) {
    use rustix::io::Errno;
    let is_out_of_descriptors =
        Errno::from_io_error(error).is_some_and(|errno| [Errno::MFILE, Errno::NFILE].contains(&errno));
    if is_out_of_descriptors {
        admission.report.hit(Limit::Descriptors, error);
    } else if let Some(omitted) = log_due("accept") {
        tracing::error!(%error, omitted, "cannot accept a connection");
    }
}

/// Logs a panic in a connection. It ends that connection alone.
fn ended(done: Result<(), tokio::task::JoinError>) {
    if let Err(error) = done {
        tracing::error!(error = &error as &dyn std::error::Error, "a connection ended in a panic");
    }
}

/// Reports whether the peer has sent nothing yet.
fn is_silent(tcp: &TcpStream) -> bool {
    rustix::net::recv(tcp, &mut [0; 1][..], RecvFlags::PEEK | RecvFlags::DONTWAIT).is_err()
}

/// Serves one connection from its handshake to its end.
async fn connection<S>(
    shared: Arc<Shared>,
    tcp: TcpStream,
    address: SocketAddr,
    place: HandshakePermit,
    service: S,
    ending: CancellationToken,
) where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    // Both are on the heap, so that a session of days does not keep the memory of its handshake.
    let mut handshake = Box::pin(handshake(&shared, tcp, address, &place));
    let connected = tokio::select! {
        connected = &mut handshake => connected,
        () = place.waiting.evicted() => None,
        () = ending.cancelled() => None,
    };
    drop(handshake);
    drop(place);
    let Some(connected) = connected else { return };
    let proven = connected.peer.certificate.as_ref().map(|certificate| &certificate.caller().kind);
    let Ok(seat) = shared.admission.seat(address, proven) else { return };
    drop(shared);
    Box::pin(connection::serve(connected, seat, service, ending)).await;
}

async fn handshake(
    shared: &Shared,
    tcp: TcpStream,
    address: SocketAddr,
    place: &HandshakePermit,
) -> Option<Connection> {
    let (limits, report) = (&shared.admission.limits, &shared.admission.report);
    let refused = |error: &dyn std::fmt::Display| report.handshake_failed(&address, error);
    tcp.set_nodelay(true).inspect_err(|error| refused(error)).ok()?;
    match timeout(limits.first_byte, tcp.peek(&mut [0; 1])).await {
        Ok(Ok(1..)) => place.waiting.no_more(boottime()),
        // Closed without a byte: a load balancer checks that the port is open.
        Ok(Ok(0) | Err(_)) => return None,
        Err(_) => {
            report.hit(Limit::FirstByte, &address);
            return None;
        }
    }
    let stream = PeerStream::new(tcp, Arc::clone(&place.waiting));
    let Ok(stream) = timeout(limits.handshake, tls(&shared.tls, stream)).await else {
        report.hit(Limit::Handshake, &address);
        return None;
    };
    let mut stream = stream.inspect_err(|error| refused(error)).ok()?;
    stream.get_mut().0.waiting = None;
    let certificate = match stream.get_ref().1.peer_certificates().and_then(<[_]>::split_first) {
        Some((leaf, others)) => {
            let read = ClientCertificate::read(leaf, others, &shared.trust_domain)
                .inspect_err(|error| refused(error));
            Some(Arc::new(read.ok()?))
        }
        None => None,
    };
    Some(Connection { stream: Box::new(stream), peer: Peer { address, certificate } })
}

/// Does the TLS handshake with a client that speaks HTTP/2.
///
/// # Errors
/// The handshake fails, or the client offers no protocol (ALPN) or none that the broker speaks.
async fn tls(
    config: &Arc<rustls::ServerConfig>,
    stream: PeerStream,
) -> std::io::Result<TlsStream<PeerStream>> {
    let mut hello = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), stream).await?;
    // rustls itself refuses a client whose protocols are others, and takes one that names none.
    if hello.accepted.client_hello().alpn().is_none_or(|mut protocols| !protocols.any(|known| known == ALPN))
    {
        hello.io.write_all(&NO_APPLICATION_PROTOCOL).await?;
        hello.io.shutdown().await?;
        return Err(std::io::Error::other("the client does not offer HTTP/2 (ALPN h2)"));
    }
    hello.into_stream(Arc::clone(config)).await
}

#[cfg(test)]
mod tests;
