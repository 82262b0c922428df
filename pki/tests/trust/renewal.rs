//! The renewal of the intermediate: the files at each step, and trust while the old intermediate has not ended.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use postern_pki::authority::CaCertificate;
use postern_pki::tls::{client_config, pinned_client_config};
use postern_pki::{Authority, KeyPair, PkiError, SpiffeId, TrustDomain};

use crate::parties::{Ca, HOUR, NAME, agent, alice, handshake, now};

const DAY: Duration = Duration::from_secs(24 * 3600);

fn file(ca: &Ca, name: &str) -> PathBuf {
    ca.dir.path().join(name)
}

fn load(ca: &Ca) -> Authority {
    Authority::load(ca.dir.path(), &TrustDomain::default()).unwrap()
}

fn renew_with(ca: &Ca, root_key: &Path, at: Timestamp) -> Result<CaCertificate, PkiError> {
    Authority::renew(ca.dir.path(), &TrustDomain::default(), root_key, at)
}

/// Renews on disk, and lets the authority take it up.
fn renew(ca: &Ca, at: Timestamp) -> Result<(), PkiError> {
    let made = renew_with(ca, &file(ca, "root.key"), at)?;
    assert!(ca.authority.reload().unwrap() && ca.authority.intermediate() == made);
    Ok(())
}

fn issues(authority: &Authority, identity: &SpiffeId, at: Timestamp) -> Result<Timestamp, PkiError> {
    let key = KeyPair::generate().unwrap();
    authority.issue(&key.csr().unwrap(), identity, HOUR, at).map(|issued| issued.not_after)
}

#[tokio::test]
async fn old_and_new_are_trusted_side_by_side_on_both_sides() {
    let ca = Ca::made_at(now() - DAY);
    let (old_broker, old_agent, old_alice) = (ca.broker(), ca.agent(), ca.principal());
    let old = ca.authority.intermediate();
    renew(&ca, now()).unwrap();
    let new = ca.authority.intermediate();
    assert!(new.serial != old.serial && new.life.not_after > old.life.not_after);
    assert_eq!(ca.authority.previous(now()).unwrap(), [old]);
    let (new_broker, new_agent) = (ca.broker(), ca.agent());
    for broker in [old_broker, new_broker] {
        for client in [&old_agent, &old_alice, &new_agent] {
            handshake(broker.clone(), client_config(client).unwrap(), NAME).await.unwrap();
        }
        let pinned = pinned_client_config(ca.authority.fingerprint()).unwrap();
        handshake(broker, pinned, NAME).await.unwrap();
    }
}

#[tokio::test]
async fn brokers_with_their_own_intermediates_under_one_root_trust_each_others_certificates() {
    let ca = Ca::made_at(now() - DAY);
    let other = Ca { authority: load(&ca), dir: tempfile::tempdir().unwrap() };
    renew(&ca, now()).unwrap();
    assert_ne!(ca.authority.intermediate(), other.authority.intermediate());
    for (broker, client) in [(ca.broker(), other.agent()), (other.broker(), ca.agent())] {
        handshake(broker, client_config(&client).unwrap(), NAME).await.unwrap();
    }
}

#[tokio::test]
async fn i7_an_agent_that_ended_with_its_intermediate_is_admitted_within_the_grace_and_a_person_is_not() {
    let ca = Ca::made_at(now() - DAY * 370);
    let end = ca.authority.intermediate().life.not_after;
    let last = |identity: &SpiffeId| ca.issue(identity, end - HOUR / 2, HOUR);
    let (agent, alice) = (last(&agent()), last(&alice()));
    assert_eq!((agent.not_after(), alice.not_after()), (end, end), "none outlives its intermediate");
    renew(&ca, now()).unwrap();
    handshake(ca.broker(), client_config(&agent).unwrap(), NAME).await.unwrap();
    assert!(handshake(ca.broker(), client_config(&alice).unwrap(), NAME).await.is_err());
}

#[tokio::test]
async fn an_ended_authority_loads_and_is_reported_as_expired_and_signs_nothing_until_it_is_renewed() {
    let ca = Ca::made_at(now() - DAY * 366);
    let authority = load(&ca);
    let refused = issues(&authority, &alice(), now()).unwrap_err();
    assert!(refused.to_string().contains("`postern-broker authority renew --root-key FILE`"), "{refused}");
    for client in [
        client_config(&ca.issue(&agent(), now() - DAY * 2, HOUR)).unwrap(),
        pinned_client_config(authority.fingerprint()).unwrap(),
    ] {
        let error = handshake(ca.broker(), client, NAME).await.err().unwrap();
        assert!(error.contains("certificate expired"), "{error}");
    }
    renew(&ca, now()).unwrap();
    assert!(authority.reload().unwrap() && !authority.reload().unwrap());
    assert!(issues(&authority, &alice(), now()).is_err(), "the one for people has ended as well");
    let (root_key, people_key) = (file(&ca, "root.key"), file(&ca, "people.key"));
    Authority::renew_people(ca.dir.path(), &TrustDomain::default(), &people_key, &root_key, now()).unwrap();
    issues(&authority, &alice(), now()).unwrap();
    assert!(handshake(ca.broker(), client_config(&ca.agent()).unwrap(), NAME).await.is_ok());
}

#[test]
fn a_crash_at_any_step_of_a_renewal_leaves_one_whole_intermediate() {
    let names = ["previous.pem", "intermediate.key", "intermediate.pem"];
    let (before, after) = (Ca::new(), Ca::new());
    for name in ["root.key", "root.pem", "intermediate.key", "intermediate.pem"] {
        fs::copy(file(&before, name), file(&after, name)).unwrap();
    }
    let old = load(&before).intermediate();
    renew_with(&after, &file(&after, "root.key"), now()).unwrap();
    let new = load(&after).intermediate();
    assert_ne!(old, new);
    for (step, name) in names.into_iter().enumerate() {
        // A crash in the middle of a write leaves a part of a temporary file.
        File::create(file(&before, "intermediate.tmp")).unwrap();
        assert_eq!(load(&before).intermediate(), if step < 2 { &old } else { &new }.clone(), "before {name}");
        fs::copy(file(&after, name), file(&before, name)).unwrap();
        issues(&load(&before), &agent(), now()).unwrap();
    }
    assert_eq!(load(&before).intermediate(), new);
    renew_with(&before, &file(&before, "root.key"), now()).unwrap();
}

#[test]
fn a_renewal_that_fails_changes_nothing_and_names_the_reason() {
    let (ca, other) = (Ca::new(), Ca::new());
    let before = ca.authority.intermediate();
    let wrong = renew_with(&ca, &file(&other, "root.key"), now()).unwrap_err();
    assert!(matches!(wrong, PkiError::WrongRootKey { .. }), "{wrong}");
    let missing = renew_with(&ca, &file(&ca, "none.key"), now()).unwrap_err();
    assert!(missing.to_string().contains("none.key"), "{missing}");
    fs::set_permissions(file(&ca, "root.key"), Permissions::from_mode(0o640)).unwrap();
    assert!(matches!(renew(&ca, now()), Err(PkiError::ExposedKey { mode: 0o640, .. })));
    fs::set_permissions(file(&ca, "root.key"), Permissions::from_mode(0o600)).unwrap();
    let late = renew(&ca, now() + DAY * 3651).unwrap_err();
    assert!(matches!(late, PkiError::RootNotValid { .. }), "{late}");
    let lock = File::open(ca.dir.path()).unwrap();
    lock.lock().unwrap();
    assert!(matches!(renew(&ca, now()), Err(PkiError::RenewalUnderWay { .. })));
    drop(lock);
    assert_eq!((load(&ca).intermediate(), ca.authority.intermediate()), (before.clone(), before));
    renew(&ca, now()).unwrap();
}

#[test]
fn a_key_and_a_certificate_in_separate_files_are_read_and_their_replacement_is_taken_up_whole() {
    let ca = Ca::new();
    let path = file(&ca, "intermediate.key");
    let text = fs::read_to_string(&path).unwrap();
    let (key, certificate) = text.split_at(text.find("-----BEGIN CERTIFICATE-----").unwrap());
    assert_eq!(certificate, fs::read_to_string(file(&ca, "intermediate.pem")).unwrap());
    fs::write(&path, key).unwrap();
    let old = load(&ca);
    let made = renew_with(&ca, &file(&ca, "root.key"), now()).unwrap();
    // Half of a copy by hand is refused, and the authority continues with the intermediate that it has.
    let renewed = fs::read_to_string(&path).unwrap();
    fs::write(&path, key.to_owned() + &renewed[renewed.find("-----BEGIN CERTIFICATE-----").unwrap()..])
        .unwrap();
    let Err(PkiError::NoIntermediate(cause)) = old.reload() else { panic!("half of a copy was taken up") };
    assert!(matches!(*cause, PkiError::KeyMismatch), "{cause}");
    issues(&old, &agent(), now()).unwrap();
    fs::write(&path, renewed).unwrap();
    assert!(old.reload().unwrap());
    assert_eq!(old.intermediate(), made);
}

#[test]
fn an_intermediate_that_is_lost_or_damaged_is_made_again_from_the_root_and_its_key_alone() {
    let (ca, other) = (Ca::new(), Ca::new());
    let (path, domain) = (file(&ca, "intermediate.key"), TrustDomain::default());
    let whole = fs::read_to_string(&path).unwrap();
    let damages: [(&str, &dyn Fn()); 5] = [
        ("missing", &|| fs::remove_file(&path).unwrap()),
        ("empty", &|| fs::write(&path, "").unwrap()),
        ("half", &|| fs::write(&path, &whole[..300]).unwrap()),
        ("of another authority", &|| {
            fs::copy(file(&other, "intermediate.key"), &path).unwrap();
        }),
        ("missing with its copies", &|| {
            for name in ["intermediate.key", "intermediate.pem", "previous.pem"] {
                fs::remove_file(file(&ca, name)).unwrap();
            }
        }),
    ];
    for (damage, inflict) in damages {
        inflict();
        let refused = Authority::load(ca.dir.path(), &domain).err().unwrap().to_string();
        assert!(refused.contains("`postern-broker authority renew --root-key FILE`"), "{damage}: {refused}");
        let made = renew_with(&ca, &file(&ca, "root.key"), now()).unwrap();
        let loaded = load(&ca);
        assert_eq!((loaded.intermediate(), loaded.stale_copy()), (made, None), "{damage}");
        issues(&loaded, &agent(), now()).unwrap();
    }
}

#[test]
fn a_copy_for_people_that_a_renewal_left_stale_is_named_and_written_again() {
    let ca = Ca::new();
    let copy = file(&ca, "intermediate.pem");
    let stale = fs::read(&copy).unwrap();
    renew(&ca, now()).unwrap();
    let good = fs::read(&copy).unwrap();
    assert!(!ca.authority.mend_copy().unwrap());
    // As a renewal that was killed leaves it; as another program leaves it; and with none.
    let leave: [&dyn Fn(); 3] =
        [&|| fs::write(&copy, &stale).unwrap(), &|| fs::write(&copy, "no certificate").unwrap(), &|| {
            fs::remove_file(&copy).unwrap()
        }];
    for leave in leave {
        leave();
        assert_eq!(ca.authority.stale_copy(), Some(copy.as_path()));
        assert!(ca.authority.mend_copy().unwrap());
        assert_eq!((fs::read(&copy).unwrap(), ca.authority.stale_copy()), (good.clone(), None));
    }
    fs::write(&copy, &stale).unwrap();
    let renewing = File::open(ca.dir.path()).unwrap();
    renewing.lock().unwrap();
    assert!(matches!(ca.authority.mend_copy(), Err(PkiError::RenewalUnderWay { .. })));
}

#[test]
fn an_intermediate_of_a_clock_that_was_ahead_is_renewed_once_the_clock_is_right() {
    let ca = Ca::new();
    renew(&ca, now() + DAY * 240).unwrap();
    let refused = issues(&ca.authority, &agent(), now()).unwrap_err();
    assert!(matches!(refused, PkiError::AuthorityNotValid { .. }), "{refused}");
    assert!(ca.authority.renew_if_due(&file(&ca, "root.key"), now()).unwrap());
    issues(&ca.authority, &agent(), now()).unwrap();
    assert!(!ca.authority.renew_if_due(&file(&ca, "root.key"), now()).unwrap(), "once");
}

#[test]
fn programs_that_find_an_intermediate_due_at_once_renew_it_once() {
    let ca = Ca::new();
    let (one, other, late) = (load(&ca), load(&ca), now() + DAY * 200);
    assert!(one.renew_if_due(&file(&ca, "root.key"), late).unwrap());
    assert!(!other.renew_if_due(&file(&ca, "root.key"), late).unwrap());
    assert_eq!(one.intermediate(), other.intermediate());
}

#[test]
fn no_intermediate_outlives_its_root() {
    let ca = Ca::new();
    let late = now() + DAY * 3500;
    renew(&ca, late).unwrap();
    assert_eq!(ca.authority.intermediate().life.not_after, ca.authority.root().life.not_after);
    assert!(!ca.authority.is_renewal_due(late + DAY * 100));
}

#[test]
fn only_those_replaced_intermediates_are_listed_that_have_not_ended() {
    let ca = Ca::new();
    for number in 1..=3 {
        renew(&ca, now() + DAY * 150 * number).unwrap();
    }
    assert_eq!(ca.authority.previous(now() + DAY * 450).unwrap().len(), 2);
    assert_eq!(ca.authority.previous(now() + DAY * 1000).unwrap(), []);
}
