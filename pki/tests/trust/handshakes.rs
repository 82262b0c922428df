//! Handshakes between brokers, agents and clients.

use std::sync::Arc;
use std::time::Duration;

use postern_pki::tls::{client_config, pinned_client_config};
use rustls::crypto::ring;
use rustls::{ClientConfig, RootCertStore};

use crate::parties::{Ca, HOUR, NAME, agent, alice, handshake, now};

#[tokio::test]
async fn i7_the_broker_learns_its_peers_identity_from_the_certificate_alone() {
    let ca = Ca::new();
    for (credentials, identity) in [(ca.agent(), agent()), (ca.principal(), alice())] {
        let outcome = handshake(ca.broker(), client_config(&credentials).unwrap(), NAME).await.unwrap();
        assert_eq!(outcome.peer, Some(identity));
    }
    let by_address = handshake(ca.broker(), client_config(&ca.agent()).unwrap(), "192.0.2.1").await;
    assert!(by_address.is_ok());
}

#[tokio::test]
async fn i7_a_certificate_of_another_authority_is_refused_by_both_sides() {
    let (ca, other) = (Ca::new(), Ca::new());
    let error = handshake(ca.broker(), client_config(&other.agent()).unwrap(), NAME).await.err().unwrap();
    assert!(error.contains("invalid peer certificate"), "the client refuses the broker: {error}");
    // A certificate of the other authority whose holder trusts this broker: now the broker refuses.
    let key = postern_pki::KeyPair::generate().unwrap();
    let issued = other.authority.issue(&key.csr().unwrap(), &agent(), HOUR, now()).unwrap();
    let forged = postern_pki::Credentials::new(key, issued.chain, ca.authority.roots()).unwrap();
    assert!(handshake(ca.broker(), client_config(&forged).unwrap(), NAME).await.is_err());
}

#[tokio::test]
async fn i7_an_expired_certificate_is_refused_but_for_an_agents_that_ended_not_long_ago() {
    let days = |days: u64| HOUR * 24 * u32::try_from(days).unwrap();
    // The broker can read the end of the certificate, and must check it.
    let ca = Ca::made_at(now() - days(60));
    let ended =
        |identity: &postern_pki::SpiffeId, ago: Duration| ca.issue(identity, now() - ago - HOUR, HOUR);
    for (identity, ago, admitted) in [
        (agent(), Duration::from_secs(10), true),
        (agent(), days(29), true),
        (agent(), days(31), false),
        (alice(), Duration::from_secs(10), false),
    ] {
        let outcome = handshake(ca.broker(), client_config(&ended(&identity, ago)).unwrap(), NAME).await;
        assert_eq!(outcome.is_ok(), admitted, "{identity:?} {ago:?} ago");
    }
    // The grace is for the end alone: a certificate with another fault stays refused.
    let other = Ca::made_at(now() - days(60));
    let key = postern_pki::KeyPair::generate().unwrap();
    let issued = other.authority.issue(&key.csr().unwrap(), &agent(), HOUR, now() - days(1)).unwrap();
    let forged = postern_pki::Credentials::new(key, issued.chain, ca.authority.roots()).unwrap();
    assert!(handshake(ca.broker(), client_config(&forged).unwrap(), NAME).await.is_err());
}

#[tokio::test]
async fn i7_no_agent_and_no_principal_can_play_the_broker() {
    let ca = Ca::new();
    for impostor in [ca.agent(), ca.principal()] {
        let server = ca.serving(impostor);
        assert!(handshake(Arc::clone(&server), client_config(&ca.agent()).unwrap(), NAME).await.is_err());
        let pinned = pinned_client_config(ca.authority.fingerprint()).unwrap();
        assert!(handshake(server, pinned, NAME).await.is_err());
    }
}

#[tokio::test]
async fn i7_a_broker_has_the_brokers_one_id_besides_its_name() {
    let ca = Ca::new();
    let (broker, agent) = ("spiffe://postern/broker", "spiffe://postern/agent/host/vm-1");
    let principal = "spiffe://postern/principal/administrator/eve";
    for (ids, good) in [
        (&[broker][..], true),
        (&[agent], false),
        (&[principal], false),
        (&[broker, agent], false),
        (&[broker, broker], false),
        (&["https://postern/broker"], false),
        (&[], false),
    ] {
        for client in [client_config(&ca.agent()), pinned_client_config(ca.authority.fingerprint())] {
            let outcome = handshake(ca.forged(ids), client.unwrap(), NAME).await;
            assert_eq!(outcome.is_ok(), good, "{ids:?}: {:?}", outcome.err());
        }
    }
    let elsewhere =
        handshake(ca.forged(&["spiffe://elsewhere/broker"]), client_config(&ca.agent()).unwrap(), NAME);
    assert!(elsewhere.await.is_err(), "of another trust domain, though of the same authority");
}

#[tokio::test]
async fn i7_a_broker_is_refused_before_and_after_its_certificates_time() {
    let day = HOUR * 24;
    let ca = Ca::made_at(now() - day);
    for (at, problem) in
        [(now(), None), (now() - 2 * HOUR, Some("expired")), (now() + HOUR, Some("not valid yet"))]
    {
        for client in [client_config(&ca.agent()), pinned_client_config(ca.authority.fingerprint())] {
            let error = handshake(ca.broker_issued_at(at), client.unwrap(), NAME).await.err();
            let as_expected = match problem {
                Some(problem) => error.as_ref().is_some_and(|error| error.contains(problem)),
                None => error.is_none(),
            };
            assert!(as_expected, "{at} {error:?}");
        }
    }
}

#[tokio::test]
async fn i7_a_broker_is_the_one_of_its_name() {
    let ca = Ca::new();
    let error =
        handshake(ca.broker(), client_config(&ca.agent()).unwrap(), "other.example.org").await.err().unwrap();
    assert!(error.contains("not valid for name") || error.contains("NotValidForName"), "{error}");
}

#[tokio::test]
async fn an_enrolling_agent_trusts_the_root_that_its_token_pins_and_no_other() {
    let (ca, other) = (Ca::new(), Ca::new());
    let pinned = || pinned_client_config(ca.authority.fingerprint()).unwrap();
    let outcome = handshake(ca.broker(), pinned(), NAME).await.unwrap();
    assert_eq!(outcome.peer, None, "the agent has no certificate yet");
    let error = handshake(other.broker(), pinned(), NAME).await.err().unwrap();
    assert!(error.contains("UnknownIssuer"), "{error}");
    assert!(handshake(ca.broker(), pinned(), "other.example.org").await.is_err());
}

#[tokio::test]
async fn only_tls_1_3_is_spoken() {
    let ca = Ca::new();
    let mut roots = RootCertStore::empty();
    for root in ca.authority.roots() {
        roots.add(root.into()).unwrap();
    }
    let speaking = |version: &'static rustls::SupportedProtocolVersion| {
        let provider = Arc::new(ring::default_provider());
        let builder =
            ClientConfig::builder_with_provider(provider).with_protocol_versions(&[version]).unwrap();
        let mut config = builder.with_root_certificates(roots.clone()).with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Arc::new(config)
    };
    let error = handshake(ca.broker(), speaking(&rustls::version::TLS12), NAME).await.err().unwrap();
    assert!(error.contains("ProtocolVersion"), "{error}");
    assert!(handshake(ca.broker(), speaking(&rustls::version::TLS13), NAME).await.is_ok(), "the control");
}
