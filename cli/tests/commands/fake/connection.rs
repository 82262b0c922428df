//! TLS connections that can be cut just before an answer leaves.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::transport::server::Connected;

use super::Script;

/// Yields the connections whose handshake succeeded, one at a time.
pub(super) fn accepted(
    listener: TcpListener,
    tls: TlsAcceptor,
    script: Arc<Mutex<Script>>,
) -> impl Stream<Item = io::Result<Connection>> {
    TcpListenerStream::new(listener)
        .then(move |tcp| {
            let (tls, script) = (tls.clone(), Arc::clone(&script));
            async move { tls.accept(tcp?).await.map(|stream| Connection { stream, script, cut: false }) }
        })
        .filter(Result::is_ok)
}

/// A connection that the script can cut.
pub(super) struct Connection {
    stream: TlsStream<TcpStream>,
    script: Arc<Mutex<Script>>,
    cut: bool,
}

impl Connection {
    fn is_cut(&mut self) -> bool {
        let mut script = self.script.lock().unwrap();
        let cut_now = std::mem::take(&mut script.cut_now);
        drop(script);
        self.cut |= cut_now;
        self.cut
    }
}

impl Connected for Connection {
    type ConnectInfo = ();
    fn connect_info(&self) {}
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.is_cut() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
