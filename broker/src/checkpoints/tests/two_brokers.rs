//! Two brokers on one Redis: one seals records of the log while the other verifies and signs it.

#![allow(clippy::disallowed_methods, reason = "tests start what they need, and wait by tokio's clock")]

use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use postern_core::audit::Verifier;
use postern_store::Coordination as _;
use postern_store::coordination::MemberInfo;
use postern_store::redis::{Redis, RedisSettings};
use postern_store::testing::test_sealing;

use super::*;
use crate::cluster::Cluster;
use crate::layers::cloud::CloudLayer;
use crate::retention::{RetentionKeeper, RetentionSettings, Segments};
use crate::signals::Wakeups;

const DAY: u64 = 24 * 3600;

/// A Redis on a socket of its own.
struct Server {
    child: Child,
    dir: TempDir,
}

impl Server {
    async fn start() -> Self {
        let dir = TempDir::with_prefix("postern-redis-").unwrap();
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "redis-server", "--port", "0", "--save", "", "--unixsocket"]);
        command.arg(dir.path().join("redis.sock")).arg("--dir").arg(dir.path());
        command.args(["--appendonly", "yes", "--appendfsync", "always"]);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let server = Self { child: child.expect("redis-server is installed"), dir };
        for _ in 0..500 {
            if Redis::open(&server.settings(), &test_sealing()).await.is_ok() {
                return server;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the server does not come up");
    }

    fn settings(&self) -> RedisSettings {
        RedisSettings::at(format!("redis+unix://{}/redis.sock", self.dir.path().display()), "postern")
    }

    /// Opens the store as a broker that stays a member, as one has to that writes.
    async fn store(&self, name: &str) -> postern_store::Store {
        let redis = Arc::new(Redis::open(&self.settings(), &test_sealing()).await.unwrap());
        let (store, info) = (redis.store(), MemberInfo { name: name.to_owned(), ..MemberInfo::default() });
        redis.renew(&info).await.unwrap();
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_millis(500)).await;
                redis.renew(&info).await.ok();
            }
        });
        store
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

async fn add(store: &postern_store::Store, count: usize) {
    for n in (0..count).step_by(250) {
        let events =
            (n..count.min(n + 250)).map(|n| AuditEvent::done(at(0), "requester/alice", "test").with("n", n));
        store.commit(events.fold(Transaction::default(), Transaction::audit)).await.unwrap();
    }
}

/// A broker with this store, and a data directory that holds this file of a trusted checkpoint.
fn broker(store: &postern_store::Store, authority: &Arc<Authority>, trusted: Option<&[u8]>) -> Broker {
    let dir = tempfile::tempdir().unwrap();
    if let Some(trusted) = trusted {
        std::fs::write(dir.path().join("audit-checkpoint"), trusted).unwrap();
    }
    let keeper = CheckpointKeeper {
        store: store.clone(),
        authority: Arc::clone(authority),
        revocations: Arc::default(),
        checkpoints: Arc::default(),
        file: MemoryFile::of(dir.path()),
        records: 50,
        every: Duration::from_secs(3600),
        trust_domain: "postern".into(),
        log: "postern".into(),
        clock: Clock::start(at(0)),
    };
    Broker { keeper, state: KeeperState::default(), dir }
}

async fn verify(broker: &Broker) {
    let trust = broker.keeper.authority.roots().into();
    let checkpoints = &broker.keeper.checkpoints;
    let audited = AuditedStore { store: &broker.keeper.store, checkpoints, trust };
    let verification = Verifications::default().verify(&audited, true).await.unwrap();
    assert_eq!(verification.broken, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn i9_one_broker_seals_while_another_verifies_and_signs_and_no_alarm_is_raised() {
    let (server, dir) = (Server::start().await, tempfile::tempdir().unwrap());
    let authority =
        Arc::new(Authority::init(&dir.path().join("ca"), &TrustDomain::default(), wall()).unwrap());
    let (store, others) = (server.store("sealing").await, server.store("signing").await);
    add(&store, 100).await;
    let mut away = broker(&others, &authority, None);
    away.round().await;
    let early = std::fs::read(away.dir.path().join("audit-checkpoint")).unwrap();
    add(&store, 4_500).await;
    let (mut sealing, mut signing) = (broker(&store, &authority, None), broker(&others, &authority, None));
    sealing.round().await;
    signing.round().await;

    let segments = Segments { after: Duration::from_secs(3600), dir: dir.path().join("audit") };
    let (cluster, wakeups) = (Cluster::alone(), Arc::new(Wakeups::default()));
    let clock = Clock::start(at(0));
    let retention = RetentionKeeper {
        store: store.clone(),
        cloud: CloudLayer::new(BTreeMap::new(), clock, wakeups, Arc::clone(&cluster.leases)),
        cluster,
        checkpoints: Arc::clone(&sealing.keeper.checkpoints),
        settings: RetentionSettings { audit: Some(segments.clone()), ..RetentionSettings::default() },
        clock,
    };
    let has_sealed = AtomicBool::new(false);
    let seal = async {
        retention.round(wall() + Duration::from_secs(30 * DAY)).await.unwrap();
        has_sealed.store(true, Ordering::SeqCst);
    };
    let sign = async {
        let mut rounds = 0;
        while rounds < 3 || !has_sealed.load(Ordering::SeqCst) {
            rounds += 1;
            add(&others, 60).await;
            signing.round().await;
            verify(&signing).await;
            // A broker that was away, whose trusted record leaves the store meanwhile, and one that begins.
            for trusted in [Some(&early[..]), None] {
                let mut broker = broker(&others, &authority, trusted);
                broker.round().await;
                broker.round().await;
                assert_eq!(broker.alarm(), None);
            }
        }
    };
    tokio::join!(seal, sign);

    let base = store.audit_base().await.unwrap();
    assert!(base.seq > 4096, "{base:?}, after two segments");
    for broker in [&mut sealing, &mut signing, &mut away] {
        broker.round().await;
        verify(broker).await;
        assert_eq!(broker.alarm(), None);
    }
    assert_eq!(sealing.newest(), signing.newest());
    // The segments and the store hold one chain, in which nothing was taken for an attack.
    let mut files: Vec<_> =
        std::fs::read_dir(&segments.dir).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    let mut verifier = Verifier::default();
    let mut check = |line: &str| {
        let action = verifier.line(line).unwrap().event.action;
        assert!(!["audit.went_back", "audit.rewritten", "audit.broken"].contains(&action.as_str()));
        verifier.head()
    };
    for file in files {
        for line in std::fs::read_to_string(file).unwrap().lines() {
            check(line);
        }
    }
    let mut head = Head::EMPTY;
    for (_, line) in store.audit_lines(0, 100_000).await.unwrap() {
        head = check(&line);
    }
    assert_eq!(head, store.audit_head().await.unwrap());
}
