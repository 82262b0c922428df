//! A load balancer as simple as they come: TCP, round robin over the backends that accept. It looks at no health: a
//! backend that hangs gets its share.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::net::Host;
use crate::relay::{Line, join};

/// How long a backend may take to accept.
const PATIENCE: Duration = Duration::from_millis(500);

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
    taken: AtomicUsize,
}

impl Balancer {
    /// Listens on a port of a host for connections to the backends.
    ///
    /// # Panics
    /// The port is taken.
    pub fn start(host: &Host, port: u16, backends: impl IntoIterator<Item = SocketAddr>) -> Self {
        let backend = |address| Backend { address, taken: AtomicUsize::new(0) };
        let backends: Arc<Vec<_>> = Arc::new(backends.into_iter().map(backend).collect());
        let listener = host.room().run(TcpListener::bind((host.v4(), port)));
        let (line, seen) = watch::channel(Line::Whole);
        let listener = listener.expect("the balancer's address is free");
        host.room().start(serve(listener, Arc::clone(&backends), seen));
        Self { url: format!("https://{}:{port}", host.v4()), backends, line }
    }

    /// Where it is reached.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// How many connections each backend has been given.
    pub fn taken(&self) -> Vec<usize> {
        self.backends.iter().map(|backend| backend.taken.load(Ordering::Relaxed)).collect()
    }
}

async fn serve(listener: TcpListener, backends: Arc<Vec<Backend>>, mut line: watch::Receiver<Line>) {
    let mut connections = JoinSet::new();
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

async fn carry(stream: TcpStream, backends: Arc<Vec<Backend>>, turn: usize, line: watch::Receiver<Line>) {
    for number in 0..backends.len() {
        let backend = &backends[(turn + number) % backends.len()];
        if let Ok(Ok(goal)) = timeout(PATIENCE, TcpStream::connect(backend.address)).await {
            backend.taken.fetch_add(1, Ordering::Relaxed);
            stream.set_nodelay(true).ok();
            goal.set_nodelay(true).ok();
            return join(stream, goal, line).await;
        }
    }
    // Nobody accepts: the connection ends.
}
