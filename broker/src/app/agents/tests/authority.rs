//! Agents whose intermediate is revoked, and while a root is replaced.

use postern_core::audit::Head;
use postern_core::checkpoint::Checkpoint;

use super::*;

#[tokio::test]
async fn i7_under_a_revoked_intermediate_the_key_that_the_record_knows_counts_and_no_certificate() {
    let test = TestApp::new();
    let machine = with(&enrolled(&test).await);
    // The thief of the intermediate's key signs a certificate that ends later than any that the record knows.
    let later = wall() + Duration::from_secs(60);
    let forged = test.app.authority.issue(&csr(), &SpiffeId::Agent(vm()), AGENT_LIFETIME, later).unwrap();
    let thief = with(&forged);
    assert!(!is_renewal_wanted(&test.app, &machine, &AgentRoots::default()));
    test.app.revocations.learn_intermediates([test.app.authority.intermediate().key]);

    assert!(session_of(&test, &thief).await.is_err());
    assert!(renew(&test.app, &thief, &csr()).await.is_err());
    drop(session_of(&test, &machine).await.unwrap());
    assert!(
        !is_renewal_wanted(&test.app, &machine, &AgentRoots::default()),
        "the broker has no other intermediate"
    );
    // The operator replaces the intermediate, and the machine renews under the new one.
    let root_key = test.app.standing.root_key_file();
    let dir = root_key.parent().unwrap();
    postern_pki::Authority::renew(dir, &test.app.trust_domain, root_key, wall()).unwrap();
    test.app.authority.reload().unwrap();
    assert!(is_renewal_wanted(&test.app, &machine, &AgentRoots::default()), "within its session");
    let renewed = with(&renew(&test.app, &machine, &csr()).await.unwrap());
    assert!(!is_renewal_wanted(&test.app, &renewed, &AgentRoots::default()));
    drop(session_of(&test, &renewed).await.unwrap());
    assert!(session_of(&test, &thief).await.is_err());

    // A record of a version without keys knows none: the certificate would be all that proves the agent.
    let Versioned { record, version } = admitted(&test.app, &vm()).await.unwrap();
    let change = Transaction::default()
        .put_agent(AgentRecord { keys: None, ..record }, Expect::Version(version))
        .audit(AuditEvent::done(wall(), "a test", "agent.changed"));
    test.app.store.commit(change).await.unwrap();
    for revoked in [&thief, &machine] {
        assert!(matches!(session_of(&test, revoked).await, Err(Error::Forbidden { .. })));
        assert!(matches!(renew(&test.app, revoked, &csr()).await, Err(Error::Forbidden { .. })));
    }
    session_of(&test, &renewed).await.unwrap();
}

#[tokio::test]
async fn i10_an_agent_that_reports_other_roots_in_each_session_leaves_few_records() {
    let test = TestApp::new();
    let (app, root_key) = (&test.app, test.app.standing.root_key_file());
    let (dir, domain) = (root_key.parent().unwrap(), &test.app.trust_domain);
    let machine = with(&enrolled(&test).await);
    postern_pki::Authority::begin_roll(dir, domain, root_key, None, wall()).unwrap();
    app.authority.reload().unwrap();
    let both = app.authority.root_keys();
    for number in 0..1_000 {
        record_roots(app, &machine, &both[..1 + number % 2]).await.unwrap();
    }
    let records = test.audited("agent.roots_reported").await.len();
    assert!((1..300).contains(&records), "{records}");
}

#[tokio::test]
async fn i10_an_agent_that_repeats_a_proof_against_the_audit_log_leaves_few_records() {
    let test = TestApp::new();
    let domain = test.app.trust_domain.to_string();
    let signed = |byte: u8| {
        let head = Head { seq: 7, hash: byte.to_string().repeat(64).parse().unwrap() };
        let checkpoint = Checkpoint::of(&domain, &domain, head, wall(), None);
        test.app.authority.sign_checkpoint(checkpoint).unwrap().to_string()
    };
    let (kept, received) = (signed(1), signed(2));
    for _ in 0..1_000 {
        record_contradiction(&test.app, &vm(), &kept, &received).await.unwrap();
    }
    let records = test.audited("agent.audit_contradicted").await.len();
    assert!((1..300).contains(&records), "{records}");
    test.app.summarize_denials(true).await.unwrap();
    let omitted = test.events().await.into_iter().find(|event| event.action == "tampering.omitted").unwrap();
    assert_eq!(omitted.details["count"], (1_000 - records).to_string());
}

#[tokio::test]
async fn while_a_root_is_replaced_agents_are_asked_to_renew_until_they_trust_it_and_are_under_it() {
    let test = TestApp::new();
    let (app, root_key) = (&test.app, test.app.standing.root_key_file());
    let (dir, domain) = (root_key.parent().unwrap(), &test.app.trust_domain);
    let machine = with(&enrolled(&test).await);
    let old_roots = app.authority.root_keys();
    record_roots(app, &machine, &old_roots).await.unwrap();
    let recorded = async || admitted(app, &vm()).await.unwrap().record.roots;
    assert_eq!(recorded().await, [], "nothing is recorded while no root is replaced");

    postern_pki::Authority::begin_roll(dir, domain, root_key, None, wall()).unwrap();
    app.authority.reload().unwrap();
    let both = app.authority.root_keys();
    let wants = |caller: &AgentCaller, trusted: &[KeyHash], of_certificate: Option<KeyHash>| {
        is_renewal_wanted(app, caller, &AgentRoots { trusted: trusted.to_vec(), of_certificate })
    };
    assert!(wants(&machine, &old_roots, None) && !wants(&machine, &both, None));
    for roots in [&old_roots, &both, &both] {
        record_roots(app, &machine, roots).await.unwrap();
        assert_eq!(recorded().await, *roots);
    }
    assert_eq!(test.audited("agent.roots_reported").await.len(), 2, "once for each change");

    postern_pki::Authority::switch_root(dir, domain, None, &dir.join("people.key"), wall()).unwrap();
    app.authority.reload().unwrap();
    let before = AgentCaller { certificate_issued_at: wall() - Duration::from_secs(60), ..machine.clone() };
    assert!(wants(&before, &both, None));
    let after = AgentCaller { certificate_issued_at: wall() + Duration::from_secs(1), ..machine };
    assert!(!wants(&after, &both, None) && wants(&after, &old_roots, None));
    // Another broker has ended the replacement: the agent has dropped the old root for good.
    assert!(!wants(&after, &both[1..], None));
    // Another broker switched earlier, or switches later: the root of the certificate counts, and not its time.
    let [old, next] = both[..] else { panic!("two roots") };
    assert!(!wants(&before, &both, Some(next)) && wants(&after, &both, Some(old)));
    let issued = renew(app, &before, &csr()).await.unwrap();
    assert_eq!(
        (issued.root, admitted(app, &vm()).await.unwrap().record.certificate_root),
        (next, Some(next))
    );
}
