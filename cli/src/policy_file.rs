//! Policies as TOML: the file that `policy apply` reads and `policy get` writes. A policy that is written and read
//! again is the same policy.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use jiff::fmt::friendly::SpanParser;
use postern_core::policy::{AllowedSource, PortRule, Unreachable, WidestPrefix};
use postern_core::target::TargetSelector;
use postern_core::{Invalid, Layers, Mode, Name, Policy, Port, PrincipalKey, ProtectedPort, Protocol};
use serde::{Deserialize, Serialize};

use crate::output::time::exact;

/// A policy file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PolicyFileError {
    /// The file cannot be read.
    #[error("cannot read the policy file {file}")]
    Read {
        /// The file.
        file: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The file is not TOML, lacks a key, or has an unknown key.
    #[error("cannot parse the policy file {file}; correct the line named here")]
    Parse {
        /// The file.
        file: PathBuf,
        /// The line and the cause.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A value is invalid.
    #[error("the policy file {file} is invalid")]
    Invalid {
        /// The file.
        file: PathBuf,
        /// The field, the problem and the remedy.
        #[source]
        source: Invalid,
    },
}

/// Reads every policy of a file.
///
/// # Errors
/// The first problem in the file. The caller must then use none of its policies.
pub(crate) fn parse(text: &str, file: PathBuf) -> Result<Vec<Policy>, PolicyFileError> {
    let PolicyFile { policy: entries } = match toml::from_str(text) {
        Ok(entries) => entries,
        Err(source) => return Err(PolicyFileError::Parse { file, source: Box::new(source) }),
    };
    checked(entries).map_err(|source| PolicyFileError::Invalid { file, source })
}

/// Writes a policy as a separate file, with every key.
///
/// # Errors
/// TOML cannot express the policy, which happens for no policy.
pub(crate) fn write(policy: &Policy) -> Result<String, toml::ser::Error> {
    toml::to_string(&PolicyFile { policy: vec![PolicyEntry::from(policy)] })
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PolicyFile {
    policy: Vec<PolicyEntry>,
}

/// A `[[policy]]` table. A missing key means the strictest choice: enforce, and fail while an agent is away.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PolicyEntry {
    name: Name,
    targets: Vec<TargetSelector>,
    #[serde(default = "enforce")]
    mode: Mode,
    /// The layers; if missing, the host layer, but only if every target is a plain host.
    layers: Option<Layers>,
    #[serde(default = "fail")]
    unreachable: Unreachable,
    #[serde(default)]
    requesters: Vec<PrincipalKey>,
    #[serde(default)]
    approval_required: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_open_grants: Option<u32>,
    ports: Vec<PortEntry>,
}

/// A `[[policy.ports]]` table: either `port = "tcp/22"`, or `number = 22` and `protocol = "any"`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PortEntry {
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<ProtectedPort>,
    #[serde(skip_serializing_if = "Option::is_none")]
    number: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    protocol: Option<Protocols>,
    sources: Vec<AllowedSource>,
    #[serde(default, skip_serializing_if = "WidestPrefix::is_default")]
    widest: WidestPrefix,
    max_duration: Span,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Protocols {
    Tcp,
    Udp,
    Any,
}

/// A duration as it is typed: `3h`, `1h 30m`.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
struct Span(Duration);

fn enforce() -> Mode {
    Mode::Enforce
}

fn fail() -> Unreachable {
    Unreachable::Fail
}

fn checked(entries: Vec<PolicyEntry>) -> Result<Vec<Policy>, Invalid> {
    if entries.is_empty() {
        return Err(Invalid::new("policy", "is empty", "write at least one [[policy]]"));
    }
    let mut names = BTreeSet::new();
    let policy = |(i, entry): (usize, PolicyEntry)| {
        let field = format!("policy[{i}]");
        if !names.insert(entry.name.clone()) {
            let problem = format!("{} appears twice", entry.name);
            return Err(Invalid::new("name", problem, "give each policy its own name").within(&field));
        }
        entry.policy().and_then(Policy::checked).map_err(|e| e.within(&field))
    };
    entries.into_iter().enumerate().map(policy).collect()
}

impl PolicyEntry {
    fn policy(self) -> Result<Policy, Invalid> {
        let layers = match self.layers {
            Some(layers) => layers,
            None if self.targets.iter().all(|target| target.to_string().starts_with("host:")) => Layers::Host,
            None => {
                let problem = "is missing, and not every target is a plain host";
                return Err(Invalid::new("layers", problem, "write \"host\", \"cloud\" or \"both\""));
            }
        };
        let mut ports = Vec::new();
        for (i, rule) in self.ports.into_iter().enumerate() {
            ports.extend(rule.rules().map_err(|e| e.within(&format!("ports[{i}]")))?);
        }
        Ok(Policy {
            name: self.name,
            targets: self.targets,
            ports,
            requesters: self.requesters,
            approval_required: self.approval_required,
            layers,
            unreachable: self.unreachable,
            mode: self.mode,
            max_open_grants: self.max_open_grants,
        })
    }
}

impl From<&Policy> for PolicyEntry {
    fn from(policy: &Policy) -> Self {
        let ports = policy.ports.iter().map(|rule| PortEntry {
            port: Some(rule.port),
            number: None,
            protocol: None,
            sources: rule.sources.clone(),
            widest: rule.widest,
            max_duration: Span(rule.max_duration),
        });
        Self {
            ports: ports.collect(),
            name: policy.name.clone(),
            targets: policy.targets.clone(),
            mode: policy.mode,
            layers: Some(policy.layers),
            unreachable: policy.unreachable,
            requesters: policy.requesters.clone(),
            approval_required: policy.approval_required,
            max_open_grants: policy.max_open_grants,
        }
    }
}

impl PortEntry {
    /// Returns one rule for each protocol that the table names.
    fn rules(self) -> Result<Vec<PortRule>, Invalid> {
        let ports = match (self.port, self.number, self.protocol) {
            (Some(port), None, None) => vec![port],
            (None, Some(number), Some(protocols)) => {
                let port = Port::new(number).map_err(|e| e.named("number"))?;
                protocols.each().iter().map(|&protocol| ProtectedPort { protocol, port }).collect()
            }
            _ => {
                let remedy = "write either port = \"tcp/22\", or number = 22 and protocol = \"tcp\", \"udp\" or \"any\"";
                return Err(Invalid::new("port", "must have exactly one form", remedy));
            }
        };
        let rule = |port| PortRule {
            port,
            sources: self.sources.clone(),
            widest: self.widest,
            max_duration: self.max_duration.0,
        };
        Ok(ports.into_iter().map(rule).collect())
    }
}

impl Protocols {
    fn each(self) -> &'static [Protocol] {
        match self {
            Self::Tcp => &[Protocol::Tcp],
            Self::Udp => &[Protocol::Udp],
            Self::Any => &[Protocol::Tcp, Protocol::Udp],
        }
    }
}

impl TryFrom<String> for Span {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let span = SpanParser::new().parse_unsigned_duration(&text);
        span.map(Self).map_err(|_| {
            format!("max_duration: {text:?} is not a duration; write it like \"3h\" or \"1h 30m\"")
        })
    }
}

impl From<Span> for String {
    fn from(span: Span) -> String {
        exact(span.0)
    }
}

#[cfg(test)]
mod tests;
