//! The connection of agents and commands to a broker: HTTP/2 over the caller's own TLS configuration.

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
    let bad = || BadAddress { address: address.to_owned() };
    let uri: Uri = address.parse().map_err(|_| bad())?;
    let host = uri.host().ok_or_else(bad)?.trim_start_matches('[').trim_end_matches(']').to_owned();
    let port = uri.port_u16().ok_or_else(bad)?;
    if uri.scheme_str() != Some("https") || uri.path() != "/" {
        return Err(bad());
    }
    let name = ServerName::try_from(host.clone()).map_err(|_| bad())?;
    let connector = TlsConnector::from(tls);
    let connect = tower::service_fn(move |_: Uri| {
        let (host, name, connector) = (host.clone(), name.clone(), connector.clone());
        async move {
            let tcp = TcpStream::connect((host.as_str(), port)).await?;
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
