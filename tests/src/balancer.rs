//! A load balancer as simple as they come: TCP, round robin over the backends that accept. Unless it has an address to ask, it
//! looks at no health: a backend that hangs gets its share.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use postern_testkit::{Line, join};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::net::Host;

/// The time within which a backend must accept a connection.
const ACCEPT_TIMEOUT: Duration = Duration::from_millis(500);
/// The interval at which the balancer asks a backend whether it is ready.
const HEALTH_INTERVAL: Duration = Duration::from_millis(500);
/// The time within which a backend must answer that it is ready, on a machine that is busy.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(2);

/// A load balancer. It ends when it is dropped.
#[derive(Debug)]
pub struct Balancer {
    url: String,
    backends: Arc<Vec<Backend>>,
    #[allow(dead_code, reason = "the balancer ends when this is dropped")]
    line: watch::Sender<Line>,
}

#[derive(Debug)]
struct Backend {
    address: SocketAddr,
    /// The address of `/readyz`, if the balancer asks the backend for that.
    health: Option<SocketAddr>,
    is_ready: AtomicBool,
    taken: AtomicUsize,
}

impl Balancer {
    /// Listens on a port of a host for connections to the backends.
    ///
    /// # Panics
    /// The port is taken.
    pub fn start(host: &Host, port: u16, backends: impl IntoIterator<Item = SocketAddr>) -> Self {
        Self::over(host, port, backends.into_iter().map(|address| (address, None)))
    }

    /// Listens likewise, with the address of each backend's `/readyz`: one that does not say that it is ready is given no
    /// new connection, as long as another one does. Those that it has stay.
    ///
    /// # Panics
    /// The port is taken.
    pub fn checking(
        host: &Host,
        port: u16,
        backends: impl IntoIterator<Item = (SocketAddr, SocketAddr)>,
    ) -> Self {
        Self::over(host, port, backends.into_iter().map(|(address, health)| (address, Some(health))))
    }

    fn over(
        host: &Host,
        port: u16,
        backends: impl Iterator<Item = (SocketAddr, Option<SocketAddr>)>,
    ) -> Self {
        let backend = |(address, health)| Backend {
            address,
            health,
            is_ready: AtomicBool::new(true),
            taken: AtomicUsize::new(0),
        };
        let backends: Arc<Vec<_>> = Arc::new(backends.map(backend).collect());
        let listener = host.netns().run(TcpListener::bind((host.v4(), port)));
        let (line, seen) = watch::channel(Line::Whole);
        let listener = listener.expect("the balancer's address is free");
        host.netns().start(serve(listener, Arc::clone(&backends), seen));
        Self { url: format!("https://{}:{port}", host.v4()), backends, line }
    }

    /// The URL of the balancer.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Returns the number of connections that each backend was given.
    pub fn taken(&self) -> Vec<usize> {
        self.backends.iter().map(|backend| backend.taken.load(Ordering::Relaxed)).collect()
    }
}

/// Gets the answer of a server of metrics and health, if there is one.
pub(crate) async fn get(address: SocketAddr, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    Some(answer)
}

async fn serve(listener: TcpListener, backends: Arc<Vec<Backend>>, mut line: watch::Receiver<Line>) {
    let mut connections = JoinSet::new();
    for number in 0..backends.len() {
        connections.spawn(keep_asking(Arc::clone(&backends), number));
    }
    let mut turn = 0_usize;
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                turn += 1;
                connections.spawn(carry(stream, Arc::clone(&backends), turn, line.clone()));
            }
            Err(_) = line.changed() => return,
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}

/// Asks a backend for its health until the balancer ends; returns at once where the balancer does not ask it.
async fn keep_asking(backends: Arc<Vec<Backend>>, number: usize) {
    let Backend { health: Some(health), is_ready, .. } = &backends[number] else { return };
    loop {
        let answer = timeout(HEALTH_TIMEOUT, get(*health, "/readyz")).await.ok().flatten();
        is_ready.store(answer.is_some_and(|answer| answer.starts_with("HTTP/1.1 200")), Ordering::Relaxed);
        tokio::time::sleep(HEALTH_INTERVAL).await;
    }
}

async fn carry(stream: TcpStream, backends: Arc<Vec<Backend>>, turn: usize, line: watch::Receiver<Line>) {
    let in_turn = (0..backends.len()).map(|number| &backends[(turn + number) % backends.len()]);
    let (ready, others): (Vec<_>, Vec<_>) =
        in_turn.partition(|backend| backend.is_ready.load(Ordering::Relaxed));
    for backend in ready.into_iter().chain(others) {
        if let Ok(Ok(goal)) = timeout(ACCEPT_TIMEOUT, TcpStream::connect(backend.address)).await {
            backend.taken.fetch_add(1, Ordering::Relaxed);
            stream.set_nodelay(true).ok();
            goal.set_nodelay(true).ok();
            return join(stream, goal, line).await;
        }
    }
    // No backend accepts: the connection ends.
}
