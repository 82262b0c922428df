//! The JSON output: the fields of the wire under the same names, times in RFC 3339, durations in seconds, enums in
//! lower-case words. docs/cli.md documents the shape; versions add fields and never rename one. Tables are drawn
//! from the same structs.

mod lockdown;
mod principals;
mod status;
mod wire;
mod words;

use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use postern_core::audit::Broken;
use postern_core::checkpoint::Checkpoint;
use postern_pki::SignedCheckpoint;
use serde::{Serialize, Serializer};

pub(crate) use lockdown::{AssessmentJson, AssessmentReportJson, LockdownResultJson, LockdownsJson};
pub(crate) use principals::{
    KnownPrincipalJson, PrincipalsJson, RevocationJson, RevokedCertificateJson, RevokedProofsJson,
};
pub(crate) use status::{
    AuthorityJson, CaCertificateJson, ReplicaJson, StatusJson, StuckCloseJson, TaskJson,
};
pub(crate) use wire::time;
pub(crate) use words::{UNHEALTHY, grant_state};

/// A grant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct GrantJson {
    pub id: String,
    pub principal: Option<PrincipalJson>,
    pub justification: String,
    pub requested_at: Option<Timestamp>,
    pub duration: Option<SecondsJson>,
    pub not_after: Option<Timestamp>,
    pub opened_at: Option<Timestamp>,
    pub closed_at: Option<Timestamp>,
    pub state: &'static str,
    pub close_reason: Option<&'static str>,
    pub reason: String,
    pub windows: Vec<WindowJson>,
}

/// The principal that requested a grant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct PrincipalJson {
    pub role: &'static str,
    /// The text of its key.
    pub name: String,
    /// The issuer; none for the broker's own certificate authority.
    pub issuer: Option<String>,
    pub subject: String,
    pub display_name: String,
}

/// A window of a grant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct WindowJson {
    pub target: String,
    pub port: Option<PortJson>,
    pub source: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub connect_to: String,
    pub layers: Vec<WindowLayerJson>,
}

/// A protected port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct PortJson {
    pub protocol: &'static str,
    pub number: u32,
}

/// The state of a window in a layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct WindowLayerJson {
    pub layer: &'static str,
    pub state: &'static str,
    pub detail: String,
}

/// The answer to a request.
#[derive(Debug, Serialize)]
pub(crate) struct RequestedJson {
    pub grant: GrantJson,
    pub source_from_caller: bool,
    pub repeated_request: bool,
}

/// A list of grants; `more` is true if the limit cut it.
#[derive(Debug, Serialize)]
pub(crate) struct GrantsJson {
    pub grants: Vec<GrantJson>,
    pub more: bool,
}

/// A policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct PolicyJson {
    pub name: String,
    pub targets: Vec<String>,
    pub ports: Vec<PortRuleJson>,
    pub requesters: Vec<String>,
    pub approval_required: bool,
    pub layers: &'static str,
    /// The limits that a requester gets have no `unreachable`, `mode` or `version`.
    pub unreachable: Option<&'static str>,
    pub mode: Option<&'static str>,
    pub version: Option<u64>,
    pub max_open_grants: Option<u32>,
}

/// The limits of one port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct PortRuleJson {
    pub port: Option<PortJson>,
    pub sources: Vec<String>,
    pub widest: Option<WidestPrefixJson>,
    pub max_duration: Option<SecondsJson>,
}

/// The most addresses that `*` allows, as prefix lengths.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct WidestPrefixJson {
    pub ipv4: u32,
    pub ipv6: u32,
}

/// A list of policies.
#[derive(Debug, Serialize)]
pub(crate) struct PoliciesJson {
    pub policies: Vec<PolicyJson>,
}

/// A target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct TargetJson {
    pub id: String,
    pub mode: Option<&'static str>,
    pub ports: Vec<PortJson>,
    pub policies: Vec<String>,
    pub open_windows: u32,
    pub layers: Vec<TargetLayerJson>,
}

/// A layer of a target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct TargetLayerJson {
    pub layer: &'static str,
    pub status: &'static str,
    pub detail: String,
    pub last_seen: Option<Timestamp>,
}

/// A list of targets.
#[derive(Debug, Serialize)]
pub(crate) struct TargetsJson {
    pub targets: Vec<TargetJson>,
}

/// An agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct AgentJson {
    pub target: String,
    pub status: &'static str,
    pub enrolled_at: Option<Timestamp>,
    pub certificate_not_after: Option<Timestamp>,
    pub version: String,
    pub last_seen: Option<Timestamp>,
    pub cloned: Option<CloneAlarmJson>,
}

/// An alarm that two machines hold the identity of an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct CloneAlarmJson {
    pub first_at: Option<Timestamp>,
    pub last_at: Option<Timestamp>,
    pub attempts: u64,
    pub reason: String,
}

/// The agent that the broker has forgotten.
#[derive(Debug, Serialize)]
pub(crate) struct ForgottenJson {
    pub forgotten: String,
    pub held_until: Option<Timestamp>,
    pub held_grants: Vec<String>,
}

/// A list of agents.
#[derive(Debug, Serialize)]
pub(crate) struct AgentsJson {
    pub agents: Vec<AgentJson>,
}

/// A join token: the only secret that the command shows.
#[derive(Serialize)]
pub(crate) struct TokenJson {
    pub target: String,
    pub token: String,
    pub expires_at: Option<Timestamp>,
    pub enroll_command: String,
}

/// The outcome of a verification.
#[derive(Debug, Default, Serialize)]
pub(crate) struct VerifiedJson {
    pub records: u64,
    pub head: String,
    pub sound: bool,
    pub broken_line: Option<u64>,
    pub problem: Option<String>,
    /// The newest checkpoint that the log agrees with.
    pub trusted: Option<TrustedJson>,
    /// The number of records that no checkpoint covers; not set without a checkpoint.
    pub uncovered: Option<u64>,
    /// The checkpoint that the command had kept from an earlier verification.
    pub remembered: Option<TrustedJson>,
    /// The first record that the broker read; those before it were verified earlier.
    pub read_from: Option<u64>,
    /// The time at which the broker last read every record.
    pub verified_at: Option<Timestamp>,
    /// The record that an operator accepted: those before it are not verified.
    pub accepted_record: Option<u64>,
}

impl VerifiedJson {
    /// Sets the problem, if there is one.
    pub(crate) fn set_broken(&mut self, broken: Option<&Broken>) {
        if let Some(Broken { line, problem }) = broken {
            (self.sound, self.broken_line, self.problem) = (false, Some(*line), Some(problem.clone()));
        }
    }
}

/// A checkpoint of the audit log.
#[derive(Debug, Serialize)]
pub(crate) struct TrustedJson {
    pub seq: u64,
    pub hash: String,
    pub at: Timestamp,
    pub accepted: Option<Timestamp>,
    /// The name and the serial number of the intermediate that signed.
    pub signer: String,
}

impl From<&SignedCheckpoint> for TrustedJson {
    fn from(signed: &SignedCheckpoint) -> Self {
        let signer = signed.signer().map(|signer| format!("{}, serial {}", signer.subject, signer.serial));
        let Checkpoint { seq, hash, at, accepted, .. } = &signed.checkpoint;
        Self {
            seq: *seq,
            hash: hash.to_string(),
            at: *at,
            accepted: *accepted,
            signer: signer.unwrap_or_default(),
        }
    }
}

/// The name of the policy that was deleted.
#[derive(Debug, Serialize)]
pub(crate) struct DeletedJson {
    pub deleted: String,
}

/// A duration in seconds: an integer, or a decimal number if it has a fraction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SecondsJson(pub Duration);

impl Serialize for SecondsJson {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0.subsec_nanos() == 0 {
            serializer.serialize_u64(self.0.as_secs())
        } else {
            serializer.serialize_f64(self.0.as_secs_f64())
        }
    }
}

impl fmt::Display for PortJson {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.protocol, self.number)
    }
}

impl fmt::Display for PrincipalJson {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { role, name, issuer, display_name, .. } = self;
        match issuer {
            None => write!(f, "{role}/{name}"),
            // As the audit log has it: the key in the last brackets tells principals of one display name apart.
            Some(_) => write!(f, "{role}/{display_name} <{name}>"),
        }
    }
}

#[cfg(test)]
pub(super) use status::tests as status_tests;
#[cfg(test)]
pub(super) mod tests;
