//! The script of a fake broker: its answers, and the calls that it has received.

use std::time::Duration;

use postern_proto::convert::duration_to_wire;
use postern_proto::v1;

use crate::clock::wall;

/// The only target of a fake broker: its agents enrol as this one.
pub const TARGET: &str = "host:web-1";

/// The duration of [`a_grant`].
const GRANT_DURATION: Duration = Duration::from_secs(1800);

/// The answers of a broker, and the calls that it has received.
#[derive(Debug, Default)]
pub struct Script {
    /// The answer to a request.
    pub answer: v1::RequestAccessResponse,
    /// The events of each watch, one watch after another; the last stays open in silence.
    pub watches: Vec<Vec<v1::WatchGrantsResponse>>,
    /// The audit log's lines.
    pub log: Vec<String>,
    /// The number of the first of them; 0 is 1.
    pub first: u64,
    /// The answer to a verification of the log; none: a broken log.
    pub verified: Option<v1::VerifyAuditResponse>,
    /// The policies that are kept.
    pub policies: Vec<v1::Policy>,
    /// The answer to a list of principals.
    pub principals: v1::ListPrincipalsResponse,
    /// The answer to a revocation of a principal.
    pub revoked: v1::RevokePrincipalResponse,
    /// The revocations of principals that were requested.
    pub revocations: Vec<v1::RevokePrincipalRequest>,
    /// The number of grants to list.
    pub grants: u32,
    /// The answer to an assessment.
    pub assessment_report: v1::AssessTargetsResponse,
    /// The answer to a lockdown and to a release.
    pub results: Vec<v1::LockdownResult>,
    /// The state of the brokers.
    pub status: v1::GetStatusResponse,
    /// The assessments that were requested.
    pub assessments: Vec<v1::AssessTargetsRequest>,
    /// The lockdowns that were requested.
    pub lockdowns: Vec<v1::LockdownTargetsRequest>,
    /// The releases that were requested.
    pub releases: Vec<v1::ReleaseTargetsRequest>,
    /// The access requests that were received.
    pub requests: Vec<v1::RequestAccessRequest>,
    /// The filters that were received, of lists and of watches.
    pub filters: Vec<v1::GrantFilter>,
}

/// A grant as a broker sends it: one window on [`TARGET`].
pub fn a_grant(state: v1::GrantState, layer: v1::WindowState) -> v1::Grant {
    let at = |after: Duration| prost_types::Timestamp { seconds: (wall() + after).as_second(), nanos: 0 };
    let layer = v1::WindowLayer { layer: v1::Layer::Host.into(), state: layer.into(), detail: String::new() };
    v1::Grant {
        id: "01jx0000000000000000000000".to_owned(),
        principal: Some(v1::Principal {
            role: v1::Role::Requester.into(),
            name: "alice".to_owned(),
            ..Default::default()
        }),
        justification: "fix disk".to_owned(),
        requested_at: Some(at(Duration::ZERO)),
        duration: Some(duration_to_wire(GRANT_DURATION)),
        not_after: Some(at(GRANT_DURATION)),
        state: state.into(),
        windows: vec![v1::Window {
            target: TARGET.to_owned(),
            port: Some(v1::ProtectedPort { protocol: v1::Protocol::Tcp.into(), number: 22 }),
            source: "127.0.0.1/32".to_owned(),
            connect_to: String::new(),
            layers: vec![layer],
        }],
        ..v1::Grant::default()
    }
}
