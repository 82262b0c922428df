//! Records as stores of schema 2 kept them, byte for byte, and the checks of a store that was upgraded from it.

use postern_core::audit::{AuditEvent, AuditRecord, Head, verify};

use crate::error::StoreError;
use crate::records::grant::GrantQuery;
use crate::records::token::TokenHash;
use crate::testing::builders::{a_policy, key as principal_key, name, start};
use crate::testing::conformance::Leasing;
use crate::transaction::Transaction;
use crate::{Expect, Store};

/// A grant, with the columns and indexes that were kept beside its body.
pub(crate) struct OldGrant {
    pub(crate) id: &'static str,
    pub(crate) version: u64,
    pub(crate) state: &'static str,
    pub(crate) is_open: bool,
    pub(crate) principal: &'static str,
    pub(crate) target: &'static str,
    pub(crate) body: &'static str,
}

pub(crate) const GRANTS: [OldGrant; 3] = [
    OldGrant {
        id: "01m8m2vwk16jfpqpqj7qjvr0jq",
        version: 1,
        state: "opening",
        is_open: true,
        principal: "alice",
        target: "host:vm-1",
        body: r#"{"id":"01m8m2vwk16jfpqpqj7qjvr0jq","principal":{"role":"requester","name":"alice"},"justification":"old bytes","requested_at":"2026-11-29T16:40:29.537073335Z","duration":{"secs":7200,"nanos":0},"windows":[{"target":"host:vm-1","port":"tcp/22","source":"127.0.0.1/32","layers":"host"}],"unreachable":"wait","not_after":"2026-11-29T18:40:29.537073335Z","open_by":"2026-11-29T18:40:29.537073335Z","opened_at":null,"closing_since":null,"closed_at":null,"state":"opening"}"#,
    },
    OldGrant {
        id: "01m8m2vwnfqrj9j1j29y60vbw9",
        version: 2,
        state: "closing",
        is_open: true,
        principal: "bob",
        target: "host:vm-2",
        body: r#"{"id":"01m8m2vwnfqrj9j1j29y60vbw9","principal":{"role":"requester","name":"bob"},"justification":"old bytes","requested_at":"2026-11-29T16:40:29.615587082Z","duration":{"secs":7200,"nanos":0},"windows":[{"target":"host:vm-2","port":"tcp/22","source":"127.0.0.1/32","layers":"host"}],"unreachable":"wait","not_after":"2026-11-29T18:40:29.615587082Z","open_by":"2026-11-29T18:40:29.615587082Z","opened_at":null,"closing_since":"2026-11-29T16:40:29.976316647Z","closed_at":null,"state":{"closing":{"revoked":{"by":{"role":"administrator","name":"admin"},"reason":"done"}}}}"#,
    },
    OldGrant {
        id: "01n5zvk61ffdjm6jtqy4hkxvre",
        version: 4,
        state: "closed",
        is_open: false,
        principal: "alice",
        target: "host:vm-1",
        body: r#"{"id":"01n5zvk61ffdjm6jtqy4hkxvre","principal":{"role":"requester","name":"alice"},"justification":"x","requested_at":"2027-11-29T15:59:30.351520168Z","duration":{"secs":3600,"nanos":0},"windows":[{"target":"host:vm-1","port":"tcp/22","source":"192.0.2.20/32","layers":"both"}],"unreachable":"fail","not_after":"2027-11-29T16:59:30.351520168Z","open_by":"2027-11-29T16:00:00.351520168Z","opened_at":"2027-11-29T15:59:30.405557291Z","closing_since":"2027-11-30T16:29:30.992986009Z","closed_at":"2027-11-30T16:29:34.04189041Z","state":{"closed":"expired"}}"#,
    },
];

/// Requests: the principal, the idempotency key, and the grant.
pub(crate) const REQUESTS: [(&str, &str, &str); 2] = [
    ("alice", "k1", "01m8m2vwk16jfpqpqj7qjvr0jq"),
    ("bob", "a key \"with\" spaces", "01m8m2vwnfqrj9j1j29y60vbw9"),
];

/// Policies: the name, the version, and the body; the second one is deleted.
pub(crate) const POLICIES: [(&str, u64, Option<&str>); 2] = [
    (
        "web",
        3,
        Some(
            r#"{"name":"web","targets":["host:vm-*"],"ports":[{"port":"tcp/22","sources":["*"],"max_duration":{"secs":10800,"nanos":0}}],"requesters":["alice"],"approval_required":false,"layers":"host","unreachable":"wait","mode":"enforce"}"#,
        ),
    ),
    ("usual", 2, None),
];

/// Agents: the target, the version, and the body.
pub(crate) const AGENTS: [(&str, u64, &str); 1] = [(
    "host:vm-1",
    21,
    r#"{"target":"host:vm-1","enrolled_at":"2026-11-29T16:28:25.305398827Z","certificate_not_after":"2028-01-29T17:29:46Z","banned":null}"#,
)];

/// Join tokens: the hash, and the body.
pub(crate) const TOKENS: [([u8; 32], &str); 1] = [(
    [0xab; 32],
    r#"{"target":"host:vm-2","created_at":"2026-11-29T16:28:25Z","expires_at":"2026-11-29T16:38:25Z"}"#,
)];

/// Returns the lines of the audit log, and its head.
pub(crate) fn audit_log() -> (Vec<String>, Head) {
    let (mut head, mut lines) = (Head::EMPTY, Vec::new());
    for action in ["broker.initialised", "policy.put", "grant.requested"] {
        let record = AuditRecord::following(&head, AuditEvent::done(start(), "a test", action));
        head = record.head();
        lines.push(record.to_line());
    }
    (lines, head)
}

/// Checks that a store has all of these records, finds them by every query, and goes on from them.
pub(crate) async fn is_whole(opened: &impl Leasing) {
    let store = opened.store();
    let (lines, head) = audit_log();
    assert_eq!(store.audit_head().await.unwrap(), head);
    let kept = store.audit_lines(0, 100).await.unwrap();
    assert!(kept.iter().map(|(_, line)| line).eq(&lines));

    for old in &GRANTS {
        let kept = store.grant(old.id.parse().unwrap()).await.unwrap().unwrap();
        assert_eq!((kept.version, kept.record.state.word()), (old.version, old.state));
        assert_eq!(serde_json::to_string(&kept.record).unwrap(), old.body);
    }
    let ids = async |query: GrantQuery| {
        let found = store.grants(GrantQuery { limit: 10, ..query }).await.unwrap();
        found.iter().map(|grant| grant.record.id.to_string()).collect::<Vec<_>>()
    };
    let [first, second, third] = GRANTS.map(|grant| grant.id);
    assert_eq!(ids(GrantQuery::default()).await, [third, second, first]);
    let on_vm_1 = GrantQuery { target: Some("host:vm-1".parse().unwrap()), ..GrantQuery::default() };
    assert_eq!(ids(on_vm_1.clone()).await, [third, first]);
    assert_eq!(ids(GrantQuery { states: vec!["opening"], ..on_vm_1 }).await, [first]);
    let of_bob = GrantQuery { principal: Some(principal_key("bob")), ..GrantQuery::default() };
    assert_eq!(ids(of_bob).await, [second]);
    let open = store.open_grants().await.unwrap();
    assert!(open.iter().map(|grant| grant.record.id.to_string()).eq([first, second]));
    for (principal, key, grant) in REQUESTS {
        let known = store.grant_of_request(&principal_key(principal), key).await.unwrap();
        assert_eq!(known.map(|id| id.to_string()).as_deref(), Some(grant));
    }
    let policies = store.policies().await.unwrap();
    assert!(
        policies
            .iter()
            .map(|policy| (policy.record.name.to_string(), policy.version))
            .eq([("web".into(), 3)])
    );
    let agents = store.agents().await.unwrap();
    assert!(
        agents
            .iter()
            .map(|agent| (agent.record.target.to_string(), agent.version))
            .eq([("host:vm-1".into(), 21)])
    );
    let lease = opened.lease(&"host:vm-1".parse().unwrap()).await;
    let snapshot = store.snapshot(&lease).await.unwrap();
    assert_eq!(
        (snapshot.grants.len(), snapshot.policies.unwrap().policies.len(), snapshot.seq),
        (1, 1, head.seq)
    );

    goes_on(store).await.unwrap();
    assert!(store.token(&TokenHash(TOKENS[0].0)).await.unwrap().is_none());
    assert_eq!(store.policy(&name("usual")).await.unwrap().unwrap().version, 3, "it counts on");
    let lines = store.audit_lines(0, 100).await.unwrap();
    let head = verify(lines.iter().map(|(_, line)| line.as_str())).unwrap();
    assert_eq!(head, store.audit_head().await.unwrap());
}

/// Changes records of every kind, each on the condition that it is as it was kept.
async fn goes_on(store: &Store) -> Result<(), StoreError> {
    let hash = TokenHash(TOKENS[0].0);
    let token = store.token(&hash).await?.unwrap();
    assert_eq!(token.target, "host:vm-2".parse().unwrap());
    let (principal, key, grant) = REQUESTS[0];
    let known =
        Transaction::default().remember_request(&principal_key(principal), key, grant.parse().unwrap());
    let event = AuditEvent::done(start(), "a test", "tested");
    let refused = store.commit(known.audit(event.clone())).await;
    assert!(matches!(refused, Err(StoreError::Conflict { .. })), "the key is known: {refused:?}");
    let [opening, ..] = &GRANTS;
    let grant = store.grant(opening.id.parse().unwrap()).await?.unwrap();
    let agent = store.agent(&"host:vm-1".parse().unwrap()).await?.unwrap();
    let all = Transaction::default()
        .put_grant(grant.record, Expect::Version(1))
        .put_agent(agent.record, Expect::Version(21))
        .put_policy(a_policy().build(), Expect::Absent)
        .take_token(&hash);
    store.commit(all.audit(event)).await.map(drop)
}
