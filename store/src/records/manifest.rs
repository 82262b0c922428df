//! The manifest of the policies: which policies there are, each with its version.
//!
//! **The problem.** A seal shows that a broker wrote a policy, and not that it is still kept. A store that loses a policy, or brings an old
//! one back, would take protection off hosts, or give rights that an administrator has taken away.
//!
//! **The rule.** One sealed record names every policy with its version. [`Store::commit`](crate::Store::commit) writes it with each
//! policy, in the same transaction, and raises its *generation*. The policies can be read only if they are those that it names. Agents
//! keep the highest generation that they have followed: protection comes off a host only with a higher one.
//!
//! **On failure.** A list that does not fit is read again, as it may have changed between the two reads; then it is an error
//! ([`StoreError::PoliciesLost`]), which names the policy. An administrator applies that policy again, or deletes it. A store that went
//! back as a whole fits itself, and has a lower generation than a broker has seen ([`Store::has_seen`](crate::Store::has_seen)), which is
//! the same error, and than its agents have followed ([`Store::agent_follows`](crate::Store::agent_follows)). The next policy that an
//! administrator applies gets a generation past both.

use std::collections::BTreeMap;
use std::fmt;

use postern_core::{Name, Policy};
use serde::{Deserialize, Serialize};

use crate::error::StoreError;
use crate::kind::{Kind, Version};
use crate::record::{Record, Versioned};

/// The highest generation that is taken from an agent: a host that lies must not use the numbers up.
pub(crate) const MAX_FOLLOWED: u64 = 1 << 48;

/// Every policy with its version.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyManifest {
    /// Rises with every change of a policy.
    pub generation: u64,
    /// The version of each policy.
    pub policies: BTreeMap<Name, Version>,
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
    /// Checks that these are the policies that the manifest names.
    ///
    /// # Errors
    /// The first one that is not.
    pub(crate) fn check(&self, policies: &[Versioned<Policy>]) -> Result<(), StoreError> {
        let lost = |what: String| Err(StoreError::PoliciesLost { what });
        let kept: BTreeMap<&Name, Version> =
            policies.iter().map(|policy| (&policy.record.name, policy.version)).collect();
        for (name, version) in &self.policies {
            match kept.get(name) {
                Some(kept) if kept == version => {}
                Some(kept) => {
                    return lost(format!("the policy {name} has version {kept} instead of {version}"));
                }
                None => return lost(format!("the policy {name} is missing")),
            }
        }
        match kept.keys().find(|name| !self.policies.contains_key(**name)) {
            Some(name) => lost(format!("the policy {name} was deleted and is there again")),
            None => Ok(()),
        }
    }
}

/// Every policy, with the generation of their manifest.
#[derive(Debug, Clone)]
pub struct KeptPolicies<P = Versioned<Policy>> {
    /// The generation; 0 if no policy was written since there is a manifest.
    pub generation: u64,
    /// The policies.
    pub policies: Vec<P>,
}
