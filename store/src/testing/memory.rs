//! A store in memory, with the faults of a real one, for tests of everything above the store.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use postern_core::audit::{AuditRecord, Head};
use postern_core::{Grant, GrantId, Name, Policy, TargetId};

use crate::{
    AgentRecord, Change, Durable, Expect, GrantQuery, Lease, Store, StoreError, TargetSnapshot, TokenHash,
    TokenRecord, Transaction, Versioned,
};

/// A store in memory. It is lost with the process, and copies everything on each commit.
#[derive(Debug, Default)]
pub struct Memory {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    state: Records,
    faults: VecDeque<Fault>,
    /// Set while the newest commit is not durable.
    unconfirmed: bool,
}

#[derive(Debug, Clone)]
struct Records {
    grants: BTreeMap<GrantId, Versioned<Grant>>,
    requests: BTreeMap<(Name, String), GrantId>,
    /// A deleted policy keeps its version, and no record.
    policies: BTreeMap<Name, Versioned<Option<Policy>>>,
    agents: BTreeMap<TargetId, Versioned<AgentRecord>>,
    tokens: BTreeMap<TokenHash, TokenRecord>,
    audit: Vec<String>,
    head: Head,
}

/// A fault of the next commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// No fault: the commit succeeds.
    Nothing,
    /// The commit has no effect, and the caller cannot know: [`StoreError::Unavailable`].
    Before,
    /// The commit takes effect, and the answer is lost: [`StoreError::Unavailable`].
    After,
    /// The commit takes effect, and is not durable until a later commit is: [`StoreError::Unavailable`].
    Unconfirmed,
    /// The store has no room: [`StoreError::Full`].
    Full,
    /// Another caller was first: [`StoreError::Conflict`].
    Conflict,
}

/// The error of a fault.
#[derive(Debug, thiserror::Error)]
#[error("the connection to the store was lost")]
struct Lost;

fn lost() -> StoreError {
    StoreError::Unavailable { source: Box::new(Lost) }
}

impl Memory {
    /// Gives each of the next commits a fault.
    pub fn fail_next(&self, faults: impl IntoIterator<Item = Fault>) {
        self.lock().faults.extend(faults);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn durable<T>(&self, value: T) -> Result<Durable<T>, StoreError> {
        if self.lock().unconfirmed { Err(lost()) } else { Ok(Durable::new(value)) }
    }

    fn read<T>(&self, look: impl FnOnce(&Records) -> T) -> Result<T, StoreError> {
        Ok(look(&self.lock().state))
    }
}

impl Default for Records {
    fn default() -> Self {
        Self {
            grants: BTreeMap::new(),
            requests: BTreeMap::new(),
            policies: BTreeMap::new(),
            agents: BTreeMap::new(),
            tokens: BTreeMap::new(),
            audit: Vec::new(),
            head: Head::EMPTY,
        }
    }
}

impl Records {
    fn after(&self, transaction: Transaction) -> Result<Self, StoreError> {
        if transaction.is_unaudited() {
            return Err(StoreError::Unaudited);
        }
        let mut next = self.clone();
        for change in transaction.changes {
            let what = change.subject();
            if !next.apply(change) {
                return Err(StoreError::Conflict { what });
            }
        }
        for event in transaction.audit {
            let record = AuditRecord::following(&next.head, event);
            next.head = record.head();
            next.audit.push(record.to_line());
        }
        Ok(next)
    }

    /// Makes the change, and reports whether it could be made. If not, the records are half changed and must be dropped.
    fn apply(&mut self, change: Change) -> bool {
        match change {
            Change::PutGrant { grant, expect } => put(&mut self.grants, grant.id, grant, expect),
            Change::RememberRequest { principal, key, grant } => {
                self.requests.insert((principal, key), grant).is_none()
            }
            Change::PutPolicy { policy, expect } => {
                let before = self.policies.get(&policy.name);
                let found = before.filter(|before| before.record.is_some()).map(|before| before.version);
                let version = before.map_or(0, |before| before.version) + 1;
                self.policies.insert(policy.name.clone(), Versioned { record: Some(policy), version });
                expect.holds(found)
            }
            Change::DeletePolicy { name } => match self.policies.get_mut(&name) {
                Some(policy) => {
                    policy.version += 1;
                    policy.record.take().is_some()
                }
                None => false,
            },
            Change::PutAgent { agent, expect } => put(&mut self.agents, agent.target.clone(), agent, expect),
            Change::PutToken { hash, token } => {
                self.tokens.insert(hash, token);
                true
            }
            Change::TakeToken { hash } => self.tokens.remove(&hash).is_some(),
        }
    }

    fn policies(&self) -> impl Iterator<Item = Versioned<Policy>> {
        self.policies.values().filter_map(present)
    }

    fn open_grants(&self) -> impl Iterator<Item = &Versioned<Grant>> {
        self.grants.values().filter(|grant| !grant.record.state.is_final())
    }
}

fn put<K: Ord, T>(records: &mut BTreeMap<K, Versioned<T>>, key: K, record: T, expect: Expect) -> bool {
    let found = records.get(&key).map(|record| record.version);
    records.insert(key, Versioned { record, version: found.unwrap_or(0) + 1 });
    expect.holds(found)
}

fn present(policy: &Versioned<Option<Policy>>) -> Option<Versioned<Policy>> {
    Some(Versioned { record: policy.record.clone()?, version: policy.version })
}

fn has_window_on(grant: &Grant, target: &TargetId) -> bool {
    grant.windows.iter().any(|window| window.target == *target)
}

#[async_trait]
impl Store for Memory {
    async fn commit(&self, transaction: Transaction) -> Result<Head, StoreError> {
        let mut inner = self.lock();
        let fault = inner.faults.pop_front();
        match fault {
            Some(Fault::Before) => return Err(lost()),
            Some(Fault::Full) => return Err(StoreError::Full),
            Some(Fault::Conflict) => {
                let what =
                    transaction.changes.first().map_or_else(|| "the audit log".to_owned(), Change::subject);
                return Err(StoreError::Conflict { what });
            }
            Some(Fault::After | Fault::Unconfirmed | Fault::Nothing) | None => {}
        }
        inner.state = inner.state.after(transaction)?;
        inner.unconfirmed = fault == Some(Fault::Unconfirmed);
        match fault {
            Some(Fault::After | Fault::Unconfirmed) => Err(lost()),
            _ => Ok(inner.state.head),
        }
    }

    async fn grant(&self, id: GrantId) -> Result<Option<Versioned<Grant>>, StoreError> {
        self.read(|state| state.grants.get(&id).cloned())
    }

    async fn durable_grant(&self, id: GrantId) -> Result<Durable<Option<Versioned<Grant>>>, StoreError> {
        self.durable(self.grant(id).await?)
    }

    async fn grants(&self, query: GrantQuery) -> Result<Vec<Versioned<Grant>>, StoreError> {
        let wanted = |grant: &&Versioned<Grant>| {
            let Versioned { record, .. } = grant;
            query.before.is_none_or(|before| record.id < before)
                && query.target.as_ref().is_none_or(|target| has_window_on(record, target))
                && query.principal.as_ref().is_none_or(|name| record.principal.name == *name)
                && (query.states.is_empty() || query.states.contains(&record.state.word()))
        };
        self.read(|state| state.grants.values().rev().filter(wanted).take(query.limit).cloned().collect())
    }

    async fn open_grants(&self) -> Result<Vec<Versioned<Grant>>, StoreError> {
        self.read(|state| state.open_grants().cloned().collect())
    }

    async fn grant_of_request(&self, principal: &Name, key: &str) -> Result<Option<GrantId>, StoreError> {
        self.read(|state| state.requests.get(&(principal.clone(), key.to_owned())).copied())
    }

    async fn snapshot(&self, lease: &Lease) -> Result<TargetSnapshot, StoreError> {
        self.read(|state| TargetSnapshot {
            grants: state
                .open_grants()
                .filter(|grant| has_window_on(&grant.record, &lease.target))
                .cloned()
                .collect(),
            policies: state
                .policies()
                .map(|policy| policy.record)
                .filter(|policy| policy.covers(&lease.target))
                .collect(),
            seq: state.head.seq,
        })
    }

    async fn policies(&self) -> Result<Vec<Versioned<Policy>>, StoreError> {
        self.read(|state| state.policies().collect())
    }

    async fn policy(&self, name: &Name) -> Result<Option<Versioned<Policy>>, StoreError> {
        self.read(|state| state.policies.get(name).and_then(present))
    }

    async fn durable_policy(&self, name: &Name) -> Result<Durable<Option<Versioned<Policy>>>, StoreError> {
        self.durable(self.policy(name).await?)
    }

    async fn agents(&self) -> Result<Vec<Versioned<AgentRecord>>, StoreError> {
        self.read(|state| state.agents.values().cloned().collect())
    }

    async fn agent(&self, target: &TargetId) -> Result<Option<Versioned<AgentRecord>>, StoreError> {
        self.read(|state| state.agents.get(target).cloned())
    }

    async fn token(&self, hash: &TokenHash) -> Result<Option<TokenRecord>, StoreError> {
        self.read(|state| state.tokens.get(hash).cloned())
    }

    async fn audit_lines(&self, after: u64, limit: usize) -> Result<Vec<(u64, String)>, StoreError> {
        let after = usize::try_from(after).unwrap_or(usize::MAX);
        self.read(|state| (1..).zip(state.audit.iter().cloned()).skip(after).take(limit).collect())
    }

    async fn audit_head(&self) -> Result<Head, StoreError> {
        self.read(|state| state.head)
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use postern_core::audit::AuditEvent;

    use super::*;
    use crate::testing::conformance;

    impl conformance::Leasing for Memory {}

    #[tokio::test(flavor = "multi_thread")]
    async fn the_fake_conforms() {
        conformance::run(async || Memory::default()).await;
    }

    #[tokio::test]
    async fn a_fault_befalls_one_commit_and_only_after_takes_effect() {
        let store = Memory::default();
        store.fail_next([Fault::Before, Fault::Full, Fault::Conflict, Fault::After]);
        let event = AuditEvent::done(Timestamp::UNIX_EPOCH, "broker", "test");
        let commit = async || store.commit(Transaction::default().audit(event.clone())).await;
        assert!(matches!(commit().await, Err(StoreError::Unavailable { .. })));
        assert!(matches!(commit().await, Err(StoreError::Full)));
        assert!(matches!(commit().await, Err(StoreError::Conflict { .. })));
        assert_eq!(store.audit_head().await.unwrap(), Head::EMPTY);
        assert!(matches!(commit().await, Err(StoreError::Unavailable { .. })));
        assert_eq!(store.audit_head().await.unwrap().seq, 1);
        assert_eq!(commit().await.unwrap().seq, 2);
    }
}
