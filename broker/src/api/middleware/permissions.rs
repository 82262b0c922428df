//! The permission table: a row for each RPC, with the callers that may make it.
//!
//! I7 begins here: no caller gets more than it is allowed. The rule is that an RPC is denied unless a row admits its caller. A new
//! RPC without a row is denied to every caller, and a test fails until it has one; another test states what each role may
//! call, service by service, so that a changed row is a changed test.
//!
//! An authenticated caller is of one kind ([`CallerKind`]): a *principal* in one of three roles (administrator, requester,
//! reader), an *agent* of one target, or a *broker*. A caller that has shown no proof has no kind. No kind includes another: an
//! administrator may not make an agent's calls, and an agent may not make a principal's.
//!
//! A row admits a kind to the RPC as a whole. It does not say which records the call returns or changes. The use cases
//! of [`crate::app`] decide that:
//!
//! - A requester sees and revokes its own grants alone, and requests access within the policies.
//! - A requester lists the policies that admit it, with the limits that it needs to request, and nothing else of them.
//! - An agent speaks for its own target; no message names one.
//!
//! A denial of a known caller is recorded in the audit log ([`super::authorize`]).

use postern_core::Role::{Administrator, Reader, Requester};
use postern_core::{CallerKind, Role};

/// The callers that a row admits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::api) enum Allow {
    /// Every caller that reaches the port, also without a proof.
    Anyone,
    /// Principals in one of these roles.
    Roles(&'static [Role]),
    /// Agents.
    Agent,
}

/// Every principal.
const EVERY_ROLE: Allow = Allow::Roles(&[Administrator, Requester, Reader]);
/// The roles that request access.
const REQUESTERS: Allow = Allow::Roles(&[Administrator, Requester]);
/// The roles that see everything.
const READERS: Allow = Allow::Roles(&[Administrator, Reader]);
/// The role that changes policies, agents and the grants of others.
const ADMINISTRATORS: Allow = Allow::Roles(&[Administrator]);

/// The one call that an agent may make with a certificate past its end.
pub(in crate::api) const RENEW: &str = "/postern.v1.AgentService/Renew";

/// The table: a row for each RPC, by its path.
pub(in crate::api) const TABLE: &[(&str, Allow)] = &[
    ("/postern.v1.AccessService/RequestAccess", REQUESTERS),
    ("/postern.v1.AccessService/GetCallerAddress", REQUESTERS),
    ("/postern.v1.AccessService/ApproveAccess", ADMINISTRATORS),
    ("/postern.v1.AccessService/DenyAccess", ADMINISTRATORS),
    ("/postern.v1.AccessService/RevokeAccess", REQUESTERS),
    ("/postern.v1.AccessService/GetGrant", EVERY_ROLE),
    ("/postern.v1.AccessService/ListGrants", EVERY_ROLE),
    ("/postern.v1.AccessService/WatchGrants", EVERY_ROLE),
    ("/postern.v1.PolicyService/PutPolicy", ADMINISTRATORS),
    ("/postern.v1.PolicyService/GetPolicy", READERS),
    ("/postern.v1.PolicyService/ListPolicies", EVERY_ROLE),
    ("/postern.v1.PolicyService/DeletePolicy", ADMINISTRATORS),
    ("/postern.v1.TargetService/ListTargets", EVERY_ROLE),
    ("/postern.v1.TargetService/GetTarget", EVERY_ROLE),
    ("/postern.v1.TargetService/AssessTargets", READERS),
    ("/postern.v1.TargetService/LockdownTargets", ADMINISTRATORS),
    ("/postern.v1.TargetService/ReleaseTargets", ADMINISTRATORS),
    ("/postern.v1.AgentService/CreateJoinToken", ADMINISTRATORS),
    ("/postern.v1.AgentService/Enroll", Allow::Anyone),
    (RENEW, Allow::Agent),
    ("/postern.v1.AgentService/ListAgents", READERS),
    ("/postern.v1.AgentService/BanAgent", ADMINISTRATORS),
    ("/postern.v1.AgentService/ForgetAgent", ADMINISTRATORS),
    ("/postern.v1.AgentService/Session", Allow::Agent),
    ("/postern.v1.PrincipalService/RevokePrincipal", ADMINISTRATORS),
    ("/postern.v1.PrincipalService/ListPrincipals", READERS),
    ("/postern.v1.AuditService/TailAudit", READERS),
    ("/postern.v1.AuditService/VerifyAudit", READERS),
    ("/postern.v1.StatusService/GetStatus", READERS),
    ("/grpc.health.v1.Health/Check", Allow::Anyone),
    ("/grpc.health.v1.Health/Watch", Allow::Anyone),
    ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", EVERY_ROLE),
];

/// Returns the callers that the row of a path admits; `None` if it has no row, which admits no caller.
pub(in crate::api) fn row(path: &str) -> Option<Allow> {
    TABLE.iter().find(|(known, _)| *known == path).map(|(_, allow)| *allow)
}

impl Allow {
    /// Reports whether the row admits a caller of this kind, or without one.
    pub(in crate::api) fn admits(self, kind: Option<&CallerKind>) -> bool {
        match (self, kind) {
            (Self::Anyone, _) => true,
            (Self::Roles(roles), Some(CallerKind::Principal(principal))) => roles.contains(&principal.role()),
            (Self::Agent, Some(CallerKind::Agent(_))) => true,
            (Self::Roles(_) | Self::Agent, _) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use prost::Message as _;

    use super::*;

    /// Every RPC of every service that the broker serves, as paths.
    fn every_rpc() -> BTreeSet<String> {
        let sets = [
            postern_proto::FILE_DESCRIPTOR_SET,
            tonic_health::pb::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        ];
        let files = sets.iter().flat_map(|set| prost_types::FileDescriptorSet::decode(*set).unwrap().file);
        let paths = files.flat_map(|file| {
            let package = file.package().to_owned();
            file.service.into_iter().flat_map(move |service| {
                let prefix = format!("/{package}.{}", service.name());
                service.method.into_iter().map(move |method| format!("{prefix}/{}", method.name()))
            })
        });
        paths.collect()
    }

    #[test]
    fn i7_every_rpc_has_exactly_one_row_and_no_row_is_idle() {
        let rows: Vec<String> = TABLE.iter().map(|(path, _)| (*path).to_owned()).collect();
        let distinct: BTreeSet<String> = rows.iter().cloned().collect();
        assert_eq!(distinct.len(), rows.len(), "a path has two rows");
        assert_eq!(every_rpc(), distinct);
    }

    #[test]
    fn i7_a_path_without_a_row_is_denied() {
        assert_eq!(row("/postern.v1.AccessService/OpenEverything"), None);
    }

    /// The calls of one service that a caller of this kind may make, by name.
    fn may_call(service: &str, kind: Option<&CallerKind>) -> Vec<&'static str> {
        let rows = TABLE.iter().filter(|(_, allow)| allow.admits(kind));
        rows.filter_map(|(path, _)| path.strip_prefix(service)?.strip_prefix('/')).collect()
    }

    #[test]
    fn i7_each_role_may_call_what_it_is_for_and_nothing_else() {
        let principal = |role| {
            let name = postern_core::Name::new("alice").unwrap();
            CallerKind::Principal(postern_core::Principal::local(role, name))
        };
        let (requester, reader) = (principal(Requester), principal(Reader));
        let agent = CallerKind::Agent("host:web-1".parse().unwrap());
        let look = ["GetGrant", "ListGrants", "WatchGrants"];
        let ask =
            ["RequestAccess", "GetCallerAddress", "RevokeAccess", "GetGrant", "ListGrants", "WatchGrants"];
        for (service, kind, expected) in [
            ("/postern.v1.AccessService", Some(&requester), &ask[..]),
            ("/postern.v1.AccessService", Some(&reader), &look),
            ("/postern.v1.PolicyService", Some(&requester), &["ListPolicies"]),
            ("/postern.v1.PolicyService", Some(&reader), &["GetPolicy", "ListPolicies"]),
            ("/postern.v1.TargetService", Some(&requester), &["ListTargets", "GetTarget"]),
            ("/postern.v1.TargetService", Some(&reader), &["ListTargets", "GetTarget", "AssessTargets"]),
            ("/postern.v1.AgentService", Some(&requester), &["Enroll"]),
            ("/postern.v1.AgentService", Some(&reader), &["Enroll", "ListAgents"]),
            ("/postern.v1.PrincipalService", Some(&requester), &[]),
            ("/postern.v1.PrincipalService", Some(&reader), &["ListPrincipals"]),
            ("/postern.v1.PrincipalService", Some(&agent), &[]),
            ("/postern.v1.AuditService", Some(&requester), &[]),
            ("/postern.v1.AuditService", Some(&reader), &["TailAudit", "VerifyAudit"]),
            ("/postern.v1.StatusService", Some(&requester), &[]),
            ("/postern.v1.StatusService", Some(&reader), &["GetStatus"]),
            ("/postern.v1.StatusService", Some(&agent), &[]),
        ] {
            assert_eq!(may_call(service, kind), expected, "{service} {kind:?}");
        }
        let paths = |admitted: &dyn Fn(Allow) -> bool| -> Vec<_> {
            TABLE.iter().filter(|(_, allow)| admitted(*allow)).map(|(path, _)| *path).collect()
        };
        let strangers = [
            "/postern.v1.AgentService/Enroll",
            "/grpc.health.v1.Health/Check",
            "/grpc.health.v1.Health/Watch",
        ];
        assert_eq!(paths(&|allow| allow.admits(None)), strangers);
        let agents_own = ["/postern.v1.AgentService/Renew", "/postern.v1.AgentService/Session"];
        assert_eq!(paths(&|allow| allow.admits(Some(&agent)) && !allow.admits(None)), agents_own);
        assert_eq!(paths(&|allow| !allow.admits(Some(&principal(Administrator)))), agents_own);
    }

    #[test]
    fn i7_an_agent_is_no_principal_and_a_principal_is_no_agent() {
        let agent = CallerKind::Agent("host:web-1".parse().unwrap());
        assert!(Allow::Agent.admits(Some(&agent)));
        assert!(!EVERY_ROLE.admits(Some(&agent)));
        assert!(!Allow::Agent.admits(None));
        assert!(!Allow::Agent.admits(Some(&CallerKind::Broker)));
        assert!(!EVERY_ROLE.admits(Some(&CallerKind::Broker)));
    }
}
