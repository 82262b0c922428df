//! The report on the replacement of the root: the agents and the people that still need the old one.
//!
//! `postern-broker authority roll` runs beside a broker, and cannot read the store that the broker holds. So each running broker
//! writes down what it reads there, in `roll.json` in its data directory, every few seconds while a root is being replaced.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use jiff::{SignedDuration, Timestamp};
use postern_core::KeyHash;
use postern_pki::Authority;
use postern_pki::authority::{AGENT_LIFETIME, RollPhase};
use postern_runtime::files;
use postern_store::{AgentRecord, IssuedCertificate, IssuedPrincipal, Store};
use serde::{Deserialize, Serialize};

use crate::config::BrokerConfig;
use crate::principals::{Issuance, Revocations};

/// The age up to which a report counts.
const GOOD_FOR: SignedDuration = SignedDuration::from_secs(60);
/// The most names of each list in a report.
const MAX_NAMED: usize = 1000;

/// The place of the report.
#[derive(Debug, Clone)]
pub struct RollReport {
    file: PathBuf,
}

/// The report of a broker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitingParties {
    /// The key of the next root.
    pub next_root: KeyHash,
    /// Set if the next root signs.
    pub switched: bool,
    /// The time of the report, by the wall clock.
    pub at: Timestamp,
    /// Before the next root signs: the agents that have not reported that they trust it. Afterwards: those that have not used a
    /// certificate under it. At most 1,000 are named.
    pub agents: Vec<String>,
    /// After the next root signs: the principals with a certificate from before that has not ended. At most 1,000 are named.
    pub people: Vec<String>,
}

impl RollReport {
    /// Returns the report of the broker with this configuration.
    pub fn of(config: &BrokerConfig) -> Self {
        Self::at(config.data_dir.join("roll.json"))
    }

    /// Returns the report in a file.
    pub fn at(file: PathBuf) -> Self {
        Self { file }
    }

    /// Returns the file.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Writes the report, or removes it if no root is being replaced.
    ///
    /// # Errors
    /// The store failed, or the file cannot be written.
    pub(super) async fn write(
        &self,
        authority: &Authority,
        store: &Store,
        revocations: &Revocations,
        now: Timestamp,
    ) -> anyhow::Result<()> {
        let Some(next) = authority.next_root() else {
            return files::remove(&self.file)
                .with_context(|| format!("cannot remove {}", self.file.display()));
        };
        let switched = authority.phase() == RollPhase::Switched;
        let mut report =
            WaitingParties { next_root: next.key, switched, at: now, agents: Vec::new(), people: Vec::new() };
        let switched_at = switched.then(|| authority.intermediate().made_at());
        for agent in store.agents().await.context("cannot read the agents")? {
            if waits(&agent.record, next.key, switched_at) && report.agents.len() < MAX_NAMED {
                report.agents.push(agent.record.target.to_string());
            }
        }
        if switched {
            let people = authority.people().context("cannot read the intermediate for people")?;
            let people_at = people.map_or(now, |people| people.made_at());
            for principal in store.issued_principals().await.context("cannot read the principals")? {
                let IssuedPrincipal { principal, certificates, .. } = principal.record;
                let is_in_use = |certificate: &IssuedCertificate| {
                    let (at, serial) = (certificate.issued_at, Some(certificate.serial.clone()));
                    certificate.issued_at < people_at
                        && certificate.not_after > now
                        && !revocations.cover(&principal, &Issuance { at, serial })
                };
                if certificates.values().any(is_in_use) && report.people.len() < MAX_NAMED {
                    report.people.push(principal.to_string());
                }
            }
        }
        let text = serde_json::to_vec(&report)?;
        files::replace_durably_for_owner_of_dir(&self.file, &text, files::PRIVATE)
            .with_context(|| format!("cannot write {}", self.file.display()))
    }

    /// Reads the report of a broker that runs.
    ///
    /// # Errors
    /// There is none, it is old, or it is about another root.
    pub fn read(&self, authority: &Authority, now: Timestamp) -> anyhow::Result<WaitingParties> {
        let text = std::fs::read(&self.file).with_context(|| {
            format!("no broker reports in {} who needs the old root", self.file.display())
        })?;
        let report: WaitingParties =
            serde_json::from_slice(&text).with_context(|| format!("cannot read {}", self.file.display()))?;
        let is_current = authority.next_root().is_some_and(|next| next.key == report.next_root)
            && report.switched == (authority.phase() == RollPhase::Switched);
        let age = now.duration_since(report.at).abs();
        anyhow::ensure!(
            is_current && age < GOOD_FOR,
            "the report of the broker in {} is not of this moment; wait until a running broker has written it again",
            self.file.display()
        );
        Ok(report)
    }
}

/// Reports whether an agent still needs the old root.
fn waits(agent: &AgentRecord, next: KeyHash, switched_at: Option<Timestamp>) -> bool {
    if agent.banned.is_some() || agent.forgotten.is_some() {
        return false;
    }
    let renewed_at = agent.certificate_not_after.saturating_sub(AGENT_LIFETIME).unwrap_or(Timestamp::MIN);
    let has_not_used_newest = || agent.keys.is_some_and(|keys| !keys.is_newest_used());
    match (switched_at, agent.certificate_root) {
        (None, _) => !agent.roots.contains(&next),
        // By the root itself: a broker that switches later goes on to sign under the old one.
        (Some(_), Some(root)) => root != next || has_not_used_newest(),
        (Some(switched_at), None) => renewed_at < switched_at,
    }
}
