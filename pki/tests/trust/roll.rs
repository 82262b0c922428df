//! The replacement of the root: no party is enrolled again, and each step survives a crash.

use std::fs;
use std::path::{Path, PathBuf};

use postern_pki::authority::{CaCertificate, PeopleOutcome, RollPhase};
use postern_pki::succession::SuccessionError;
use postern_pki::tls::{LearnedRoots, client_config, client_config_learning, pinned_client_config};
use postern_pki::{Authority, Credentials, KeyPair, PkiError, TrustDomain};

use crate::forgery::{Forgery, a_single_intermediate};
use crate::parties::{Ca, HOUR, NAME, agent, alice, handshake, now};

fn file(ca: &Ca, name: &str) -> PathBuf {
    ca.dir.path().join(name)
}

fn begin(ca: &Ca) -> Result<CaCertificate, PkiError> {
    let made =
        Authority::begin_roll(ca.dir.path(), &TrustDomain::default(), &file(ca, "root.key"), None, now());
    ca.authority.reload()?;
    made
}

fn switch(ca: &Ca) -> Result<PeopleOutcome, PkiError> {
    let people_key = file(ca, "people.key");
    let made = Authority::switch_root(ca.dir.path(), &TrustDomain::default(), None, &people_key, now());
    ca.authority.reload()?;
    made
}

fn finish(ca: &Ca) -> Result<CaCertificate, PkiError> {
    let made = Authority::finish_roll(ca.dir.path(), now(), false);
    ca.authority.reload()?;
    made
}

/// Renews an agent's identity as a broker does now, and returns what the agent makes of it.
fn renewed(ca: &Ca, old: &Credentials) -> Result<Credentials, SuccessionError> {
    let key = KeyPair::generate().unwrap();
    let issued = ca.authority.issue(&key.csr().unwrap(), &agent(), HOUR, now()).unwrap();
    let new = Credentials::new(key, issued.chain, ca.authority.roots()).unwrap();
    new.into_successor_of(old, now())
}

async fn connects(ca: &Ca, client: &Credentials) -> bool {
    handshake(ca.broker(), client_config(client).unwrap(), NAME).await.is_ok()
}

async fn enrols(ca: &Ca) -> bool {
    let pinned = pinned_client_config(ca.authority.fingerprint()).unwrap();
    let key = KeyPair::generate().unwrap();
    let issued = ca.authority.issue(&key.csr().unwrap(), &agent(), HOUR, now()).unwrap();
    let first = Credentials::new(key, issued.chain, ca.authority.roots()).unwrap();
    handshake(ca.broker(), pinned, NAME).await.is_ok()
        && first.into_first_under(ca.authority.fingerprint(), now()).is_ok()
}

#[tokio::test]
async fn the_root_is_replaced_and_no_party_is_enrolled_again() {
    for ca in [Ca::new(), a_single_intermediate()] {
        let (old_agent, old_alice, old_roots) = (ca.agent(), ca.principal(), ca.authority.roots());
        assert_eq!(ca.authority.phase(), RollPhase::Settled);

        let next = begin(&ca).unwrap();
        assert_eq!((ca.authority.phase(), ca.authority.roots().len()), (RollPhase::Begun, 2));
        assert_eq!(ca.authority.roots()[..1], old_roots[..], "the old one first");
        assert!(connects(&ca, &old_agent).await && connects(&ca, &old_alice).await && enrols(&ca).await);
        let learned = renewed(&ca, &old_agent).unwrap();
        assert_eq!(learned.roots(), ca.authority.roots());
        let new_alice_before = ca.principal();

        assert!(matches!(switch(&ca).unwrap(), PeopleOutcome::Renewed(_)));
        assert_eq!((ca.authority.phase(), ca.authority.root()), (RollPhase::Switched, next.clone()));
        // The one that learned, the ones that know the old root alone, and one that enrols now.
        for client in [&learned, &old_agent, &old_alice, &new_alice_before, &ca.principal()] {
            assert!(connects(&ca, client).await);
        }
        assert!(enrols(&ca).await);
        let late = renewed(&ca, &old_agent).unwrap();
        assert_eq!(late.roots(), ca.authority.roots(), "an agent that missed the first step learns now");
        let current = renewed(&ca, &learned).unwrap();
        assert!(connects(&ca, &current).await);
        let new_alice = ca.principal();

        assert_eq!(finish(&ca).unwrap(), next);
        assert_eq!((ca.authority.phase(), ca.authority.root()), (RollPhase::Settled, next));
        assert_eq!(ca.authority.roots().len(), 1);
        for client in [&current, &late, &new_alice] {
            assert!(connects(&ca, client).await);
        }
        assert!(!connects(&ca, &old_agent).await && !connects(&ca, &old_alice).await, "the old root is gone");
        let last = renewed(&ca, &current).unwrap();
        assert_eq!(last.roots(), ca.authority.roots());
        assert!(enrols(&ca).await);
        // The next root's key is the root's key now: it renews.
        Authority::renew(ca.dir.path(), &TrustDomain::default(), &file(&ca, "root.key"), now()).unwrap();
        assert!(file(&ca, "retired-root.key").exists());
    }
}

#[tokio::test]
async fn a_command_learns_the_next_root_from_the_brokers_chain_and_drops_the_old_one_at_the_end() {
    // The clock that made the old root was ahead.
    let ca = Ca::made_at(now() + std::time::Duration::from_secs(5));
    let alice = ca.principal();
    let learns = async |client: &Credentials| {
        let learned = std::sync::Arc::new(LearnedRoots::default());
        handshake(ca.broker(), client_config_learning(client, &learned).unwrap(), NAME).await.unwrap();
        learned.take()
    };
    assert_eq!(learns(&alice).await, None);
    let old = Authority::load(ca.dir.path(), &TrustDomain::default()).unwrap();
    begin(&ca).unwrap();
    let both = ca.authority.roots();
    assert_eq!(learns(&alice).await.as_ref(), Some(&both));
    // A broker that has not begun shows the old root alone, and takes the next one from no client.
    let dir = tempfile::tempdir().unwrap();
    ca.principal().save(dir.path()).unwrap();
    Credentials::save_roots(dir.path(), &both).unwrap();
    let alice = Credentials::load(dir.path()).unwrap();
    assert_eq!(learns(&alice).await, None);
    switch(&ca).unwrap();
    assert_eq!(learns(&alice).await, None);
    ca.principal().save(dir.path()).unwrap();
    let alice = Credentials::load(dir.path()).unwrap();
    // A thief of the old intermediate shows the next root, which is public, to make the command drop the old one.
    let old = Ca { authority: old, dir: tempfile::tempdir().unwrap() };
    let key = KeyPair::generate().unwrap();
    let issued = old.authority.issue_server(&key.csr().unwrap(), &[NAME.to_owned()], HOUR, now()).unwrap();
    let thief = Credentials::new(key, issued.chain, both[1..].to_vec()).unwrap();
    let learned = std::sync::Arc::new(LearnedRoots::default());
    let client = client_config_learning(&alice, &learned).unwrap();
    handshake(ca.serving(thief), client, NAME).await.err();
    assert_eq!(learned.take(), None);
    finish(&ca).unwrap();
    assert_eq!(learns(&alice).await, Some(both[1..].to_vec()));
}

#[test]
fn i7_the_holder_of_an_intermediates_key_names_no_root() {
    let ca = Ca::new();
    let old = ca.agent();
    // The stolen intermediate as a root: its certificate is of that name and key, and signed by the root.
    let mut roots = ca.authority.roots();
    roots.push(Forgery::by(&ca, "intermediate").root());
    let new = |roots: Vec<Vec<u8>>| {
        let key = KeyPair::generate().unwrap();
        let issued = ca.authority.issue(&key.csr().unwrap(), &agent(), HOUR, now()).unwrap();
        Credentials::new(key, issued.chain, roots).unwrap()
    };
    let own = ca.authority.roots();
    assert_eq!(new(roots.clone()).into_successor_of(&old, now()).unwrap().roots(), own);
    let pinned = ca.authority.fingerprint();
    assert_eq!(new(roots.clone()).into_first_under(pinned, now()).unwrap().roots(), own);
    let refused = new(roots[1..].to_vec()).into_successor_of(&old, now()).unwrap_err();
    assert!(matches!(refused, SuccessionError::UnknownRoot), "{refused}");
    let refused = new(roots[1..].to_vec()).into_first_under(pinned, now()).unwrap_err();
    assert!(matches!(refused, SuccessionError::NotPinned), "{refused}");
}

#[tokio::test]
async fn an_agent_that_learned_the_end_from_one_broker_renews_at_one_that_has_not_finished() {
    let ca = Ca::new();
    begin(&ca).unwrap();
    switch(&ca).unwrap();
    // The other broker has a copy of the files, and is one step behind.
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(ca.dir.path()).unwrap().map(Result::unwrap) {
        fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    let authority = Authority::load(dir.path(), &TrustDomain::default()).unwrap();
    let behind = Ca { authority, dir };
    let of_both = ca.agent();
    finish(&ca).unwrap();
    let [next] = &ca.authority.roots()[..] else { panic!("two roots after the end") };
    assert_eq!(behind.authority.roots().len(), 2);

    let ended = renewed(&ca, &of_both).unwrap();
    assert_eq!(ended.roots(), std::slice::from_ref(next));
    // It does not take the old root back, and renews again and again at either.
    let mut machine = ended;
    for at in [&behind, &behind, &ca, &behind] {
        machine = renewed(at, &machine).unwrap();
        assert_eq!(machine.roots(), std::slice::from_ref(next));
        assert!(connects(&ca, &machine).await && connects(&behind, &machine).await);
    }
    // So does an agent that enrols at the one with a token of the other.
    let issued = KeyPair::generate().unwrap();
    let certificate = behind.authority.issue(&issued.csr().unwrap(), &agent(), HOUR, now()).unwrap();
    let first = Credentials::new(issued, certificate.chain, behind.authority.roots()).unwrap();
    let first = first.into_first_under(ca.authority.fingerprint(), now()).unwrap();
    assert_eq!(first.roots(), std::slice::from_ref(next));
}

#[test]
fn each_step_can_be_repeated_and_completes_an_interrupted_one() {
    let ca = Ca::new();
    assert!(matches!(switch(&ca), Err(PkiError::NoRoll)));
    let refused = finish(&ca).unwrap_err();
    assert!(refused.to_string().contains("no root is being replaced, and nothing was changed"), "{refused}");
    let old_root_key = fs::read(file(&ca, "root.key")).unwrap();

    // Killed after the key: the same key is used.
    begin(&ca).unwrap();
    let next_key = fs::read(file(&ca, "next-root.key")).unwrap();
    fs::remove_file(file(&ca, "roll.pem")).unwrap();
    ca.authority.reload().unwrap();
    let next = begin(&ca).unwrap();
    assert_eq!(fs::read(file(&ca, "next-root.key")).unwrap(), next_key);
    assert_eq!(begin(&ca).unwrap(), next, "a repeated begin changes nothing");
    assert!(matches!(finish(&ca), Err(PkiError::NotSwitched)));

    // Killed between the two intermediates.
    let (old_agents, old_people) =
        (fs::read(file(&ca, "intermediate.key")).unwrap(), ca.authority.people().unwrap());
    switch(&ca).unwrap();
    assert_ne!(ca.authority.people().unwrap(), old_people);
    let people = ca.authority.people().unwrap();
    fs::write(file(&ca, "intermediate.key"), &old_agents).unwrap();
    // Killed between the two renames of the root keys.
    fs::rename(file(&ca, "root.key"), file(&ca, "next-root.key")).unwrap();
    ca.authority.reload().unwrap();
    assert_eq!(ca.authority.phase(), RollPhase::Begun);
    assert_eq!(switch(&ca).unwrap(), PeopleOutcome::Kept);
    assert_eq!((ca.authority.people().unwrap(), ca.authority.phase()), (people, RollPhase::Switched));
    assert_eq!(fs::read(file(&ca, "root.key")).unwrap(), next_key);
    assert_eq!(fs::read(file(&ca, "retired-root.key")).unwrap(), old_root_key);
    let agents = ca.authority.intermediate();
    switch(&ca).unwrap();
    assert_eq!(ca.authority.intermediate(), agents, "a repeated switch changes nothing");
    assert_eq!(begin(&ca).unwrap(), next, "nor does a late begin");

    // Killed between root.pem and the removal of roll.pem.
    let roll = fs::read(file(&ca, "roll.pem")).unwrap();
    finish(&ca).unwrap();
    fs::write(file(&ca, "roll.pem"), roll).unwrap();
    ca.authority.reload().unwrap();
    assert_eq!((ca.authority.phase(), ca.authority.roots().len()), (RollPhase::Settled, 1));
    assert_eq!(finish(&ca).unwrap(), next);
    assert!(!file(&ca, "roll.pem").exists());
    assert!(matches!(finish(&ca), Err(PkiError::NothingToFinish { .. })), "it is done");
}

#[test]
fn with_keys_elsewhere_each_step_names_the_key_that_it_needs() {
    let (ca, stick) = (Ca::new(), tempfile::tempdir().unwrap());
    let at = |name: &str| stick.path().join(name);
    for name in ["root.key", "people.key"] {
        fs::rename(file(&ca, name), at(name)).unwrap();
    }
    let (dir, domain) = (ca.dir.path(), TrustDomain::default());
    let begin = |old: &Path, new: &Path| Authority::begin_roll(dir, &domain, old, Some(new), now());
    assert!(matches!(begin(&at("people.key"), &at("new.key")), Err(PkiError::WrongRootKey { .. })));
    assert!(matches!(begin(&at("root.key"), &at("root.key")), Err(PkiError::SameRootKey { .. })));
    assert!(!file(&ca, "roll.pem").exists() && !at("new.key").exists());
    begin(&at("root.key"), &at("new.key")).unwrap();
    let switch = |new: &Path, people: &Path| Authority::switch_root(dir, &domain, Some(new), people, now());
    assert!(matches!(switch(&at("root.key"), &at("people.key")), Err(PkiError::WrongRootKey { .. })));
    let absent = file(&ca, "people.key");
    assert_eq!(switch(&at("new.key"), &absent).unwrap(), PeopleOutcome::Offline(absent));
    let refused = Authority::finish_roll(dir, now(), false).unwrap_err();
    assert!(refused.to_string().contains("--people-key"), "{refused}");
    assert!(matches!(switch(&at("new.key"), &at("people.key")).unwrap(), PeopleOutcome::Renewed(_)));
    Authority::finish_roll(dir, now(), false).unwrap();
    ca.authority.reload().unwrap();
    let signed = ca.authority.issue(&KeyPair::generate().unwrap().csr().unwrap(), &alice(), HOUR, now());
    assert!(matches!(signed, Err(PkiError::NoPeopleKey { .. })));
    assert!(!file(&ca, "root.key").exists());
}
