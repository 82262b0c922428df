//! The two intermediates: each signs for its own parties alone, and both sides of a handshake check it.

use std::fs;

use postern_core::{Name, Role};
use postern_pki::authority::PeopleOutcome;
use postern_pki::purpose::Purpose;
use postern_pki::tls::{client_config, pinned_client_config};
use postern_pki::{Authority, Credentials, KeyPair, PkiError, SpiffeId, TrustDomain};

use crate::forgery::{Forgery, a_single_intermediate};
use crate::parties::{Ca, HOUR, NAME, agent, alice, handshake, now};

fn administrator() -> SpiffeId {
    SpiffeId::Principal { role: Role::Administrator, name: Name::new("eve").unwrap() }
}

/// Reports whether a broker of the authority admits a client.
async fn admits(ca: &Ca, client: &Credentials) -> bool {
    handshake(ca.broker(), client_config(client).unwrap(), NAME).await.is_ok()
}

/// Reports whether an enrolled agent and one that enrols trust a server.
async fn is_trusted(ca: &Ca, server: Credentials) -> (bool, bool) {
    let server = ca.serving(server);
    let pinned = pinned_client_config(ca.authority.fingerprint()).unwrap();
    let enrolled = client_config(&ca.agent()).unwrap();
    (handshake(server.clone(), enrolled, NAME).await.is_ok(), handshake(server, pinned, NAME).await.is_ok())
}

#[tokio::test]
async fn i7_each_intermediate_signs_for_its_own_parties_alone() {
    let ca = Ca::new();
    assert_eq!(ca.authority.intermediate().purpose, Some(Purpose::Agents));
    assert_eq!(ca.authority.people().unwrap().unwrap().purpose, Some(Purpose::People));
    for (signer, id, admitted) in [
        ("intermediate", agent(), true),
        ("intermediate", SpiffeId::Broker, true),
        ("intermediate", alice(), false),
        ("intermediate", administrator(), false),
        ("people", agent(), false),
        ("people", SpiffeId::Broker, false),
        ("people", alice(), true),
        ("people", administrator(), true),
    ] {
        let client = Forgery::by(&ca, signer).of(&id);
        assert_eq!(admits(&ca, &client).await, admitted, "{signer} for {id:?}");
    }
    let by = |signer| Forgery::by(&ca, signer).of(&SpiffeId::Broker);
    assert_eq!(is_trusted(&ca, by("intermediate")).await, (true, true));
    assert_eq!(is_trusted(&ca, by("people")).await, (false, false));
}

#[tokio::test]
async fn i7_further_certificates_in_a_chain_hide_no_mark() {
    let ca = Ca::new();
    let forgery = || Forgery::by(&ca, "intermediate");
    // The thief has the key for agents, and makes a certificate of it that is marked for people.
    let own = forgery().remarked(Purpose::People);
    let people = forgery().certificate("people");
    for chain in [vec![own.clone()], vec![people.clone()], vec![own, people]] {
        for before in [true, false] {
            let forged = forgery().with(chain.clone(), before).of(&administrator());
            assert!(!admits(&ca, &forged).await, "{} more, before the signer: {before}", chain.len());
        }
    }
    // More certificates of the signer's name than any chain needs.
    let many = vec![forgery().certificate("intermediate"); 8];
    assert!(!admits(&ca, &forgery().with(many, false).of(&agent())).await);
    assert!(admits(&ca, &forgery().with(vec![forgery().certificate("people")], false).of(&agent())).await);
}

#[test]
fn without_the_key_for_people_the_authority_signs_for_agents_alone() {
    let ca = Ca::new();
    let elsewhere = tempfile::tempdir().unwrap();
    let key = elsewhere.path().join("people.key");
    fs::rename(ca.dir.path().join("people.key"), &key).unwrap();
    let csr = KeyPair::generate().unwrap().csr().unwrap();
    ca.authority.issue(&csr, &agent(), HOUR, now()).unwrap();
    let refused = ca.authority.issue(&csr, &alice(), HOUR, now()).unwrap_err();
    assert!(matches!(refused, PkiError::NoPeopleKey { .. }), "{refused}");
    assert!(refused.to_string().contains("--people-key"), "{refused}");
    // The certificate of the intermediate stays on the machine, and its end is known.
    assert!(ca.authority.people().unwrap().is_some());
    let domain = TrustDomain::default();
    let authority = Authority::load(ca.dir.path(), &domain).unwrap().with_people_key(&key);
    authority.issue(&csr, &alice(), HOUR, now()).unwrap();
    // A renewal that does not have the key leaves the intermediate as it is, and one that has it replaces it.
    let renew = |people_key| {
        let root_key = ca.dir.path().join("root.key");
        Authority::renew_people(ca.dir.path(), &domain, people_key, &root_key, now()).unwrap()
    };
    let before = authority.people().unwrap().unwrap();
    let absent = ca.dir.path().join("people.key");
    assert_eq!(renew(&absent), PeopleOutcome::Offline(absent.clone()));
    assert_eq!(authority.people().unwrap().unwrap(), before);
    let PeopleOutcome::Renewed(made) = renew(&key) else { panic!("it is not renewed") };
    assert!(*made != before && authority.people().unwrap().unwrap() == *made);
    assert!(!absent.exists());
}

#[tokio::test]
async fn i7_an_authority_with_one_intermediate_goes_on_until_its_renewal_makes_two() {
    let ca = a_single_intermediate();
    let (domain, root_key) = (TrustDomain::default(), ca.dir.path().join("root.key"));
    assert_eq!((ca.authority.intermediate().purpose, ca.authority.people().unwrap()), (None, None));
    let (old_agent, old_alice) = (ca.agent(), ca.principal());
    assert!(admits(&ca, &old_agent).await && admits(&ca, &old_alice).await);

    let people_key = ca.dir.path().join("people.key");
    Authority::renew_people(ca.dir.path(), &domain, &people_key, &root_key, now()).unwrap();
    Authority::renew(ca.dir.path(), &domain, &root_key, now()).unwrap();
    assert!(ca.authority.reload().unwrap());
    assert_eq!(ca.authority.intermediate().purpose, Some(Purpose::Agents));
    for client in [&old_agent, &old_alice, &ca.agent(), &ca.principal()] {
        assert!(admits(&ca, client).await, "certificates of the old one are good until their ends");
    }
    let forged = Forgery::by(&ca, "intermediate").of(&administrator());
    assert!(!admits(&ca, &forged).await);
}

#[test]
fn a_renewal_that_is_due_makes_two_intermediates_of_one() {
    let ca = a_single_intermediate();
    let later = now() + HOUR * 24 * 200;
    assert!(ca.authority.renew_if_due(&ca.dir.path().join("root.key"), later).unwrap());
    assert_eq!(ca.authority.intermediate().purpose, Some(Purpose::Agents));
    assert_eq!(ca.authority.people().unwrap().unwrap().purpose, Some(Purpose::People));
}
