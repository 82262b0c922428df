//! The fake broker's faults, seen by a client with the real TLS.

use postern_core::{Name, Role};
use postern_pki::tls::client_config;
use postern_proto::client::channel;
use postern_proto::v1;
use postern_proto::v1::access_service_client::AccessServiceClient;
use tonic::Code;
use tonic::transport::Channel;

use super::*;
use crate::faults::{CrashPoint, When};

const A_WHILE: Duration = Duration::from_millis(100);

fn client(broker: &FakeBroker) -> AccessServiceClient<Channel> {
    let requester = SpiffeId::Principal { role: Role::Requester, name: Name::new("alice").unwrap() };
    let credentials = broker.issue(&requester, AGENT_LIFETIME, wall());
    let tls = client_config(&credentials).unwrap();
    AccessServiceClient::new(channel(broker.url(), tls).unwrap())
}

/// Requests access, and returns the code of the error, if there is one.
async fn request(broker: &FakeBroker) -> Option<Code> {
    let mut caller = client(broker);
    let answer = caller.request_access(v1::RequestAccessRequest::default());
    within("an answer", answer).await.err().map(|status| status.code())
}

#[tokio::test]
async fn a_call_is_answered_refused_lost_or_dropped_as_the_plan_says() {
    let broker = FakeBroker::start().await;
    assert_eq!(request(&broker).await, None);
    broker.faults().fail("RequestAccess", 1, Fault::Refused(Status::not_found("a test")));
    assert_eq!(request(&broker).await, Some(Code::NotFound));
    assert_eq!(broker.script().requests.len(), 1, "a refused call is not served");
    for (fault, served) in [(Fault::Dropped, 1), (Fault::Lost, 2)] {
        broker.faults().fail("*", 1, fault);
        assert!(request(&broker).await.is_some_and(|code| code != Code::NotFound));
        assert_eq!(broker.script().requests.len(), served);
    }
    assert_eq!(request(&broker).await, None);
}

#[tokio::test]
async fn a_hung_call_is_never_answered_and_a_crash_point_silences_every_call() {
    let broker = FakeBroker::start().await;
    broker.faults().fail("GetGrant", 1, Fault::Hung);
    let mut caller = client(&broker);
    let hung = tokio::time::timeout(A_WHILE, caller.get_grant(v1::GetGrantRequest::default())).await;
    assert!(hung.is_err(), "{hung:?}");
    assert!(caller.get_grant(v1::GetGrantRequest::default()).await.is_ok(), "the connection holds");

    broker.faults().halt_at(Some(CrashPoint { change: 1, when: When::After }));
    let held = tokio::time::timeout(A_WHILE, caller.request_access(v1::RequestAccessRequest::default()));
    assert!(held.await.is_err());
    assert!(broker.faults().has_halted());
    assert_eq!(broker.script().requests.len(), 1, "it took effect");
    let silent = tokio::time::timeout(A_WHILE, caller.get_grant(v1::GetGrantRequest::default())).await;
    assert!(silent.is_err(), "{silent:?}");
    broker.faults().halt_at(None);
    assert_eq!(request(&broker).await, None);
}
