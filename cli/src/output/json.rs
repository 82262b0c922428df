//! The JSON output: the fields of the wire under the same names, times in RFC 3339, durations in seconds, enums in
//! lower-case words. docs/cli.md documents the shape; versions add fields and never rename one. Tables are drawn
//! from the same structs.

mod lockdown;
mod status;
mod wire;
mod words;

use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Serialize, Serializer};

pub(crate) use lockdown::{Assessment, AssessmentReport, LockdownResult, Lockdowns};
pub(crate) use status::{Authority, CaCertificate, Replica, Status, StuckClose, Task};
pub(crate) use wire::time;
pub(crate) use words::{UNHEALTHY, grant_state};

/// A grant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Grant {
    pub id: String,
    pub principal: Option<Principal>,
    pub justification: String,
    pub requested_at: Option<Timestamp>,
    pub duration: Option<Seconds>,
    pub not_after: Option<Timestamp>,
    pub opened_at: Option<Timestamp>,
    pub closed_at: Option<Timestamp>,
    pub state: &'static str,
    pub close_reason: Option<&'static str>,
    pub reason: String,
    pub windows: Vec<Window>,
}

/// The principal that requested a grant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Principal {
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
pub(crate) struct Window {
    pub target: String,
    pub port: Option<Port>,
    pub source: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub connect_to: String,
    pub layers: Vec<WindowLayer>,
}

/// A protected port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Port {
    pub protocol: &'static str,
    pub number: u32,
}

/// The state of a window in a layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct WindowLayer {
    pub layer: &'static str,
    pub state: &'static str,
    pub detail: String,
}

/// The answer to a request.
#[derive(Debug, Serialize)]
pub(crate) struct Requested {
    pub grant: Grant,
    pub source_from_caller: bool,
    pub repeated_request: bool,
}

/// A list of grants; `more` is true if the limit cut it.
#[derive(Debug, Serialize)]
pub(crate) struct Grants {
    pub grants: Vec<Grant>,
    pub more: bool,
}

/// A policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Policy {
    pub name: String,
    pub targets: Vec<String>,
    pub ports: Vec<PortRule>,
    pub requesters: Vec<String>,
    pub approval_required: bool,
    pub layers: &'static str,
    /// The limits that a requester gets have no `unreachable`, `mode` or `version`.
    pub unreachable: Option<&'static str>,
    pub mode: Option<&'static str>,
    pub version: Option<u64>,
}

/// The limits of one port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct PortRule {
    pub port: Option<Port>,
    pub sources: Vec<String>,
    pub widest: Option<WidestPrefix>,
    pub max_duration: Option<Seconds>,
}

/// The most addresses that `*` allows, as prefix lengths.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct WidestPrefix {
    pub ipv4: u32,
    pub ipv6: u32,
}

/// A list of policies.
#[derive(Debug, Serialize)]
pub(crate) struct Policies {
    pub policies: Vec<Policy>,
}

/// A target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Target {
    pub id: String,
    pub mode: Option<&'static str>,
    pub ports: Vec<Port>,
    pub policies: Vec<String>,
    pub open_windows: u32,
    pub layers: Vec<TargetLayer>,
}

/// A layer of a target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct TargetLayer {
    pub layer: &'static str,
    pub status: &'static str,
    pub detail: String,
    pub last_seen: Option<Timestamp>,
}

/// A list of targets.
#[derive(Debug, Serialize)]
pub(crate) struct Targets {
    pub targets: Vec<Target>,
}

/// An agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Agent {
    pub target: String,
    pub status: &'static str,
    pub enrolled_at: Option<Timestamp>,
    pub certificate_not_after: Option<Timestamp>,
    pub version: String,
    pub last_seen: Option<Timestamp>,
}

/// A list of agents.
#[derive(Debug, Serialize)]
pub(crate) struct Agents {
    pub agents: Vec<Agent>,
}

/// A join token: the only secret that the command shows.
#[derive(Serialize)]
pub(crate) struct Token {
    pub target: String,
    pub token: String,
    pub expires_at: Option<Timestamp>,
    pub enroll_command: String,
}

/// The outcome of a verification.
#[derive(Debug, Serialize)]
pub(crate) struct Verified {
    pub records: u64,
    pub head: String,
    pub sound: bool,
    pub broken_line: Option<u64>,
    pub problem: Option<String>,
}

/// The name of the policy that was deleted.
#[derive(Debug, Serialize)]
pub(crate) struct Deleted {
    pub deleted: String,
}

/// A duration in seconds: an integer, or a decimal number if it has a fraction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seconds(pub Duration);

impl Serialize for Seconds {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0.subsec_nanos() == 0 {
            serializer.serialize_u64(self.0.as_secs())
        } else {
            serializer.serialize_f64(self.0.as_secs_f64())
        }
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.protocol, self.number)
    }
}

impl fmt::Display for Principal {
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
