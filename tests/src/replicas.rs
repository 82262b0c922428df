//! Replicas: several brokers on one host, under one authority, on one store: a Redis, each over a line of its own that a
//! test can cut or hang, or a group behind sentinels.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use postern_core::Role;
use postern_testkit::{Line, Relay, RelayTarget};
use rustix::process::Signal;

use crate::balancer::{Balancer, get};
use crate::broker::{Broker, PORT};
use crate::client::Client;
use crate::net::Host;
use crate::netns::Netns;
use crate::redis::{Group, Redis};

/// The ports of the first replica; those of the others follow.
const BROKERS: u16 = 7451;
const STORES: u16 = 6401;
const METRICS: u16 = 9464;

/// The options of a test's replicas.
#[derive(Debug, Clone, Copy)]
pub struct ReplicaOptions<'a> {
    /// The number of replicas.
    pub count: u16,
    /// True if each replica is given its name in the configuration.
    pub named: bool,
    /// True if the load balancer sends no connection to a replica that is not ready.
    pub checked: bool,
    /// The further sections of every replica's configuration.
    pub sections: &'a str,
}

/// Several brokers, and the load balancer in front of them.
#[derive(Debug)]
pub struct Replicas {
    balancer: Balancer,
    all: Vec<Replica>,
}

/// A broker among several.
#[derive(Debug)]
pub struct Replica {
    broker: Mutex<Broker>,
    url: String,
    line: Option<Relay>,
    metrics: SocketAddr,
    netns: Netns,
    /// True if the replica should run: a broker that ends by itself is started again.
    wanted: AtomicBool,
}

impl Replicas {
    /// Initialises them on a Redis; none runs yet.
    ///
    /// # Panics
    /// `init` fails.
    pub fn init(host: &Host, dir: &Path, redis: &Redis, options: ReplicaOptions<'_>) -> Self {
        Self::init_each(host, dir, options, |number| {
            let target = RelayTarget::Socket(redis.socket());
            let line = host.netns().run(Relay::start(local(STORES + number), target));
            let store = format!("[store]\nurl = \"redis://{}\"\n", line.address());
            (Some(line), store)
        })
    }

    /// Initialises them on a group, each answer of which waits for so many of its replicas; none runs yet.
    ///
    /// # Panics
    /// `init` fails.
    pub fn init_on_group(
        host: &Host,
        dir: &Path,
        (group, confirmed): (&Group, usize),
        options: ReplicaOptions<'_>,
    ) -> Self {
        Self::init_each(host, dir, options, |_| (None, group.configuration(confirmed)))
    }

    fn init_each(
        host: &Host,
        dir: &Path,
        options: ReplicaOptions<'_>,
        store: impl Fn(u16) -> (Option<Relay>, String),
    ) -> Self {
        let mut all: Vec<Replica> = Vec::new();
        for number in 0..options.count {
            let (line, store) = store(number);
            let metrics = local(METRICS + number);
            let name = format!("broker-{}", number + 1);
            let more = configuration(&store, metrics, &name, options);
            let dir = dir.join(&name);
            let broker = match all.first() {
                None => Broker::init_on(host, &dir, BROKERS + number, &more),
                Some(first) => Broker::beside(&first.broker(), host, &dir, BROKERS + number, &more),
            };
            let (netns, url) = (host.netns().clone(), broker.url().to_owned());
            let (broker, wanted) = (Mutex::new(broker), AtomicBool::new(false));
            all.push(Replica { broker, url, line, metrics, netns, wanted });
        }
        let backends = (0..options.count).map(|number| SocketAddr::new(host.v4(), BROKERS + number));
        let balancer = if options.checked {
            let health = all.iter().map(|replica| replica.metrics);
            Balancer::checking(host, PORT, backends.zip(health))
        } else {
            Balancer::start(host, PORT, backends)
        };
        Self { balancer, all }
    }

    /// Starts all of them, and waits until they listen.
    pub fn serve(&self) {
        self.all.iter().for_each(Replica::serve);
    }

    /// The load balancer.
    pub fn balancer(&self) -> &Balancer {
        &self.balancer
    }

    /// Returns a replica, counted from 0.
    pub fn replica(&self, number: usize) -> &Replica {
        &self.all[number]
    }

    /// Returns all replicas.
    pub fn all(&self) -> &[Replica] {
        &self.all
    }

    /// A client through the load balancer, as the administrator that `init` made.
    pub fn admin(&self, host: &Host) -> Client {
        self.admin_at(host, self.balancer.url())
    }

    /// Makes the same client, at another address.
    pub fn admin_at(&self, host: &Host, url: &str) -> Client {
        Client::new(host, url, &self.all[0].broker().admin_identity())
    }

    /// A client through the load balancer, with a new certificate.
    pub fn client(&self, host: &Host, name: &str, role: Role) -> Client {
        let identity = self.all[0].broker().issue(name, role);
        Client::new(host, self.balancer.url(), &identity)
    }
}

impl Replica {
    /// Starts it, and waits until it listens.
    ///
    /// # Panics
    /// It does not come to listen.
    pub fn serve(&self) {
        self.wanted.store(true, Ordering::Relaxed);
        self.broker().serve();
    }

    /// The replica's URL, past the load balancer.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The replica's broker.
    pub fn broker(&self) -> MutexGuard<'_, Broker> {
        self.broker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the state of the replica's line to Redis.
    ///
    /// # Panics
    /// It has none of its own, being on a group.
    pub fn line(&self, line: Line) {
        self.line.as_ref().expect("it is on a Redis of its own line").set(line);
    }

    /// Kills the replica, if it runs, and leaves it dead.
    pub fn kill9(&self) {
        self.wanted.store(false, Ordering::Relaxed);
        self.signal(Signal::KILL);
    }

    /// Asks the replica to end, if it runs, and leaves it ended.
    pub fn terminate(&self) {
        self.wanted.store(false, Ordering::Relaxed);
        self.signal(Signal::TERM);
    }

    /// Stops it where it is, if it runs.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets the replica go on, if it runs.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// Starts it again, if it does not run and should. Returns whether it did.
    pub fn tend(&self) -> bool {
        let mut broker = self.broker();
        let must = self.wanted.load(Ordering::Relaxed) && !broker.is_running();
        if must {
            broker.start();
        }
        must
    }

    /// Sets whether the replica should run; see [`Self::tend`].
    pub fn want(&self, wanted: bool) {
        self.wanted.store(wanted, Ordering::Relaxed);
    }

    /// Reports whether the replica runs and listens.
    pub fn is_ready(&self) -> bool {
        let mut broker = self.broker();
        broker.is_running() && broker.has_listened()
    }

    /// Returns the replica's metrics, in the format of Prometheus; none where it serves none now.
    pub fn metrics(&self) -> Option<String> {
        self.netns.run(get(self.metrics, "/metrics"))
    }

    fn signal(&self, signal: Signal) {
        let mut broker = self.broker();
        if broker.is_running() {
            broker.process().signal(signal);
        }
    }
}

fn configuration(store: &str, metrics: SocketAddr, name: &str, options: ReplicaOptions<'_>) -> String {
    let mut lines = format!("metrics_listen = \"{metrics}\"\n{store}");
    if options.named {
        lines.push_str(&format!("[replica]\nname = \"{name}\"\n"));
    }
    lines + options.sections
}

fn local(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}
