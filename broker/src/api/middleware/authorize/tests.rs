//! The authorization before a service that answers every call that reaches it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::Duration;

use jiff::Timestamp;
use postern_core::audit::Outcome;
use postern_core::{Principal, Role};
use postern_pki::identity::SpiffeId;
use postern_store::testing::memory::Fault;

use super::*;
use crate::api::authentication::ClientCertificate;
use crate::testing::TestApp;
use crate::testing::builders::name;

const REQUEST: &str = "/postern.v1.AccessService/RequestAccess";
const POLICY: &str = "/postern.v1.PolicyService/PutPolicy";
const RENEW: &str = "/postern.v1.AgentService/Renew";
const ENROLL: &str = "/postern.v1.AgentService/Enroll";

/// Remembers the principal of each call that was admitted.
#[derive(Clone, Default)]
struct Behind(Arc<Mutex<Vec<Option<Caller>>>>);

impl Service<Request<Body>> for Behind {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        self.0.lock().unwrap().push(request.extensions().get::<Caller>().cloned());
        std::future::ready(Ok(Response::new(Body::empty())))
    }
}

fn principal(role: Role) -> Option<SpiffeId> {
    Some(SpiffeId::Principal { role, name: name("alice") })
}

fn agent() -> Option<SpiffeId> {
    Some(SpiffeId::Agent("host:vm-1".parse().unwrap()))
}

/// Calls with a certificate of this id. Returns the gRPC code of the refusal, or the principal of the admitted call.
async fn call(
    test: &TestApp,
    path: &str,
    id: Option<SpiffeId>,
    not_after: Timestamp,
) -> Result<Option<Caller>, Code> {
    let behind = Behind::default();
    let mut service = AuthorizeLayer { app: Arc::clone(&test.app) }.layer(behind.clone());
    let certificate = id.map(|id| Arc::new(ClientCertificate::valid_until(id, not_after)));
    let mut request = Request::builder().uri(path).body(Body::empty()).unwrap();
    if let Some(certificate) = &certificate {
        request.extensions_mut().insert(Arc::clone(certificate.caller()));
    }
    request.extensions_mut().insert(Peer { address: SocketAddr::from(([192, 0, 2, 7], 1)), certificate });
    let response = service.call(request).await.unwrap();
    match Status::from_header_map(response.headers()) {
        Some(status) => {
            assert!(behind.0.lock().unwrap().is_empty(), "{path} was refused and reached the service");
            Err(status.code())
        }
        None => Ok(behind.0.lock().unwrap().pop().expect("the call reached the service")),
    }
}

fn valid(test: &TestApp) -> Timestamp {
    test.app.clock.now() + Duration::from_secs(60)
}

#[tokio::test]
async fn i7_only_calls_that_a_row_allows_are_admitted_and_a_denial_is_audited() {
    for (path, id, expected, audited) in [
        (REQUEST, principal(Role::Requester), Ok(true), None),
        (POLICY, principal(Role::Administrator), Ok(true), None),
        (RENEW, agent(), Ok(false), None),
        (ENROLL, None, Ok(false), None),
        (ENROLL, agent(), Ok(false), None),
        (POLICY, principal(Role::Requester), Err(Code::PermissionDenied), Some("requester/alice")),
        (REQUEST, principal(Role::Reader), Err(Code::PermissionDenied), Some("reader/alice")),
        (RENEW, principal(Role::Administrator), Err(Code::PermissionDenied), Some("administrator/alice")),
        (REQUEST, agent(), Err(Code::PermissionDenied), Some("agent/host:vm-1")),
        (REQUEST, Some(SpiffeId::Broker), Err(Code::PermissionDenied), Some("broker")),
        ("/postern.v1.AccessService/OpenAll", agent(), Err(Code::PermissionDenied), Some("agent/host:vm-1")),
        // A caller without a certificate leaves no record, or anyone could fill the log.
        (REQUEST, None, Err(Code::Unauthenticated), None),
        ("/", None, Err(Code::Unauthenticated), None),
    ] {
        let test = TestApp::new();
        let shown = format!("{path} as {id:?}");
        let outcome = call(&test, path, id, valid(&test)).await;
        assert_eq!(outcome.map(|caller| caller.is_some()), expected, "{shown}");
        let denied: Vec<_> =
            audited.map(|who| (who.into(), Outcome::Denied, String::new())).into_iter().collect();
        assert_eq!(test.audited("rpc.called").await, denied, "{shown}");
    }
}

#[tokio::test]
async fn i10_a_path_that_is_in_no_table_is_recorded_cut() {
    let test = TestApp::new();
    let path = format!("/{}", "x".repeat(10_000));
    let outcome = call(&test, &path, principal(Role::Requester), valid(&test)).await;
    assert_eq!(outcome.map(drop), Err(Code::PermissionDenied));
    let lines = test.store.audit_lines(0, 100).await.unwrap();
    let (_, line) = lines.last().unwrap();
    assert!(
        line.contains(&"x".repeat(79)) && !line.contains(&"x".repeat(81)) && line.len() < 1_000,
        "{line}"
    );
}

#[tokio::test]
async fn i7_the_service_learns_the_principal_and_its_address() {
    let test = TestApp::new();
    let caller = call(&test, REQUEST, principal(Role::Requester), valid(&test)).await.unwrap().unwrap();
    assert_eq!(caller.principal, Principal::local(Role::Requester, name("alice")));
    assert_eq!(caller.principal.to_string(), "requester/alice");
    assert_eq!(caller.address, Some([192, 0, 2, 7].into()));
}

#[tokio::test]
async fn i7_a_certificate_that_ended_while_its_connection_lives_admits_no_call() {
    let test = TestApp::new();
    let now = test.app.clock.now();
    for path in [REQUEST, ENROLL] {
        let outcome = call(&test, path, principal(Role::Requester), now).await;
        assert_eq!(outcome.err(), Some(Code::Unauthenticated), "{path}");
    }
}

#[tokio::test]
async fn i7_a_denial_that_cannot_be_recorded_is_still_a_denial() {
    let test = TestApp::new();
    test.store.fail_next([Fault::Full]);
    let outcome = call(&test, POLICY, principal(Role::Requester), valid(&test)).await;
    assert_eq!(outcome.err(), Some(Code::PermissionDenied));
}
