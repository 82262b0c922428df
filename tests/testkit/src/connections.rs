//! The loop of a server: each connection in a task of its own.

use std::io;

use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// Serves each connection in a task, until the future is dropped; the connections end with it.
///
/// # Errors
/// Connections cannot be accepted any more.
pub async fn serve_each<F>(
    listener: TcpListener,
    serve: impl Fn(TcpStream) -> F,
) -> io::Result<std::convert::Infallible>
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true).ok();
        connections.spawn(serve(stream));
        while connections.try_join_next().is_some() {}
    }
}
