//! A second issuer beside the certificates, through every layer and service: the calls of a client, in process.

#![allow(clippy::disallowed_methods, reason = "a test waits by tokio's clock, which is paused")]

use std::time::Duration;

use futures_util::future::BoxFuture;
use http::HeaderValue;
use http::header::AUTHORIZATION;
use jiff::Timestamp;
use postern_core::audit::Outcome;
use postern_core::{CertificateSerial, Policy, Role};
use postern_pki::CertificateFacts;
use postern_pki::identity::SpiffeId;
use postern_proto::v1;
use postern_proto::v1::access_service_client::AccessServiceClient;
use postern_proto::v1::audit_service_client::AuditServiceClient;
use postern_proto::v1::policy_service_client::PolicyServiceClient;
use postern_proto::v1::principal_service_client::PrincipalServiceClient;
use postern_proto::v1::revoke_principal_request::Proof;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;
use tower::ServiceExt as _;
use tower::util::BoxCloneService;

use super::*;
use crate::api::authentication::ClientCertificate;
use crate::api::authentication::fake::{FakeTokens, ISSUER};
use crate::api::peer::Peer;
use crate::clock::wall;
use crate::limits::Limits;
use crate::testing::TestApp;
use crate::testing::builders::{a_policy, key, name};

/// The subject of a pipeline.
const PIPELINE: &str = "repo:org/x:ref:refs/heads/main";

/// A broker that serves in process, with certificates and with the tokens of a second issuer.
struct Broker {
    test: TestApp,
    service: BoxCloneService<Request<Body>, Response<Body>, Infallible>,
    running: tokio::sync::Mutex<BoxFuture<'static, ()>>,
}

/// The proofs that a client shows.
#[derive(Clone, Default)]
struct Proofs {
    certificate: Option<Arc<ClientCertificate>>,
    authorization: Option<&'static str>,
}

/// The requester that the deployment's own authority knows as alice.
fn certificate_of(who: &str) -> Proofs {
    let id = SpiffeId::Principal { role: Role::Requester, name: name(who) };
    Proofs {
        certificate: Some(Arc::new(ClientCertificate::valid_until(id, in_an_hour()))),
        authorization: None,
    }
}

fn bearer(authorization: &'static str) -> Proofs {
    Proofs { certificate: None, authorization: Some(authorization) }
}

fn in_an_hour() -> Timestamp {
    wall() + Duration::from_secs(3600)
}

impl Broker {
    async fn under(policy: Policy) -> Self {
        let test = TestApp::under([policy]).await;
        let tokens = FakeTokens::default()
            // People know her by the name of another principal.
            .with("alice", Role::Requester, "alice@example.com", "alice", in_an_hour())
            .with("pipeline", Role::Requester, PIPELINE, "deployment", in_an_hour())
            .with("reader", Role::Reader, "rita@example.com", "Rita", in_an_hour())
            .with("old", Role::Requester, "alice@example.com", "alice", wall());
        let authenticators = Authenticators::default().and(Arc::new(tokens));
        let (runner, running) = runner();
        let (_, health) = tonic_health::server::health_reporter();
        let admission = Admission::new(Limits::default());
        let service = service(Arc::clone(&test.app), admission, health, authenticators, runner).unwrap();
        Self {
            test,
            service: BoxCloneService::new(service),
            running: tokio::sync::Mutex::new(Box::pin(running)),
        }
    }

    /// The broker as a client with these proofs reaches it.
    fn shown(&self, proofs: &Proofs) -> BoxCloneService<Request<Body>, Response<Body>, Infallible> {
        let proofs = proofs.clone();
        let show = move |mut request: Request<Body>| {
            let Proofs { certificate, authorization } = proofs.clone();
            request.extensions_mut().insert(Peer { address: ([192, 0, 2, 7], 1).into(), certificate });
            if let Some(text) = authorization {
                request.headers_mut().insert(AUTHORIZATION, HeaderValue::from_static(text));
            }
            request
        };
        BoxCloneService::new(self.service.clone().map_request(show))
    }

    fn access(
        &self,
        proofs: &Proofs,
    ) -> AccessServiceClient<BoxCloneService<Request<Body>, Response<Body>, Infallible>> {
        AccessServiceClient::new(self.shown(proofs))
    }

    async fn request(&self, proofs: &Proofs) -> Result<v1::RequestAccessResponse, Status> {
        let asked = v1::RequestAccessRequest {
            targets: vec!["host:vm-1".to_owned()],
            ports: vec![v1::ProtectedPort { protocol: v1::Protocol::Tcp.into(), number: 22 }],
            duration: Some(prost_types::Duration { seconds: 60, nanos: 0 }),
            justification: "a test".to_owned(),
            idempotency_key: "one key of all".to_owned(),
            ..v1::RequestAccessRequest::default()
        };
        self.access(proofs).request_access(asked).await.map(tonic::Response::into_inner)
    }

    async fn revoke_principal(
        &self,
        proofs: &Proofs,
        proof: Proof,
    ) -> Result<v1::RevokePrincipalResponse, Status> {
        let asked =
            v1::RevokePrincipalRequest { proof: Some(proof), ..v1::RevokePrincipalRequest::default() };
        let mut principals = PrincipalServiceClient::new(self.shown(proofs));
        let mut running = self.running.lock().await;
        tokio::select! {
            answer = principals.revoke_principal(asked) => answer.map(tonic::Response::into_inner),
            () = &mut *running => panic!("the work of calls goes on"),
        }
    }

    async fn granted(&self, proofs: &Proofs) -> v1::Grant {
        self.request(proofs).await.unwrap().grant.unwrap()
    }

    async fn listed(&self, proofs: &Proofs, principal: &str) -> Vec<String> {
        let filter = Some(v1::GrantFilter { principal: principal.to_owned(), ..v1::GrantFilter::default() });
        let asked = v1::ListGrantsRequest { filter, page: None };
        let grants = self.access(proofs).list_grants(asked).await.unwrap().into_inner().grants;
        grants.into_iter().map(|grant| grant.id).collect()
    }

    async fn revoke(&self, proofs: &Proofs, id: &str) -> Result<v1::Grant, Code> {
        let asked = v1::RevokeAccessRequest { grant_id: id.to_owned(), ..v1::RevokeAccessRequest::default() };
        let answer = self.access(proofs).revoke_access(asked).await;
        answer.map(|answer| answer.into_inner().grant.unwrap()).map_err(|status| status.code())
    }
}

/// Returns the code and the reason of a refusal.
fn refused<T: std::fmt::Debug>(answer: Result<T, Status>) -> (Code, String) {
    let status = answer.unwrap_err();
    (status.code(), status.get_error_details().error_info().unwrap().reason.clone())
}

#[tokio::test]
async fn i7_principals_of_two_issuers_request_see_and_revoke_their_own_grants_alone() {
    let broker = Broker::under(a_policy().build()).await;
    let everyone = [certificate_of("alice"), bearer("Bearer alice"), bearer("Bearer pipeline")];
    let mut ids = Vec::new();
    for proofs in &everyone {
        // The same idempotency key and the same display name are another principal's business.
        let first = broker.request(proofs).await.unwrap();
        assert!(!first.repeated_request);
        let again = broker.request(proofs).await.unwrap();
        assert!(again.repeated_request);
        let id = first.grant.unwrap().id;
        assert_eq!(again.grant.unwrap().id, id);
        ids.push(id);
    }
    for (proofs, own) in everyone.iter().zip(&ids) {
        assert_eq!(broker.listed(proofs, "").await, std::slice::from_ref(own));
        for other in ids.iter().filter(|id| *id != own) {
            let seen = broker.access(proofs).get_grant(v1::GetGrantRequest { grant_id: other.clone() }).await;
            assert_eq!(seen.unwrap_err().code(), Code::NotFound);
            assert_eq!(broker.revoke(proofs, other).await.unwrap_err(), Code::NotFound);
        }
    }
    for (proofs, own) in everyone.iter().zip(&ids) {
        assert_eq!(broker.revoke(proofs, own).await.unwrap().state(), v1::GrantState::Closing);
    }
}

#[tokio::test]
async fn i7_the_audit_log_and_the_wire_tell_principals_of_one_display_name_apart() {
    let broker = Broker::under(a_policy().build()).await;
    let (local, foreign) = (certificate_of("alice"), bearer("Bearer alice"));
    let own = broker.granted(&local).await.principal.unwrap();
    let principal = broker.granted(&foreign).await.principal.unwrap();
    let text = "https://issuer.example#alice@example.com";
    let expected = v1::Principal {
        role: v1::Role::Requester.into(),
        name: text.to_owned(),
        issuer: ISSUER.to_owned(),
        subject: "alice@example.com".to_owned(),
        display_name: "alice".to_owned(),
    };
    assert_eq!(principal, expected);
    let local_form =
        v1::Principal { name: "alice".into(), issuer: String::new(), subject: "alice".into(), ..expected };
    assert_eq!(own, local_form);

    let actor = format!("requester/alice <{text}>");
    let done = |who: &str| (who.to_owned(), Outcome::Done, String::new());
    assert_eq!(broker.test.audited("grant.requested").await, [done("requester/alice"), done(&actor)]);
    // A denied call names the caller as the audit log does.
    let mut audit = AuditServiceClient::new(broker.shown(&foreign));
    let denied = audit.verify_audit(v1::VerifyAuditRequest::default()).await.unwrap_err();
    assert_eq!(denied.code(), Code::PermissionDenied);
    assert!(denied.message().starts_with(&actor), "{}", denied.message());
    let recorded = [(actor.clone(), Outcome::Denied, String::new())];
    assert_eq!(broker.test.audited("rpc.called").await, recorded);

    // A filter takes the text of the key, and never the display name.
    let reader = bearer("Bearer reader");
    assert_eq!(broker.listed(&reader, "").await.len(), 2);
    let (of_local, of_foreign) = (broker.listed(&reader, "alice").await, broker.listed(&reader, text).await);
    assert_eq!((of_local.len(), of_foreign.len()), (1, 1));
    assert_ne!(of_local, of_foreign);
    // The reason of a revocation names its principal in the same way.
    let revoked = broker.revoke(&foreign, &of_foreign[0]).await.unwrap();
    assert_eq!(revoked.reason, format!("revoked by {actor}"));
}

#[tokio::test]
async fn i7_a_policy_names_a_principal_of_another_issuer_by_its_key() {
    let policy =
        Policy { requesters: vec![key("https://issuer.example#alice@example.com")], ..a_policy().build() };
    let broker = Broker::under(policy).await;
    let (local, pipeline) = (certificate_of("alice"), bearer("Bearer pipeline"));
    for proofs in [&local, &pipeline] {
        let denied = refused(broker.request(proofs).await);
        assert_eq!(denied, (Code::PermissionDenied, "REQUESTER_NOT_ALLOWED".to_owned()));
    }
    let alice = bearer("Bearer alice");
    broker.request(&alice).await.unwrap();
    let mut policies = PolicyServiceClient::new(broker.shown(&alice));
    let listed = policies.list_policies(v1::ListPoliciesRequest::default()).await.unwrap().into_inner();
    assert_eq!(listed.policies[0].requesters, ["https://issuer.example#alice@example.com"]);
}

#[tokio::test]
async fn i7_the_first_authenticator_with_an_answer_decides() {
    let broker = Broker::under(a_policy().build()).await;
    let unauthenticated = |reason: &str| (Code::Unauthenticated, reason.to_owned());
    for (proofs, reason) in [
        (Proofs::default(), "CERTIFICATE_REQUIRED"),
        (bearer("Basic YWxpY2U6"), "CERTIFICATE_REQUIRED"),
        (bearer("Bearer guessed"), "TOKEN_UNKNOWN"),
        (bearer("Bearer old"), "TOKEN_EXPIRED"),
    ] {
        assert_eq!(refused(broker.request(&proofs).await), unauthenticated(reason));
    }
    assert!(broker.test.audited("rpc.called").await.is_empty(), "strangers fill no log");
    // A certificate is asked first, so a token beside it, good or bad, changes nothing.
    for authorization in ["Bearer pipeline", "Bearer guessed"] {
        let both = Proofs { authorization: Some(authorization), ..certificate_of("alice") };
        assert_eq!(broker.granted(&both).await.principal.unwrap().name, "alice");
    }
}

#[tokio::test(start_paused = true)]
async fn i7_a_stream_ends_when_the_proof_of_its_caller_ends() {
    let broker = Broker::under(a_policy().build()).await;
    let certificate = "CERTIFICATE_EXPIRED";
    for (proofs, reason) in
        [(bearer("Bearer alice"), "TOKEN_EXPIRED"), (certificate_of("alice"), certificate)]
    {
        let asked = v1::WatchGrantsRequest { filter: None };
        let mut stream = broker.access(&proofs).watch_grants(asked).await.unwrap().into_inner();
        assert_eq!(stream.message().await.unwrap().unwrap().grant, None, "the listing ends");
        let began = tokio::time::Instant::now();
        assert_eq!(refused(stream.message().await), (Code::Unauthenticated, reason.to_owned()));
        assert!(began.elapsed() > Duration::from_secs(3500), "not before");
    }
    let mut audit = AuditServiceClient::new(broker.shown(&bearer("Bearer reader")));
    let mut lines =
        audit.tail_audit(v1::TailAuditRequest { after: 0, follow: true }).await.unwrap().into_inner();
    let end = loop {
        if let Err(end) = lines.message().await {
            break end;
        }
    };
    assert_eq!(refused(Err::<(), _>(end)), (Code::Unauthenticated, "TOKEN_EXPIRED".to_owned()));
}

/// The proof of an administrator.
fn root() -> Proofs {
    certificate(Role::Administrator, "root", "0f", wall())
}

/// A certificate with this serial number that was issued at this time.
fn certificate(role: Role, who: &str, digits: &str, issued_at: Timestamp) -> Proofs {
    let serial = CertificateSerial::new(digits).unwrap();
    let facts = CertificateFacts { serial, issued_at, not_after: in_an_hour() };
    let read = ClientCertificate::of(SpiffeId::Principal { role, name: name(who) }, facts);
    Proofs { certificate: Some(Arc::new(read)), authorization: None }
}

fn revoked() -> (Code, String) {
    (Code::Unauthenticated, "PROOF_REVOKED".to_owned())
}

fn named(text: &str) -> Proof {
    Proof::Principal(text.to_owned())
}

#[tokio::test]
async fn i7_a_revoked_principal_is_refused_at_the_gate_until_it_has_a_later_certificate() {
    let broker = Broker::under(a_policy().build()).await;
    let alice = |role, digits, issued_at| certificate(role, "alice", digits, issued_at);
    let (requester, reader) = (alice(Role::Requester, "01", wall()), alice(Role::Reader, "02", wall()));
    let own = broker.granted(&requester).await.id;
    let answer = broker.revoke_principal(&root(), named("alice")).await.unwrap();
    assert_eq!(answer.closed_grants, [own]);
    for proofs in [&requester, &reader] {
        let listed = broker.access(proofs).list_grants(v1::ListGrantsRequest::default()).await;
        assert_eq!(refused(listed), revoked());
    }
    assert_eq!(refused(broker.request(&requester).await), revoked());
    assert!(broker.test.audited("rpc.called").await.is_empty(), "a revoked proof fills no log");
    // Her namesake of another issuer is another principal.
    broker.granted(&bearer("Bearer alice")).await;
    let later = alice(Role::Requester, "03", wall() + Duration::from_secs(2));
    broker.access(&later).list_grants(v1::ListGrantsRequest::default()).await.unwrap();
    broker.revoke_principal(&root(), named("https://issuer.example#alice@example.com")).await.unwrap();
    assert_eq!(refused(broker.request(&bearer("Bearer alice")).await), revoked());
    broker.access(&later).list_grants(v1::ListGrantsRequest::default()).await.unwrap();
}

#[tokio::test]
async fn i7_a_serial_number_revokes_one_certificate_and_keeps_the_grants() {
    let broker = Broker::under(a_policy().build()).await;
    let (stolen, kept) = (
        certificate(Role::Requester, "alice", "0abc", wall()),
        certificate(Role::Requester, "alice", "0d", wall()),
    );
    let own = broker.granted(&stolen).await.id;
    let answer = broker.revoke_principal(&root(), Proof::Serial("00:0A:BC".to_owned())).await.unwrap();
    assert_eq!((answer.serial.as_str(), answer.closed_grants.len()), ("0abc", 0));
    assert_eq!(refused(broker.request(&stolen).await), revoked());
    assert_eq!(broker.listed(&kept, "").await, [own]);
}

#[tokio::test]
async fn i7_a_malformed_revocation_is_refused_with_the_field_and_one_by_another_role_at_all() {
    let broker = Broker::under(a_policy().build()).await;
    let digits = |text: &str| Some(Proof::Serial(text.to_owned()));
    for (proof, reason, field) in [
        (digits("xyz"), "", "serial"),
        (digits(""), "", "serial"),
        (digits(&"f".repeat(41)), "", "serial"),
        (Some(named("-alice")), "", "principal"),
        (Some(named("alice")), "two\nlines", "reason"),
        (None, "", "proof"),
    ] {
        let shown = format!("{proof:?}");
        let asked = v1::RevokePrincipalRequest { proof, reason: reason.to_owned(), ..Default::default() };
        let refused =
            PrincipalServiceClient::new(broker.shown(&root())).revoke_principal(asked).await.unwrap_err();
        let details = refused.get_error_details();
        assert_eq!(refused.code(), Code::InvalidArgument, "{shown}");
        assert_eq!(details.bad_request().unwrap().field_violations[0].field, field, "{shown}");
    }
    for role in [Role::Requester, Role::Reader] {
        let denied =
            broker.revoke_principal(&certificate(role, "mallory", "0e", wall()), named("alice")).await;
        assert_eq!(denied.unwrap_err().code(), Code::PermissionDenied);
    }
    assert!(broker.test.audited("principal.revoked").await.is_empty());
    let own = broker.revoke_principal(&root(), named("root")).await;
    assert_eq!(own.unwrap_err().code(), Code::FailedPrecondition);
}

#[tokio::test]
async fn i7_an_open_stream_ends_when_its_callers_proof_is_revoked() {
    let broker = Broker::under(a_policy().build()).await;
    let (alice, rita) = (
        certificate(Role::Requester, "alice", "01", wall()),
        certificate(Role::Reader, "rita", "02", wall()),
    );
    let watch = v1::WatchGrantsRequest { filter: None };
    let mut grants = broker.access(&alice).watch_grants(watch.clone()).await.unwrap().into_inner();
    assert_eq!(grants.message().await.unwrap().unwrap().grant, None, "the listing ends");
    let mut others = broker.access(&root()).watch_grants(watch).await.unwrap().into_inner();
    assert_eq!(others.message().await.unwrap().unwrap().grant, None);
    let mut audit = AuditServiceClient::new(broker.shown(&rita));
    let mut lines =
        audit.tail_audit(v1::TailAuditRequest { after: 0, follow: true }).await.unwrap().into_inner();
    assert!(lines.message().await.unwrap().is_some());

    broker.revoke_principal(&root(), named("alice")).await.unwrap();
    broker.revoke_principal(&root(), Proof::Serial("02".to_owned())).await.unwrap();
    let wait = Duration::from_secs(2);
    let end = tokio::time::timeout(wait, grants.message()).await.expect("it ends within 2 s");
    assert_eq!(refused(end), revoked());
    let end = tokio::time::timeout(wait, async {
        loop {
            if let Err(end) = lines.message().await {
                break end;
            }
        }
    });
    assert_eq!(refused(Err::<(), _>(end.await.expect("it ends within 2 s"))), revoked());
    let silent = tokio::time::timeout(Duration::from_millis(50), others.message()).await;
    assert!(silent.is_err(), "another caller's stream goes on: {silent:?}");
}
