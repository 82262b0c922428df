//! The network security groups as this process knows them, and one write at a time for each.
//!
//! Azure refuses a write of a group while another is under way. A write builds on the last read and on the writes since. After
//! an error the process forgets the group, and the next write reads it first. Another broker and other principals write the
//! same groups: where a read shows another state and may be the newer one, the next write reads the group first, too.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use postern_provider::CloudError;
use postern_provider::kit::{CallError, KeyedStates, Known};
use serde_json::value::to_raw_value;
use tokio::sync::{Mutex, MutexGuard};

use crate::arm::{Arm, NETWORK};
use crate::error::WriteError;
use crate::id::{ArmId, is_plain};
use crate::json::{Fields, etag, nested};
use crate::network::Nsg;
use crate::plan::RuleWrite;
use crate::reader::Reader;
use crate::rules::NewNsgRule;

/// The remedy where Azure Policy refuses the move of a customer's rule.
const MOVE_FORBIDDEN: &str = "a policy of Azure forbids the move of this rule, which is not Postern's: exempt it, or release the VM and lock it down without `--accept precedence`";

/// The groups that this process has read or written.
#[derive(Default)]
pub(crate) struct KnownGroups {
    states: KeyedStates<ArmId, GroupState>,
}

/// The memory of one group.
#[derive(Default)]
pub(crate) struct GroupState {
    known: Mutex<Known<Nsg>>,
    /// Counts the begin and end of each write guard, and each recorded read: a read that began at an earlier count is older
    /// than the known state.
    epoch: AtomicU64,
    /// A read was dropped that may have been newer than the known state.
    must_reread: AtomicBool,
}

/// The right to write a group. One task holds it at a time.
pub(crate) struct WriteGuard<'a> {
    arm: &'a Arm,
    id: &'a ArmId,
    known: MutexGuard<'a, Known<Nsg>>,
    epoch: &'a AtomicU64,
}

impl Drop for WriteGuard<'_> {
    fn drop(&mut self) {
        // Counted before the next guard: a read that began under this one may have missed its writes.
        self.epoch.fetch_add(1, Ordering::SeqCst);
    }
}

impl KnownGroups {
    pub(crate) fn state(&self, id: &ArmId) -> Arc<GroupState> {
        self.states.of(id)
    }

    /// Returns the count of each group, taken before a read.
    pub(crate) fn epochs(&self) -> HashMap<ArmId, u64> {
        self.states.map(|state| state.epoch.load(Ordering::SeqCst))
    }

    /// Records the groups of a read, where nothing was written or recorded meanwhile.
    pub(crate) fn record(&self, read: &BTreeMap<ArmId, Nsg>, before: &HashMap<ArmId, u64>) {
        for (id, group) in read {
            let state = self.state(id);
            let Ok(mut known) = state.known.try_lock() else {
                state.must_reread.store(true, Ordering::SeqCst);
                continue;
            };
            if state.epoch.load(Ordering::SeqCst) == before.get(id).copied().unwrap_or(0) {
                state.epoch.fetch_add(1, Ordering::SeqCst);
                known.learn(group.clone());
            } else {
                known.forget_unless(|known| known == group);
            }
        }
    }
}

impl GroupState {
    /// Waits for the right to write. Tasks get it in the order in which they asked.
    pub(crate) async fn lock<'a>(&'a self, arm: &'a Arm, id: &'a ArmId) -> WriteGuard<'a> {
        let mut known = self.known.lock().await;
        self.epoch.fetch_add(1, Ordering::SeqCst);
        if self.must_reread.swap(false, Ordering::SeqCst) {
            known.forget();
        }
        WriteGuard { arm, id, known, epoch: &self.epoch }
    }
}

impl WriteGuard<'_> {
    /// Returns the group, and reads it if it is not known; none where it does not exist.
    pub(crate) async fn group(&mut self, reader: Reader<'_>) -> Result<Option<Nsg>, CallError> {
        if self.known.get().is_none() {
            self.known.learn(reader.group(self.id).await?);
        }
        Ok(self.known.get().cloned())
    }

    /// Forgets the known state.
    pub(crate) fn forget(&mut self) {
        self.known.forget();
    }

    /// Writes one of Postern's rules.
    pub(crate) async fn put(&mut self, rule: &NewNsgRule) -> Result<(), CallError> {
        let call = self.arm.put_rule(self.id, &rule.name, rule.to_azure());
        let put = |group: &mut Nsg| {
            group.rules.retain(|other| !other.name.eq_ignore_ascii_case(&rule.name));
            group.rules.push(rule.read_back());
            group.rules.sort_by_key(|rule| (rule.is_default, rule.priority));
        };
        self.known.change(call, put).await
    }

    /// Deletes one of Postern's rules.
    pub(crate) async fn delete(&mut self, name: &str) -> Result<(), CallError> {
        let call = self.arm.delete_rule(self.id, name);
        let delete = |group: &mut Nsg| group.rules.retain(|rule| !rule.name.eq_ignore_ascii_case(name));
        self.known.change(call, delete).await
    }

    /// Makes a planned write.
    pub(crate) async fn write(&mut self, write: &RuleWrite) -> Result<(), WriteError> {
        tracing::info!(group = %self.id, ?write, "changing a network security group");
        match write {
            RuleWrite::Put(_, rule) => self.put(rule).await?,
            RuleWrite::Delete(_, name) => self.delete(name).await?,
            RuleWrite::Move { rule, to, .. } => {
                self.forget();
                self.move_rule(rule, *to).await?;
            }
        }
        Ok(())
    }

    /// Gives one of the customer's rules another priority. All else of it is written as it was read.
    async fn move_rule(&mut self, name: &str, to: u16) -> Result<(), WriteError> {
        let refused = |reason: String| WriteError::Refused(CloudError::refused(reason));
        if !is_plain(name) {
            return Err(refused(format!("the name of rule {name:?} cannot be sent; move it by hand")));
        }
        let path = format!("{}/securityrules/{name}", self.id);
        let id = ArmId::new(&path).ok_or_else(|| refused(format!("{path} is not the id of a resource")))?;
        let body = self.arm.get_raw(&id, NETWORK).await?;
        let (body, etag) = with_priority(&body, to).map_err(|error| {
            let reason = format!("rule {name} of {} cannot be read: {error}", self.id.in_words());
            WriteError::Refused(CloudError::unavailable(reason))
        })?;
        let moved = self.arm.put_raw(&path, NETWORK, body, etag.as_deref()).await;
        Ok(moved.map_err(|error| error.with_remedy("RequestDisallowedByPolicy", MOVE_FORBIDDEN))?)
    }
}

/// Returns a rule with another priority and all else byte for byte, and its etag.
fn with_priority(body: &[u8], priority: u16) -> serde_json::Result<(Bytes, Option<String>)> {
    let mut rule: Fields = serde_json::from_slice(body)?;
    let etag = etag(&rule);
    let mut properties: Fields = nested(&rule, "properties")?;
    properties.insert("priority".into(), to_raw_value(&priority)?);
    rule.insert("properties".into(), to_raw_value(&properties)?);
    Ok((Bytes::from(serde_json::to_vec(&rule)?), etag))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moved_rule_keeps_every_byte_but_its_priority() {
        let body = r#"{"name":"ssh","etag":"W/\"7\"","properties":{"priority":100,"odd":1.50,"sourceAddressPrefixes":[],"x":null}}"#;
        let (moved, etag) = with_priority(body.as_bytes(), 1001).unwrap();
        assert_eq!(moved, body.replace("\"priority\":100", "\"priority\":1001"));
        assert_eq!(etag.unwrap(), "W/\"7\"");
    }
}
