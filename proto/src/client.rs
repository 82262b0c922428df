//! The connection of agents and commands to a broker: HTTP/2 over the caller's own TLS configuration.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};

/// The longest time to make a connection, TLS included.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The interval of probes on a quiet connection, and the longest wait for the answer to one.
pub const KEEPALIVE: Duration = Duration::from_secs(5);

/// A broker's address that is not `https://host:port`.
#[derive(Debug, thiserror::Error)]
#[error("{address:?} is not a broker's address; write https://host:port")]
pub struct BadAddress {
    /// The given address.
    pub address: String,
}

/// Returns a channel that connects on first use, and again after a failure.
///
/// # Errors
/// The address has another form than `https://host:port`.
pub fn channel(address: &str, tls: Arc<ClientConfig>) -> Result<Channel, BadAddress> {
    channel_over(address, tls, None)
}

/// Returns a channel to one of the socket addresses of a broker's address.
///
/// # Errors
/// As [`channel`].
pub fn channel_to(address: &str, tls: Arc<ClientConfig>, at: SocketAddr) -> Result<Channel, BadAddress> {
    channel_over(address, tls, Some(at))
}

/// Returns the first socket address of each family to which a broker's address resolves; none if it does not resolve.
///
/// # Errors
/// As [`channel`].
pub async fn resolve_families(address: &str) -> Result<Vec<SocketAddr>, BadAddress> {
    let (host, port) = host_and_port(address)?;
    let resolved: Vec<SocketAddr> =
        tokio::net::lookup_host((host, port)).await.map(Iterator::collect).unwrap_or_default();
    let first = |is_ipv4: bool| resolved.iter().find(|at| at.is_ipv4() == is_ipv4).copied();
    Ok([first(true), first(false)].into_iter().flatten().collect())
}

fn host_and_port(address: &str) -> Result<(String, u16), BadAddress> {
    let bad = || BadAddress { address: address.to_owned() };
    let uri: Uri = address.parse().map_err(|_| bad())?;
    let host = uri.host().ok_or_else(bad)?.trim_start_matches('[').trim_end_matches(']').to_owned();
    let port = uri.port_u16().ok_or_else(bad)?;
    if uri.scheme_str() != Some("https") || uri.path() != "/" {
        return Err(bad());
    }
    Ok((host, port))
}

fn channel_over(
    address: &str,
    tls: Arc<ClientConfig>,
    at: Option<SocketAddr>,
) -> Result<Channel, BadAddress> {
    let bad = || BadAddress { address: address.to_owned() };
    let (host, port) = host_and_port(address)?;
    let name = ServerName::try_from(host.clone()).map_err(|_| bad())?;
    let connector = TlsConnector::from(tls);
    let connect = tower::service_fn(move |_: Uri| {
        let (host, name, connector) = (host.clone(), name.clone(), connector.clone());
        async move {
            let tcp = match at {
                Some(at) => TcpStream::connect(at).await?,
                None => TcpStream::connect((host.as_str(), port)).await?,
            };
            tcp.set_nodelay(true)?;
            connector.connect(name, tcp).await.map(TokioIo::new)
        }
    });
    // The connector does TLS itself, so the endpoint gets a plain address: tonic sees HTTP/2 over the connector's stream.
    let plain = Endpoint::from_shared(address.replacen("https", "http", 1)).map_err(|_| bad())?;
    Ok(plain
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .keep_alive_while_idle(true)
        .connect_with_connector_lazy(connect))
}
