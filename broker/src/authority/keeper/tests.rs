use std::os::unix::fs::PermissionsExt as _;

use postern_core::{AgentKeys, KeyHash};
use postern_pki::authority::AGENT_LIFETIME;
use postern_pki::life::Life;
use postern_store::{AgentRecord, Expect};

use super::*;
use crate::testing::TestApp;

const DAY: SignedDuration = SignedDuration::from_hours(24);

/// Makes a keeper over an authority of today, and its state.
fn keeper(rig: &TestApp) -> (Keeper, KeeperState) {
    let app = Arc::clone(&rig.app);
    let names = vec!["broker.example.org".to_owned()];
    let credentials = serving(&app.authority, &names, app.clock.now()).unwrap();
    let life = Life { not_before: credentials.not_before(), not_after: credentials.not_after() };
    let state = KeeperState {
        signer: app.authority.intermediate().serial,
        roots: app.authority.roots(),
        phase: app.authority.phase(),
        failed_at: None,
        failure: None,
        said: None,
        unrecorded: Vec::new(),
    };
    let keeper = Keeper {
        authority: Arc::clone(&app.authority),
        standing: Arc::clone(&app.standing),
        store: app.store.clone(),
        readiness: app.readiness.clone(),
        clock: app.clock,
        identity: ServerIdentity::new(credentials).unwrap(),
        serving: life,
        names,
        roll_report: RollReport::at(app.standing.root_key_file().with_file_name("roll.json")),
        revocations: Arc::clone(&app.revocations),
    };
    (keeper, state)
}

#[test]
fn a_serving_certificate_is_due_at_half_of_its_life_while_a_fresh_one_would_be_better() {
    let at = |hour: i64| Timestamp::from_second(hour * 3600).unwrap();
    let life = |from, until| Life { not_before: at(from), not_after: at(until) };
    let (serving, intermediate) = (life(0, 24), life(0, 1000));
    for (hour, due) in [(11, false), (12, true), (24, true), (500, true), (1000, false)] {
        assert_eq!(is_serving_due(&serving, &intermediate, at(hour)), due, "hour {hour}");
    }
    let bounded = life(980, 1000);
    assert!(!is_serving_due(&bounded, &intermediate, at(995)), "it lasts as long as its intermediate");
    // Of a clock that was ahead.
    assert!(is_serving_due(&bounded, &intermediate, at(979)));
    assert!(!is_serving_due(&life(500, 524), &life(500, 1000), at(499)), "a fresh one would be no better");
}

/// The keeper's work of one look, at a time of the wall clock.
fn look(keeper: &mut Keeper, state: &mut KeeperState, now: Timestamp) {
    keeper.take_up(state, now);
    keeper.renew(state, now);
    keeper.mend_copy();
    keeper.serve(state, now);
    keeper.say(state, now);
}

#[tokio::test]
async fn after_a_clock_that_was_ahead_the_first_look_makes_the_broker_good_for_its_peers_again() {
    let rig = TestApp::new();
    let (mut keeper, mut state) = keeper(&rig);
    let now = wall();
    look(&mut keeper, &mut state, now + DAY * 240);
    assert!(rig.app.authority.intermediate().life.is_early(now) && keeper.serving.is_early(now));
    look(&mut keeper, &mut state, now);
    assert!(rig.app.authority.intermediate().life.holds(now) && keeper.serving.holds(now));
    assert!(!rig.app.readiness.reasons().contains_key(AUTHORITY));
    assert!(rig.app.standing.warnings().is_empty(), "{:?}", rig.app.standing);

    // Two hours are no reason for another intermediate, and one for another serving certificate.
    let intermediate = rig.app.authority.intermediate();
    look(&mut keeper, &mut state, now + SignedDuration::from_hours(14));
    assert!(keeper.serving.is_early(now));
    look(&mut keeper, &mut state, now);
    assert!(keeper.serving.holds(now));
    assert_eq!(rig.app.authority.intermediate(), intermediate);
    // The audit log goes by the broker's clock, which never goes back.
    keeper.record(&mut state).await.unwrap();
    let renewals: Vec<_> =
        rig.events().await.into_iter().filter(|event| event.action == "authority.renewed").collect();
    assert!(renewals.len() == 4 && renewals.is_sorted_by_key(|event| event.at), "{renewals:?}");
    assert!(renewals.iter().all(|event| event.at < now + DAY), "{renewals:?}");
}

#[tokio::test]
async fn with_the_root_key_offline_an_intermediate_from_the_future_is_a_reason_not_to_be_ready() {
    let rig = TestApp::new();
    let (mut keeper, mut state) = keeper(&rig);
    let (now, key) = (wall(), rig.app.standing.root_key_file().to_owned());
    look(&mut keeper, &mut state, now + DAY * 240);
    let offline = key.with_extension("offline");
    std::fs::rename(&key, &offline).unwrap();
    look(&mut keeper, &mut state, now);
    assert!(rig.app.readiness.reasons()[AUTHORITY].contains("authority renew --root-key FILE"));
    Authority::renew(key.parent().unwrap(), &rig.app.trust_domain, &offline, now).unwrap();
    look(&mut keeper, &mut state, now);
    assert!(rig.app.authority.intermediate().life.holds(now) && keeper.serving.holds(now));
    assert!(!rig.app.readiness.reasons().contains_key(AUTHORITY));
}

#[tokio::test]
async fn a_root_key_that_cannot_be_used_is_warned_of_while_the_certificates_are_young() {
    let rig = TestApp::new();
    let (mut keeper, mut state) = keeper(&rig);
    let (now, key) = (wall(), rig.app.standing.root_key_file().to_owned());
    let other = Authority::init(&key.with_extension("other"), &rig.app.trust_domain, now).unwrap();
    look(&mut keeper, &mut state, now);
    assert!(rig.app.standing.warnings().is_empty());
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    look(&mut keeper, &mut state, now);
    assert!(rig.app.standing.warnings()[0].contains("can be read by other users"), "{:?}", rig.app.standing);
    drop(other);
    std::fs::copy(key.with_extension("other").join("root.key"), &key).unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    look(&mut keeper, &mut state, now);
    assert!(rig.app.standing.warnings()[0].contains("is not the private key of"), "{:?}", rig.app.standing);
    std::fs::remove_file(&key).unwrap();
    look(&mut keeper, &mut state, now);
    assert!(rig.app.standing.warnings().is_empty(), "a key that is offline is no trouble");
}

#[test]
fn a_stale_copy_is_written_again_at_the_next_look() {
    let rig = TestApp::new();
    let (mut keeper, mut state) = keeper(&rig);
    let (now, key) = (wall(), rig.app.standing.root_key_file().to_owned());
    let copy = key.with_file_name("intermediate.pem");
    let stale = std::fs::read(&copy).unwrap();
    Authority::renew(key.parent().unwrap(), &rig.app.trust_domain, &key, now).unwrap();
    std::fs::write(&copy, &stale).unwrap();
    look(&mut keeper, &mut state, now);
    assert_ne!(std::fs::read(&copy).unwrap(), stale);
    assert!(rig.app.standing.warnings().is_empty());
}

#[test]
fn a_wait_after_a_failed_renewal_ends_with_a_clock_that_goes_back() {
    let rig = TestApp::new();
    let (keeper, mut state) = keeper(&rig);
    let (due, key) = (wall() + DAY * 183, rig.app.standing.root_key_file().to_owned());
    let good = std::fs::read(&key).unwrap();
    std::fs::write(&key, "no key").unwrap();
    keeper.renew(&mut state, due + DAY * 100);
    std::fs::write(&key, good).unwrap();
    let before = rig.app.authority.intermediate();
    keeper.renew(&mut state, due);
    assert_ne!(rig.app.authority.intermediate(), before);
}

#[tokio::test]
async fn the_intermediate_is_renewed_at_half_of_its_life_and_the_broker_serves_under_the_new_one() {
    let rig = TestApp::new();
    let (mut keeper, mut state) = keeper(&rig);
    let (now, before) = (rig.app.clock.now(), rig.app.authority.intermediate());
    keeper.renew(&mut state, now + DAY * 182);
    assert_eq!(rig.app.authority.intermediate(), before);
    keeper.renew(&mut state, now + DAY * 183);
    let after = rig.app.authority.intermediate();
    assert_ne!(after, before);
    keeper.serve(&mut state, now + DAY * 183);
    assert_eq!(state.signer, after.serial);
    keeper.record(&mut state).await.unwrap();
    let events = rig.events().await;
    let recorded: Vec<_> = events.iter().filter(|event| event.action == "authority.renewed").collect();
    let people = rig.app.authority.people().unwrap().unwrap();
    let serials: Vec<&String> = recorded.iter().map(|event| &event.details["serial"]).collect();
    assert_eq!(serials, [&after.serial, &people.serial], "I9");
    keeper.say(&mut state, now + DAY * 183);
    assert!(rig.app.standing.warnings().is_empty());
}

/// Puts the record of the agent of `host:vm-1`, which renewed at this time, after a change.
async fn put_agent(rig: &TestApp, renewed_at: Timestamp, change: impl FnOnce(AgentRecord) -> AgentRecord) {
    let (target, end) = ("host:vm-1".parse().unwrap(), renewed_at + AGENT_LIFETIME);
    let agent = change(AgentRecord::enrolled(target, renewed_at, end, AgentKeys::none()));
    let change = Transaction::default().put_agent(agent, Expect::Any);
    let event = AuditEvent::done(wall(), "a test", "agent.changed");
    rig.app.store.commit(change.audit(event)).await.unwrap();
}

#[tokio::test]
async fn i9_each_step_to_the_next_root_is_taken_up_audited_and_reported() {
    let rig = TestApp::new();
    let (mut keeper, mut state) = keeper(&rig);
    let (authority, root_key) = (&rig.app.authority, rig.app.standing.root_key_file().to_owned());
    let (dir, domain) = (root_key.parent().unwrap(), &rig.app.trust_domain);
    let report = keeper.roll_report.clone();
    let waiting = || {
        let found = report.read(authority, wall()).unwrap();
        (found.agents, found.people)
    };
    let put = async |roots: Vec<KeyHash>, renewed_at: Timestamp| {
        put_agent(&rig, renewed_at, |agent| AgentRecord { roots, ..agent }).await;
    };
    put(Vec::new(), wall() - AGENT_LIFETIME).await;
    keeper.look(&mut state).await.unwrap();
    assert!(!report.file().exists(), "no root is being replaced");

    Authority::begin_roll(dir, domain, &root_key, None, wall()).unwrap();
    assert!(report.read(authority, wall()).is_err());
    keeper.look(&mut state).await.unwrap();
    assert_eq!((authority.phase(), state.roots.len()), (RollPhase::Begun, 2));
    assert_eq!(waiting(), (vec!["host:vm-1".to_owned()], Vec::new()));
    assert!(report.read(authority, wall() + DAY).is_err(), "an old report counts for nothing");
    put(authority.root_keys(), wall() - AGENT_LIFETIME).await;
    keeper.look(&mut state).await.unwrap();
    assert_eq!(waiting(), (Vec::new(), Vec::new()));

    let people_key = dir.join("people.key");
    Authority::switch_root(dir, domain, None, &people_key, wall()).unwrap();
    keeper.look(&mut state).await.unwrap();
    assert_eq!(waiting().0, ["host:vm-1"], "its certificate is from before");
    put(authority.root_keys(), wall() + DAY).await;
    keeper.look(&mut state).await.unwrap();
    assert_eq!(waiting(), (Vec::new(), Vec::new()));
    // Brokers do not switch at one moment: the root of the newest certificate counts, once a session has used it.
    let [old, next] = authority.root_keys()[..] else { panic!("two roots") };
    let (used, unused) = (AgentKeys::enrolled(next), AgentKeys::renewed(old, next));
    for (root, keys, renewed_at, waits) in [
        (old, used, wall() + DAY, true),
        (next, unused, wall() + DAY, true),
        (next, used, wall() - DAY, false),
    ] {
        put_agent(&rig, renewed_at, |agent| AgentRecord {
            keys: Some(keys),
            certificate_root: Some(root),
            ..agent
        })
        .await;
        keeper.look(&mut state).await.unwrap();
        assert_eq!(!waiting().0.is_empty(), waits, "{renewed_at}");
    }
    assert_eq!(rig.app.standing.root_key(authority), RootKey::AtHand, "the next root's key is root.key now");

    Authority::finish_roll(dir, wall(), false).unwrap();
    keeper.look(&mut state).await.unwrap();
    assert!(!report.file().exists() && state.roots.len() == 1);
    let steps: Vec<String> = rig.events().await.into_iter().map(|event| event.action).collect();
    let steps: Vec<&String> = steps.iter().filter(|action| action.starts_with("authority.")).collect();
    let expected = ["roll_begun", "roll_switched", "renewed", "roll_finished"];
    assert_eq!(steps, expected.map(|step| format!("authority.{step}")).iter().collect::<Vec<_>>());
}

#[tokio::test]
async fn i2_an_ended_intermediate_is_a_reason_not_to_be_ready_and_the_keeper_goes_on() {
    let rig = TestApp::new();
    let (mut keeper, mut state) = keeper(&rig);
    let now = rig.app.clock.now();
    let key = rig.app.standing.root_key_file().to_owned();
    let offline = key.with_extension("offline");
    std::fs::rename(&key, &offline).unwrap();
    let (late, before) = (now + DAY * 366, rig.app.authority.intermediate());
    keeper.renew(&mut state, late);
    keeper.serve(&mut state, late);
    keeper.say(&mut state, late);
    assert_eq!(rig.app.authority.intermediate(), before);
    assert!(rig.app.readiness.reasons()[AUTHORITY].contains("authority renew --root-key FILE"));
    assert_eq!(state.failure, None, "a key that is offline is no failure");

    // As the command renews it.
    let made = Authority::renew(key.parent().unwrap(), &rig.app.trust_domain, &offline, late).unwrap();
    keeper.take_up(&mut state, late);
    keeper.serve(&mut state, late);
    keeper.say(&mut state, late);
    assert_eq!(rig.app.authority.intermediate(), made);
    assert!(!rig.app.readiness.reasons().contains_key(AUTHORITY));
    assert!(keeper.serving.holds(late));
}

#[tokio::test]
async fn a_renewal_that_fails_is_a_warning_at_once_and_tried_again_later() {
    let rig = TestApp::new();
    let (keeper, mut state) = keeper(&rig);
    let (due, key) = (rig.app.clock.now() + DAY * 183, rig.app.standing.root_key_file().to_owned());
    let good = std::fs::read(&key).unwrap();
    std::fs::write(&key, "no key").unwrap();
    keeper.renew(&mut state, due);
    keeper.say(&mut state, due);
    assert!(rig.app.standing.warnings()[0].contains("root.key is malformed"), "{:?}", rig.app.standing);
    std::fs::write(&key, good).unwrap();
    let before = rig.app.authority.intermediate();
    keeper.renew(&mut state, due + SignedDuration::from_secs(10));
    assert_eq!(rig.app.authority.intermediate(), before, "not at every look");
    keeper.renew(&mut state, due + RETRY_AFTER);
    keeper.say(&mut state, due + RETRY_AFTER);
    assert_ne!(rig.app.authority.intermediate(), before);
    assert!(rig.app.standing.warnings().is_empty());
}
