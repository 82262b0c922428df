//! The listener: accepts TCP, shakes hands, and learns who the peer is, once per connection.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::Context as _;
use jiff::Timestamp;
use postern_pki::identity::{Identity, TrustDomain};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

/// How long a handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How many handshakes may run at once; more wait in the kernel's backlog.
const HANDSHAKES: usize = 512;

/// Who is at the other end of a connection.
#[derive(Debug, Clone)]
pub struct Peer {
    /// From where the broker sees it.
    pub address: SocketAddr,
    /// Its certificate, if it showed one. The handshake has verified it.
    pub certificate: Option<Arc<PeerCertificate>>,
}

/// What a verified certificate says.
#[derive(Debug)]
pub struct PeerCertificate {
    /// Who.
    pub identity: Identity,
    /// Until when.
    pub not_after: Timestamp,
}

/// Accepts connections.
pub struct Listener {
    tcp: TcpListener,
    tls: TlsAcceptor,
    trust_domain: TrustDomain,
}

impl Listener {
    /// Binds the address.
    ///
    /// # Errors
    /// The address cannot be bound.
    pub async fn bind(
        address: SocketAddr,
        tls: Arc<rustls::ServerConfig>,
        trust_domain: TrustDomain,
    ) -> anyhow::Result<Self> {
        let tcp = TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
        Ok(Self { tcp, tls: TlsAcceptor::from(tls), trust_domain })
    }

    /// The address that is bound.
    ///
    /// # Errors
    /// The system does not say.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.tcp.local_addr()
    }

    /// Connections whose handshake is done. A failed handshake is the peer's trouble, not ours.
    pub(super) fn connections(self) -> impl futures_util::Stream<Item = std::io::Result<Connection>> {
        let handshakes: JoinSet<Option<Connection>> = JoinSet::new();
        futures_util::stream::unfold((self, handshakes), |(listener, mut handshakes)| async move {
            loop {
                tokio::select! {
                    accepted = listener.tcp.accept(), if handshakes.len() < HANDSHAKES => match accepted {
                        Ok((tcp, address)) => {
                            let (tls, trust_domain) = (listener.tls.clone(), listener.trust_domain.clone());
                            handshakes.spawn(handshake(tls, tcp, address, trust_domain));
                        }
                        Err(error) => {
                            // Out of file descriptors, most likely: give some time for others to close.
                            tracing::error!(%error, "cannot accept");
                            tokio::time::sleep(Duration::from_millis(100)).await;
                        }
                    },
                    Some(done) = handshakes.join_next() => {
                        if let Ok(Some(connection)) = done {
                            return Some((Ok(connection), (listener, handshakes)));
                        }
                    }
                }
            }
        })
    }
}

async fn handshake(
    tls: TlsAcceptor,
    tcp: TcpStream,
    address: SocketAddr,
    domain: TrustDomain,
) -> Option<Connection> {
    let refused = |error: &dyn std::fmt::Display| tracing::info!(%address, %error, "handshake failed");
    tcp.set_nodelay(true).inspect_err(|error| refused(error)).ok()?;
    let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.accept(tcp)).await;
    let stream = stream.inspect_err(|error| refused(error)).ok()?.inspect_err(|error| refused(error)).ok()?;
    let certificate = match stream.get_ref().1.peer_certificates().and_then(<[_]>::first) {
        Some(leaf) => Some(Arc::new(read(leaf, &domain).inspect_err(|error| refused(error)).ok()?)),
        None => None,
    };
    Some(Connection { stream, peer: Peer { address, certificate } })
}

fn read(leaf: &[u8], domain: &TrustDomain) -> anyhow::Result<PeerCertificate> {
    let identity = Identity::of_certificate(leaf, domain)?;
    Ok(PeerCertificate { identity, not_after: postern_pki::identity::not_after(leaf)? })
}

/// One connection, with who is at its other end.
pub(super) struct Connection {
    stream: TlsStream<TcpStream>,
    peer: Peer,
}

impl Connected for Connection {
    type ConnectInfo = Peer;
    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
