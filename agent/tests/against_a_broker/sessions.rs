//! Enrolment, sessions and renewal.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::memory_host::MemoryHost;
use postern_agent::checkpoint::{self, CheckpointKeeper};
use postern_agent::clock::{self, BootTime};
use postern_agent::config::{AgentConfig, LogFormat};
use postern_agent::connection::BrokerConnection;
use postern_agent::doctor;
use postern_agent::enroll::{self, EnrollError, enroll};
use postern_agent::enrolment_mark::EnrolmentMark;
use postern_agent::host_reconciler::{self, HostReconciler};
use postern_agent::ledger::Ledger;
use postern_agent::limits::StateLimits;
use postern_agent::renew::{self, RenewError};
use postern_agent::reports::{self, RepairReport, Report, Reporter};
use postern_agent::status::{Status, StatusFile};
use postern_core::audit::Head;
use postern_core::checkpoint::Checkpoint;
use postern_core::{KeyHash, TargetId};
use postern_pki::credentials::Credentials;
use postern_pki::{Authority, SpiffeId, TrustDomain};
use postern_proto::v1;
use postern_proto::v1::session_request::Message as FromAgent;
use postern_proto::v1::session_response::Message as ToAgent;
use postern_runtime::tasks::Tasks;
use postern_testkit::{AgentSession, FakeBroker, TARGET};
use tokio::sync::Notify;

pub(crate) const HOUR: Duration = Duration::from_secs(3600);

fn target() -> TargetId {
    TARGET.parse().unwrap()
}

/// Issues an identity of the target's agent, valid for this long.
pub(crate) fn issue(broker: &FakeBroker, lifetime: Duration) -> Credentials {
    broker.issue_agent(&target(), lifetime)
}

/// Returns a state: this generation, tcp/22, and a window with this many seconds left.
pub(crate) fn state(generation: u64, remaining: i64) -> v1::DesiredState {
    let port = v1::ProtectedPort { protocol: v1::Protocol::Tcp.into(), number: 22 };
    let window = v1::HostWindow {
        grant_id: "01arz3ndektsv4rrffq69g5fav".into(),
        port: Some(port),
        source: "192.0.2.7/32".into(),
        remaining: Some(prost_types::Duration { seconds: remaining, nanos: 0 }),
    };
    v1::DesiredState {
        keep_protection: false,
        policy_generation: 0,
        generation,
        mode: v1::Mode::Enforce.into(),
        ports: vec![port],
        windows: vec![window],
    }
}

/// Sends a state as the answer to the hello, received just now.
fn send_state(session: &AgentSession, generation: u64, remaining: i64) {
    session.send(session.hello_at, ToAgent::Desired(state(generation, remaining)));
}

/// An agent in this process, with everything but the firewall.
pub(crate) struct Agent {
    pub(crate) host: MemoryHost,
    reporter: Reporter,
    pub(crate) current: Arc<renew::CurrentIdentity>,
    pub(crate) status_file: Arc<StatusFile>,
    pub(crate) tried: Arc<renew::TriedKeysSender>,
    pub(crate) ask_again: Arc<Notify>,
    _tasks: Tasks,
    dir: tempfile::TempDir,
}

pub(crate) fn agent(broker: &FakeBroker, identity: Option<Credentials>) -> Agent {
    let dir = tempfile::tempdir().unwrap();
    let config = AgentConfig {
        broker: broker.url().to_owned(),
        state_dir: dir.path().to_owned(),
        log_format: LogFormat::Text,
        bootstrap: BTreeSet::new(),
        limits: StateLimits::default(),
        confirm_within: None,
    };
    let host = MemoryHost::default();
    let now = clock::moment();
    let reconciler = HostReconciler::start(
        host.clone(),
        Ledger::in_dir(dir.path()),
        &config,
        &now,
        host_reconciler::suspended(now.boottime),
    );
    let (handle, commands) = host_reconciler::channel();
    let (reporter, reports) = reports::channel();
    let keeper = CheckpointKeeper::in_dir(dir.path(), reporter.clone());
    let (checkpoints, checkpoint_commands) = checkpoint::channel();
    let status_file = Arc::new(StatusFile::default());
    let published = Arc::clone(&status_file);
    let (tried, ask_again) = (Arc::new(renew::TriedKeysSender::default()), Arc::new(Notify::new()));
    let current = Arc::new(renew::CurrentIdentity::new(identity.map(Arc::new)));
    let connection = BrokerConnection {
        broker: config.broker.clone(),
        credentials: current.subscribe(),
        reconciler: handle,
        reports,
        checkpoints,
        status_file: Arc::clone(&status_file),
        limits: config.limits,
        renewal: Arc::default(),
        tried: Arc::clone(&tried),
        ask_again: Arc::clone(&ask_again),
    };
    let mut tasks = Tasks::default();
    tasks
        .spawn_thread("host-reconciler", move || host_reconciler::serve(reconciler, commands, &status_file))
        .unwrap();
    tasks.spawn_thread("checkpoints", move || checkpoint::serve(keeper, checkpoint_commands)).unwrap();
    tasks.spawn("connection", async move {
        connection.keep().await;
        Ok(())
    });
    Agent { host, reporter, current, status_file: published, tried, ask_again, _tasks: tasks, dir }
}

/// The signal of a broker that refuses no certificate.
pub(crate) fn none_tried() -> renew::TriedKeysSender {
    renew::TriedKeysSender::default()
}

/// Issues an identity whose renewal is due: granted for a time of which all but this has passed.
fn issue_due(broker: &FakeBroker, left: Duration) -> Credentials {
    let granted = 10 * left;
    broker.issue(&SpiffeId::Agent(target()), granted, clock::wall() - (granted - left))
}

#[tokio::test]
async fn a_token_is_exchanged_for_an_identity_once() {
    let broker = FakeBroker::start().await;
    let dir = tempfile::tempdir().unwrap();
    let (token, identity) = (broker.join_token(), dir.path().join("identity"));
    assert_eq!(enroll(broker.url(), &token, &identity).await.unwrap(), target());
    let enrolled = Credentials::load(&identity).unwrap();
    assert_eq!(enroll::target_of(&enrolled), Some(target()));
    assert!(EnrolmentMark::beside(&identity).names(enrolled.key_hash().unwrap()).unwrap());

    let again = enroll(broker.url(), &token, &dir.path().join("other")).await.unwrap_err();
    assert!(
        again.to_string().contains("was used before") && again.to_string().contains("agents token"),
        "{again}"
    );
    assert!(!dir.path().join("other").exists(), "a refused enrolment leaves nothing");
}

#[tokio::test]
async fn i7_a_token_is_shown_only_to_the_broker_that_made_it() {
    let (broker, other) = (FakeBroker::start().await, FakeBroker::start().await);
    let error = enroll(other.url(), &broker.join_token(), Path::new("/nonexistent")).await.unwrap_err();
    assert!(matches!(error, EnrollError::NotConnected { .. }), "{error}");
}

#[tokio::test]
async fn a_desired_state_is_held_and_answered_and_survives_a_disconnect() {
    let broker = FakeBroker::start().await;
    let agent = agent(&broker, Some(issue(&broker, HOUR)));
    let mut session = broker.session().await;
    assert_eq!(session.hello.last_generation, 0);
    assert!(!session.hello.boot_id.is_empty());
    send_state(&session, 3, 600);
    let applied = session.applied().await;
    assert_eq!((applied.generation, applied.error.as_str()), (3, ""));
    assert_eq!(agent.host.deadlines(), [BootTime(session.hello_at).plus(Duration::from_secs(600))]);

    send_state(&session, 2, 600);
    assert!(session.applied().await.error.contains("stale"), "i8");

    drop(session);
    let mut session = broker.session().await;
    assert_eq!(session.hello.last_generation, 3);
    send_state(&session, 1, 600);
    assert_eq!(session.applied().await.error, "", "a new session starts with no generation");
}

#[tokio::test]
async fn i2_a_message_that_was_held_back_does_not_lengthen_a_window() {
    let broker = FakeBroker::start().await;
    let agent = agent(&broker, Some(issue(&broker, HOUR)));
    let mut session = broker.session().await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    send_state(&session, 1, 1);
    assert_eq!(session.applied().await.error, "");
    assert!(agent.host.deadlines().is_empty(), "its second was over when it arrived");
}

#[tokio::test]
async fn an_invalid_state_is_answered_with_the_field() {
    let broker = FakeBroker::start().await;
    let _agent = agent(&broker, Some(issue(&broker, HOUR)));
    let mut session = broker.session().await;
    let desired = v1::DesiredState { generation: 4, ..Default::default() };
    session.send(session.hello_at, ToAgent::Desired(desired));
    let applied = session.applied().await;
    assert_eq!(applied.generation, 4);
    assert!(applied.error.starts_with("mode:"), "{}", applied.error);
}

#[tokio::test]
async fn i9_tampering_is_reported_until_it_is_acknowledged() {
    let broker = FakeBroker::start().await;
    let agent = agent(&broker, Some(issue(&broker, HOUR)));
    let report = |pid| RepairReport {
        what: "flushed".into(),
        process: "nft".into(),
        pid,
        exposed_for: Duration::ZERO,
    };
    let pid = |message| {
        let FromAgent::Tampering(tampering) = message else { panic!("{message:?}") };
        tampering.pid
    };
    agent.reporter.report(Report::Repair(report(1)));
    let mut session = broker.session().await;
    let (sent_at, message) = session.next().await;
    assert_eq!(pid(message), 1);
    drop(session);
    let mut session = broker.session().await;
    let (again_at, message) = session.next().await;
    assert_eq!(pid(message), 1, "the broker had not acknowledged it");
    assert!(again_at > sent_at);
    session.send(again_at, ToAgent::Heartbeat(v1::HeartbeatReply {}));
    // The agent answers this state after the reply to its heartbeat, so it has read the reply by then.
    send_state(&session, 1, 1);
    session.applied().await;
    drop(session);
    agent.reporter.report(Report::Repair(report(2)));
    assert_eq!(pid(broker.session().await.next().await.1), 2, "the first was acknowledged");
}

#[tokio::test]
async fn a_renewed_certificate_replaces_the_session_without_a_gap() {
    let broker = FakeBroker::start().await;
    let agent = agent(&broker, None);
    let dir = tempfile::tempdir().unwrap();
    let identity = dir.path().join("identity");
    issue_due(&broker, Duration::from_secs(30)).save(&identity).unwrap();
    let (address, current) = (broker.url().to_owned(), Arc::clone(&agent.current));
    let mut renewal = Tasks::default();
    renewal.spawn("certificate", async move {
        renew::keep_renewed(&address, &identity, &current, &none_tried(), &Notify::new()).await;
        Ok(())
    });
    let mut first = broker.session().await;
    let mut second = broker.session().await;
    assert_eq!(broker.renewals(), 1);
    send_state(&second, 1, 600);
    assert_eq!(second.applied().await.error, "");
    first.ended().await;
    let saved = Credentials::load(&dir.path().join("identity")).unwrap();
    assert!(saved.not_after() > clock::wall() + Duration::from_secs(1800));
}

/// The answer of a broker to a certificate request.
type Answer = Box<dyn Fn(&[u8]) -> v1::RenewResponse + Send>;

/// An authority of a trust domain, in a directory that lasts as long as it.
fn an_authority(domain: &str) -> (Authority, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    (Authority::init(dir.path(), &TrustDomain::new(domain).unwrap(), clock::wall()).unwrap(), dir)
}

#[tokio::test]
async fn i7_a_wrong_answer_to_a_renewal_is_refused_and_the_old_identity_stays() {
    let broker = FakeBroker::start().await;
    let old = issue(&broker, HOUR);
    let agent = || SpiffeId::Agent(target());
    let sign = |authority: &Authority, csr: &[u8], id: SpiffeId, lifetime| {
        authority.issue(csr, &id, lifetime, clock::wall()).unwrap().chain
    };
    let own = |change: fn(&Authority, &[u8]) -> v1::RenewResponse| {
        // The authority is the broker's: a second one over its files.
        let authority = broker.same_authority();
        Box::new(move |csr: &[u8]| change(&authority, csr)) as Answer
    };
    let (other, _other_dir) = an_authority("postern");
    let (foreign, _foreign_dir) = an_authority("elsewhere");
    let (mixed, _mixed_dir) = an_authority("postern");
    let own_roots = broker.same_authority().roots();
    let answers: [(&str, Answer); 6] = [
        (
            "another machine",
            own(|authority, csr| {
                let id = SpiffeId::Agent("host:other".parse().unwrap());
                let certificates = authority.issue(csr, &id, HOUR, clock::wall()).unwrap().chain;
                v1::RenewResponse { certificates, roots: authority.roots(), wall_clock: None }
            }),
        ),
        (
            "ended",
            own(|authority, csr| {
                let id = SpiffeId::Agent(target());
                let at = clock::wall() - Duration::from_secs(40);
                let certificates = authority.issue(csr, &id, Duration::from_secs(10), at).unwrap().chain;
                v1::RenewResponse { certificates, roots: authority.roots(), wall_clock: None }
            }),
        ),
        (
            "another authority",
            Box::new(move |csr| v1::RenewResponse {
                certificates: sign(&other, csr, agent(), HOUR),
                roots: other.roots(),
                wall_clock: None,
            }),
        ),
        (
            "another trust domain",
            Box::new(move |csr| v1::RenewResponse {
                certificates: foreign
                    .issue(csr, &SpiffeId::Agent(target()), HOUR, clock::wall())
                    .unwrap()
                    .chain,
                roots: foreign.roots(),
                wall_clock: None,
            }),
        ),
        (
            "another authority under the old roots",
            Box::new(move |csr| v1::RenewResponse {
                certificates: mixed
                    .issue(csr, &SpiffeId::Agent(target()), HOUR, clock::wall())
                    .unwrap()
                    .chain,
                roots: own_roots.clone(),
                wall_clock: None,
            }),
        ),
        (
            "no old root",
            own(|authority, csr| {
                let id = SpiffeId::Agent(target());
                let certificates = authority.issue(csr, &id, HOUR, clock::wall()).unwrap().chain;
                v1::RenewResponse { certificates, roots: an_authority("postern").0.roots(), wall_clock: None }
            }),
        ),
    ];
    for (what, answer) in answers {
        broker.answer_renewals(answer);
        let error = renew::renew(broker.url(), &old).await.unwrap_err();
        assert!(matches!(error, RenewError::NotTakenUp(_)), "{what}: {error}");
    }

    // The agent goes on with what it has.
    let dir = tempfile::tempdir().unwrap();
    let identity = dir.path().join("identity");
    let due = issue_due(&broker, Duration::from_secs(30));
    due.save(&identity).unwrap();
    let current = Arc::new(renew::CurrentIdentity::new(None));
    let before = broker.renewals();
    let (address, kept, place) = (broker.url().to_owned(), Arc::clone(&current), identity.clone());
    let mut renewal = Tasks::default();
    renewal.spawn("certificate", async move {
        renew::keep_renewed(&address, &place, &kept, &none_tried(), &Notify::new()).await;
        Ok(())
    });
    let asked = async {
        while broker.renewals() == before {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    };
    tokio::time::timeout(Duration::from_secs(20), asked).await.unwrap();
    assert_eq!(Credentials::load(&identity).unwrap().key_hash(), due.key_hash());
    assert_eq!(current.borrow().as_ref().unwrap().key_hash(), due.key_hash());
}

#[tokio::test]
async fn i8_a_renewed_identity_that_cannot_be_written_is_not_used_while_the_old_one_is_valid() {
    let broker = FakeBroker::start().await;
    let dir = tempfile::tempdir().unwrap();
    let identity = dir.path().join("identity");
    let due = issue_due(&broker, Duration::from_secs(60));
    due.save(&identity).unwrap();
    // A directory in the place of the temporary file: the key cannot be replaced.
    std::fs::create_dir(identity.join("key.tmp")).unwrap();
    let current = Arc::new(renew::CurrentIdentity::new(None));
    let (address, kept, place) = (broker.url().to_owned(), Arc::clone(&current), identity.clone());
    let mut renewal = Tasks::default();
    renewal.spawn("certificate", async move {
        renew::keep_renewed(&address, &place, &kept, &none_tried(), &Notify::new()).await;
        Ok(())
    });
    let repeated = async {
        while broker.renewals() < 2 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), repeated).await.unwrap();
    assert_eq!(current.borrow().as_ref().unwrap().key_hash(), due.key_hash(), "the old one is in use");
    std::fs::remove_dir(identity.join("key.tmp")).unwrap();
    let taken_up = async {
        while current.borrow().as_ref().unwrap().key_hash() == due.key_hash() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), taken_up).await.unwrap();
    let saved = Credentials::load(&identity).unwrap();
    assert_eq!(saved.key_hash(), current.borrow().as_ref().unwrap().key_hash());
}

/// Keeps the identity of a directory renewed, from now on.
fn keep_renewed(broker: &FakeBroker, identity: &Path, current: &Arc<renew::CurrentIdentity>) -> Tasks {
    let (address, current, place) = (broker.url().to_owned(), Arc::clone(current), identity.to_owned());
    let mut renewal = Tasks::default();
    renewal.spawn("certificate", async move {
        renew::keep_renewed(&address, &place, &current, &none_tried(), &Notify::new()).await;
        Ok(())
    });
    renewal
}

/// Waits until the identity of a key is in use.
async fn in_use(current: &renew::CurrentIdentity, key: KeyHash) {
    let is_used = |it: &Option<Arc<Credentials>>| {
        it.as_ref().is_some_and(|credentials| credentials.key_hash().ok() == Some(key))
    };
    tokio::time::timeout(Duration::from_secs(30), current.subscribe().wait_for(is_used))
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn i8_an_enrolment_during_a_renewal_is_what_stays() {
    let broker = FakeBroker::start().await;
    let dir = tempfile::tempdir().unwrap();
    let identity = dir.path().join("identity");
    let due = issue_due(&broker, Duration::from_secs(60));
    due.save(&identity).unwrap();
    let enrolled = issue(&broker, HOUR);
    let key = enrolled.key_hash().unwrap();
    let (authority, place) = (broker.same_authority(), identity.clone());
    broker.answer_renewals(move |csr| {
        // The operator enrols the host while the broker answers.
        enrolled.save(&place).unwrap();
        let id = SpiffeId::Agent(target());
        let certificates = authority.issue(csr, &id, HOUR, clock::wall()).unwrap().chain;
        v1::RenewResponse { certificates, roots: authority.roots(), wall_clock: None }
    });
    let current = Arc::new(renew::CurrentIdentity::new(None));
    let _renewal = keep_renewed(&broker, &identity, &current);
    in_use(&current, key).await;
    assert_eq!(Credentials::load(&identity).unwrap().key_hash().unwrap(), key);
    assert_eq!(broker.renewals(), 1);
}

#[tokio::test]
async fn an_enrolment_counts_though_its_certificate_begins_earlier_than_the_one_before() {
    let broker = FakeBroker::start().await;
    let dir = tempfile::tempdir().unwrap();
    let (before, current) = (issue(&broker, HOUR), Arc::new(renew::CurrentIdentity::new(None)));
    before.save(dir.path()).unwrap();
    let _renewal = keep_renewed(&broker, dir.path(), &current);
    in_use(&current, before.key_hash().unwrap()).await;
    // The clock of the broker that the host is enrolled in now is behind.
    let earlier = broker.issue(&SpiffeId::Agent(target()), HOUR, clock::wall() - HOUR / 4);
    earlier.save(dir.path()).unwrap();
    in_use(&current, earlier.key_hash().unwrap()).await;
    assert_eq!(broker.renewals(), 0);
}

#[tokio::test]
async fn i8_a_renewal_before_the_first_session_of_an_enrolment_carries_its_mark_over() {
    let broker = FakeBroker::start().await;
    let dir = tempfile::tempdir().unwrap();
    let due = issue_due(&broker, Duration::from_secs(60));
    let (key, mark) = (due.key_hash().unwrap(), EnrolmentMark::beside(dir.path()));
    mark.set(key, None).unwrap();
    due.save(dir.path()).unwrap();
    let current = Arc::new(renew::CurrentIdentity::new(None));
    let _renewal = keep_renewed(&broker, dir.path(), &current);
    let is_renewed = |it: &Option<Arc<Credentials>>| {
        it.as_ref().is_some_and(|credentials| credentials.key_hash().ok() != Some(key))
    };
    let renewed = current.subscribe().wait_for(is_renewed).await.unwrap().clone().unwrap();
    assert!(mark.names(renewed.key_hash().unwrap()).unwrap());
}

#[tokio::test]
async fn i8_an_enrolment_that_was_cut_off_leaves_an_identity_or_none() {
    let broker = FakeBroker::start().await;
    let dir = tempfile::tempdir().unwrap();
    let config = AgentConfig {
        broker: broker.url().to_owned(),
        state_dir: dir.path().to_owned(),
        log_format: LogFormat::Text,
        bootstrap: BTreeSet::new(),
        limits: StateLimits::default(),
        confirm_within: None,
    };
    let identity = config.identity_dir();
    issue(&broker, HOUR).save(&identity).unwrap();
    let doctor_says = async |words: &str| {
        let findings = doctor::diagnose(&config, &clock::moment()).await;
        assert!(findings.iter().any(|finding| finding.what.contains(words)), "{findings:?}");
    };

    // A crash before the last file: the key has its certificates beside it.
    std::fs::remove_file(identity.join("cert.pem")).unwrap();
    let status = Status::gather(&config, &clock::moment());
    assert_eq!((status.target.as_deref(), status.errors.len()), (Some(TARGET), 0), "{status:?}");
    doctor_says(&format!("the certificate names {TARGET}")).await;
    let current = Arc::new(renew::CurrentIdentity::new(None));
    let (address, kept, place) = (broker.url().to_owned(), Arc::clone(&current), identity.clone());
    let mut renewal = Tasks::default();
    renewal.spawn("certificate", async move {
        renew::keep_renewed(&address, &place, &kept, &none_tried(), &Notify::new()).await;
        Ok(())
    });
    let taken_up = current.subscribe().wait_for(Option::is_some).await.map(drop);
    assert!(taken_up.is_ok());

    // A crash before the key: the roots alone are no identity.
    std::fs::remove_file(identity.join("key.pem")).unwrap();
    let status = Status::gather(&config, &clock::moment());
    assert_eq!((status.target, status.errors.len()), (None, 0));
    doctor_says("this host is not enrolled").await;
}

#[tokio::test]
async fn i10_a_state_past_the_bounds_is_answered_with_the_bound_and_opens_nothing() {
    let broker = FakeBroker::start().await;
    let agent = agent(&broker, Some(issue(&broker, HOUR)));
    let mut session = broker.session().await;
    send_state(&session, 1, 600);
    assert_eq!(session.applied().await.error, "");
    let port = v1::ProtectedPort { protocol: v1::Protocol::Tcp.into(), number: 22 };
    let window = |number: u32| v1::HostWindow {
        grant_id: "01arz3ndektsv4rrffq69g5fav".into(),
        port: Some(port),
        source: format!("10.0.{}.{}/32", number / 256, number % 256),
        remaining: Some(prost_types::Duration { seconds: 600, nanos: 0 }),
    };
    let desired = v1::DesiredState {
        keep_protection: false,
        policy_generation: 0,
        generation: 2,
        mode: v1::Mode::Enforce.into(),
        ports: vec![port],
        windows: (0..4097).map(window).collect(),
    };
    session.send(session.hello_at, ToAgent::Desired(desired));
    let applied = session.applied().await;
    assert_eq!(applied.generation, 2);
    assert!(applied.error.contains("limits.windows") && applied.error.contains("4096"), "{}", applied.error);
    assert!(agent.host.deadlines().is_empty(), "the window that the state does not have is closed");
}

#[tokio::test]
async fn i9_an_agent_keeps_the_checkpoints_of_its_session_and_reports_one_that_contradicts_them() {
    let broker = FakeBroker::start().await;
    let agent = agent(&broker, Some(issue(&broker, HOUR)));
    let mut session = broker.session().await;
    let authority = broker.same_authority();
    let sign = |seq, digit: &str| {
        let head = Head { seq, hash: digit.repeat(64).parse().unwrap() };
        let made = Checkpoint::of("postern", "postern", head, postern_testkit::clock::wall(), None);
        authority.sign_checkpoint(made).unwrap().to_string()
    };
    let (kept, received) = (sign(10, "a"), sign(10, "b"));
    for line in [&kept, &received] {
        session.send(session.hello_at, ToAgent::Checkpoint(v1::AuditCheckpoint { line: line.clone() }));
    }
    let report = loop {
        match session.next().await.1 {
            FromAgent::CheckpointReport(report) => break report,
            FromAgent::Hello(_)
            | FromAgent::Applied(_)
            | FromAgent::Heartbeat(_)
            | FromAgent::Enforcement(_)
            | FromAgent::Tampering(_) => {}
        }
    };
    assert_eq!(report, v1::CheckpointReport { kept: kept.clone(), received });
    let on_disk = checkpoint::read(agent.dir.path()).unwrap();
    assert_eq!(on_disk.newest.unwrap().to_string(), kept);
    assert!(on_disk.alarm.is_some());
}
