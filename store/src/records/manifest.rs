//! The manifest of the policies: which policies there are, each with its version and the digest of its text.
//!
//! **The problem.** A seal shows that a broker wrote a policy, and not that it is still kept. A store that loses a policy, or brings an old
//! one back, would take protection off hosts, or give rights that an administrator has taken away.
//!
//! **The rule.** One sealed record names every policy with its version and digest: a version alone comes again once a database has lost
//! what a deleted policy left. [`Store::commit`](crate::Store::commit) writes it with each policy, in the same transaction, and raises its
//! *generation*. The policies can be read only if they are those that it names. Agents keep the highest generation that they have
//! followed: protection comes off a host only with a higher one. A broker keeps the newest manifest that it has seen outside the store
//! ([`SeenPolicies`]).
//!
//! **On failure.** Policies that do not fit are an error ([`StoreError::PoliciesLost`]), which names them. An administrator applies them
//! again, or deletes them. A store that went back as a whole fits itself, and has a lower generation than a broker has seen
//! ([`Store::has_seen`](crate::Store::has_seen)), which is the same error, and than its agents have followed
//! ([`Store::agent_follows`](crate::Store::agent_follows)). The next change of a policy gets a generation past both. If the manifest in
//! the store is forged, lost or older, that change goes on from the one that the broker has seen: what is missing stays missing until an
//! administrator says otherwise, and no host loses its protection by a change of another policy.

use std::collections::BTreeMap;
use std::fmt;

use postern_core::{Name, Policy};
use serde::{Deserialize, Serialize};

use crate::error::StoreError;
use crate::kind::{Kind, Version};
use crate::record::{Record, Versioned};

/// The highest generation that is taken from an agent: a host that lies must not use the numbers up.
pub(crate) const MAX_FOLLOWED: u64 = 1 << 48;

/// The most policies that an error names.
const MAX_NAMED: usize = 5;

/// Every policy with its version.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyManifest {
    /// Rises with every change of a policy.
    pub generation: u64,
    /// Each policy as it was written last.
    pub policies: BTreeMap<Name, PolicyMark>,
}

/// A policy as it was written last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "WireMark")]
pub struct PolicyMark {
    /// The version.
    pub version: Version,
    /// The SHA-256 of its text without the seal, in hexadecimal; empty in a manifest of an earlier broker, until the next change of a policy.
    pub digest: String,
}

/// A policy in a manifest: earlier brokers wrote its version alone.
#[derive(Deserialize)]
#[serde(untagged)]
enum WireMark {
    Version(Version),
    Mark { version: Version, digest: String },
}

impl From<WireMark> for PolicyMark {
    fn from(wire: WireMark) -> Self {
        match wire {
            WireMark::Version(version) => Self { version, digest: String::new() },
            WireMark::Mark { version, digest } => Self { version, digest },
        }
    }
}

impl PolicyMark {
    /// Reports whether a policy that is there is this one.
    fn is(&self, there: &Self) -> bool {
        self.version == there.version && (self.digest.is_empty() || self.digest == there.digest)
    }
}

/// The newest policies that a broker has seen, which it keeps outside the store.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SeenPolicies {
    /// The generation of their manifest.
    pub generation: u64,
    /// The policies; none if only the generation was kept.
    #[serde(default)]
    pub policies: Option<BTreeMap<Name, PolicyMark>>,
}

impl From<PolicyManifest> for SeenPolicies {
    fn from(manifest: PolicyManifest) -> Self {
        Self { generation: manifest.generation, policies: Some(manifest.policies) }
    }
}

impl SeenPolicies {
    /// Returns the manifest; none if only the generation was kept.
    pub(crate) fn manifest(&self) -> Option<PolicyManifest> {
        let policies = self.policies.clone()?;
        Some(PolicyManifest { generation: self.generation, policies })
    }

    /// Checks that a manifest of the store is no older than this one, and not another one of the same generation.
    ///
    /// # Errors
    /// It is.
    pub(crate) fn check(&self, manifest: &PolicyManifest) -> Result<(), StoreError> {
        let (generation, seen) = (manifest.generation, self.generation);
        let is_other =
            generation == seen && self.policies.as_ref().is_some_and(|it| *it != manifest.policies);
        if generation > seen || (generation == seen && !is_other) {
            return Ok(());
        }
        let what = if is_other {
            format!(
                "they are other ones of generation {seen} than this broker has seen, so the store went back"
            )
        } else {
            format!(
                "they have generation {generation}, and this broker has seen generation {seen}, so the store went back"
            )
        };
        Err(StoreError::PoliciesLost { what })
    }
}

/// The key of the manifest: there is one.
#[derive(Debug, Clone, Copy)]
pub struct TheManifest;

impl fmt::Display for TheManifest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("policies")
    }
}

impl Record for PolicyManifest {
    const KIND: Kind = Kind::new("manifests", "manifest of the policies").sealed();
    type Key = TheManifest;

    fn subject(_: &str) -> String {
        "the manifest of the policies".to_owned()
    }
}

impl PolicyManifest {
    /// Reports whether an earlier broker wrote it, without digests.
    pub(crate) fn lacks_digests(&self) -> bool {
        self.policies.values().any(|mark| mark.digest.is_empty())
    }

    /// Takes the digests that it lacks from the policies that are there.
    pub(crate) fn complete(&mut self, there: &BTreeMap<Name, PolicyMark>) {
        for (name, mark) in &mut self.policies {
            if let Some(found) = there.get(name).filter(|found| mark.is(found)) {
                mark.clone_from(found);
            }
        }
    }

    /// Checks that the policies that are there are those that the manifest names.
    ///
    /// # Errors
    /// They are not: the first ones that differ.
    pub(crate) fn check(&self, there: &BTreeMap<Name, PolicyMark>) -> Result<(), StoreError> {
        let missing = self.policies.iter().filter_map(|(name, kept)| match there.get(name) {
            Some(found) if kept.is(found) => None,
            Some(found) if found.version == kept.version => Some(format!(
                "the policy {name} has version {}, but not the text that was kept",
                kept.version
            )),
            Some(found) => {
                Some(format!("the policy {name} has version {} instead of {}", found.version, kept.version))
            }
            None => Some(format!("the policy {name} is missing")),
        });
        let again = there.keys().filter(|name| !self.policies.contains_key(*name));
        let again = again.map(|name| format!("the policy {name} was deleted and is there again"));
        let mut all = missing.chain(again);
        let mut what = all.by_ref().take(MAX_NAMED).collect::<Vec<_>>().join("; ");
        if what.is_empty() {
            return Ok(());
        }
        let more = all.count();
        if more > 0 {
            what = format!("{what}; and {more} more");
        }
        Err(StoreError::PoliciesLost { what })
    }
}

/// Policies for an administrator who compares them, with the trouble with them as a whole.
#[derive(Debug, Clone)]
pub struct ComparedPolicies {
    /// The genuine policies that are there.
    pub policies: Vec<Versioned<Policy>>,
    /// The difference from the policies that were kept last; none if there is none.
    pub trouble: Option<String>,
}

/// Every policy, with the generation of their manifest.
#[derive(Debug, Clone)]
pub struct KeptPolicies<P = Versioned<Policy>> {
    /// The generation; 0 if no policy was written since there is a manifest.
    pub generation: u64,
    /// The policies.
    pub policies: Vec<P>,
}
