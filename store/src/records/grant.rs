//! Grants, by their ids, with indexes by principal and by target.

use std::sync::Arc;

use postern_core::{Grant, GrantId, Policy, PrincipalKey, TargetId};

use super::agent::AgentRecord;
use super::manifest::{KeptPolicies, PolicyManifest, SeenPolicies, TheManifest};
use crate::backend::{Order, Range, Snapshot, SnapshotQuery};
use crate::batch::Expect;
use crate::coordination::Lease;
use crate::durable::Durable;
use crate::error::StoreError;
use crate::indexes::{ALL, Indexes};
use crate::kind::Kind;
use crate::record::{Record, Versioned};
use crate::store::Store;
use crate::transaction::Transaction;

/// The index of the grants that are not in a final state, and the last word of the same by target and by principal.
pub(crate) const OPEN: &str = "open";
/// The words of the states in which a grant is in [`OPEN`].
const OPEN_STATES: [&str; 4] = ["pending_approval", "opening", "active", "closing"];
/// The number of grants that are read at once.
const PAGE: usize = 500;
/// The number of grants that are read to find out whether there is one: the first may be forged.
const FEW: usize = 8;

fn of_principal(principal: &PrincipalKey) -> String {
    format!("of:{}", principal.to_text())
}

fn on_target(target: &TargetId) -> String {
    format!("on:{target}")
}

/// The name is that of every grant on the target and more, so that a database finds both lists on one page.
fn open_on_target(target: &TargetId) -> String {
    format!("{} {OPEN}", on_target(target))
}

fn open_of(principal: &PrincipalKey) -> String {
    format!("{} {OPEN}", of_principal(principal))
}

impl Record for Grant {
    const KIND: Kind = Kind::new("grants", "grant").sealed().announced();
    type Key = GrantId;

    fn indexes(&self) -> Indexes {
        let is_open = !self.state.is_final();
        let key = self.principal.key();
        let indexes = Indexes::default().and(ALL).and(&of_principal(key));
        let indexes = indexes.and_if(is_open, OPEN).and_if(is_open, &open_of(key));
        self.targets().into_iter().fold(indexes, |indexes, target| {
            indexes.and(&on_target(target)).and_if(is_open, &open_on_target(target))
        })
    }

    fn targets(&self) -> Vec<&TargetId> {
        Grant::targets(self)
    }
}

impl Transaction {
    /// Writes a grant.
    #[must_use]
    pub fn put_grant(self, grant: Grant, expect: Expect) -> Self {
        self.put(&grant.id.clone(), grant, expect)
    }
}

/// A selection of grants.
#[derive(Debug, Clone, Default)]
pub struct GrantQuery {
    /// Only those with a window on this target.
    pub target: Option<TargetId>,
    /// Only those in one of these states, by word; empty: any.
    pub states: Vec<&'static str>,
    /// Only those of this principal.
    pub principal: Option<PrincipalKey>,
    /// Only those older than this one (by id); for paging.
    pub before: Option<GrantId>,
    /// The most grants to return.
    pub limit: usize,
}

impl GrantQuery {
    /// Returns the shortest index that has every grant of the query.
    fn index(&self) -> String {
        let is_open = !self.states.is_empty() && self.states.iter().all(|state| OPEN_STATES.contains(state));
        match (&self.target, &self.principal) {
            (Some(target), _) if is_open => open_on_target(target),
            (Some(target), _) => on_target(target),
            (None, Some(principal)) if is_open => open_of(principal),
            (None, None) if is_open => OPEN.to_owned(),
            (None, Some(principal)) => of_principal(principal),
            (None, None) => ALL.to_owned(),
        }
    }

    /// Reports whether every grant of the index is one of the query's.
    fn selects_all(&self) -> bool {
        self.states.is_empty() && (self.target.is_none() || self.principal.is_none())
    }

    /// Reports whether a grant of the index is one of the query's.
    fn selects(&self, grant: &Grant) -> bool {
        self.principal.as_ref().is_none_or(|key| grant.principal.key() == key)
            && (self.states.is_empty() || self.states.contains(&grant.state.word()))
    }
}

/// The part of the store that concerns one target, at one instant.
#[derive(Debug, Clone)]
pub struct TargetSnapshot {
    /// The grants with a window on the target that are not in a final state, the oldest first.
    pub grants: Vec<Versioned<Grant>>,
    /// Every policy that covers the target; an error if one cannot be read, as the lack of a policy takes protection off.
    pub policies: Result<KeptPolicies<Policy>, Arc<StoreError>>,
    /// The target's agent, if it has one; a forged record counts as none. It may be newer than the other parts.
    pub agent: Option<AgentRecord>,
    /// The number of the last audit record at that instant; it rises with every change, across restarts.
    pub seq: u64,
}

impl Store {
    /// Returns a grant.
    ///
    /// # Errors
    /// The store failed, or the record cannot be read.
    pub async fn grant(&self, id: GrantId) -> Result<Option<Versioned<Grant>>, StoreError> {
        self.get(&id).await
    }

    /// Returns a grant, or that there is none, once that is as durable as an answered commit.
    ///
    /// # Errors
    /// It may be lost with the server that has it, or cannot be read.
    pub async fn durable_grant(&self, id: GrantId) -> Result<Durable<Option<Versioned<Grant>>>, StoreError> {
        self.get_durable(&id).await
    }

    /// Returns the grants that match the query, by id, the newest first.
    ///
    /// # Errors
    /// The store failed, or a record cannot be read.
    pub async fn grants(&self, query: GrantQuery) -> Result<Vec<Versioned<Grant>>, StoreError> {
        let (index, mut found) = (query.index(), Vec::new());
        let mut before = query.before.map(|id| id.to_string());
        while found.len() < query.limit {
            // Of a page that is filtered, few grants may be left: a caller that asks for one must not cause a read for each.
            let limit = if query.selects_all() { PAGE.min(query.limit - found.len()) } else { PAGE };
            let range =
                Range { order: Order::Descending, before: before.as_deref(), limit, ..Range::all(&index) };
            let page = self.page::<Grant>(range).await?;
            found.extend(page.records.into_iter().filter(|grant| query.selects(&grant.record)));
            before = page.next;
            if before.is_none() {
                break;
            }
        }
        found.truncate(query.limit);
        Ok(found)
    }

    /// Returns the grants of a principal with a window on this target that are not in a final state, the oldest first.
    ///
    /// # Errors
    /// The store failed, or a record cannot be read.
    pub async fn open_grants_of(
        &self,
        principal: &PrincipalKey,
        target: &TargetId,
    ) -> Result<Vec<Versioned<Grant>>, StoreError> {
        let index = open_on_target(target);
        let mut grants: Vec<Versioned<Grant>> = self.range(Range::all(&index)).await?;
        grants.retain(|grant| grant.record.principal.key() == principal);
        Ok(grants)
    }

    /// Returns the grants with a window on this target that are not in a final state, the oldest first.
    ///
    /// # Errors
    /// The store failed, or a record cannot be read.
    pub async fn open_grants_on(&self, target: &TargetId) -> Result<Vec<Versioned<Grant>>, StoreError> {
        self.range(Range::all(&open_on_target(target))).await
    }

    /// Reports whether the store has a grant with a window on this target, in whatever state.
    ///
    /// # Errors
    /// The store failed, or a record cannot be read.
    pub async fn has_grant_on(&self, target: &TargetId) -> Result<bool, StoreError> {
        let (index, mut after) = (on_target(target), None);
        loop {
            let range = Range { after: after.as_deref(), limit: FEW, ..Range::all(&index) };
            let page = self.page::<Grant>(range).await?;
            after = page.next;
            if !page.records.is_empty() || after.is_none() {
                return Ok(!page.records.is_empty());
            }
        }
    }

    /// Counts the grants with a window on this target that are not in a final state.
    ///
    /// # Errors
    /// The store failed.
    pub async fn count_open_grants_on(&self, target: &TargetId) -> Result<usize, StoreError> {
        self.backend().count(Grant::KIND, &open_on_target(target)).await
    }

    /// Returns the grants of a principal that are not in a final state, the oldest first.
    ///
    /// # Errors
    /// The store failed, or a record cannot be read.
    pub async fn open_grants_by(
        &self,
        principal: &PrincipalKey,
    ) -> Result<Vec<Versioned<Grant>>, StoreError> {
        self.range(Range::all(&open_of(principal))).await
    }

    /// Counts those grants.
    ///
    /// # Errors
    /// The store failed.
    pub async fn count_open_grants_of(&self, principal: &PrincipalKey) -> Result<usize, StoreError> {
        self.backend().count(Grant::KIND, &open_of(principal)).await
    }

    /// Returns every grant that is not in a final state, the oldest first.
    ///
    /// # Errors
    /// The store failed, or a record cannot be read.
    pub async fn open_grants(&self) -> Result<Vec<Versioned<Grant>>, StoreError> {
        self.range(Range::all(OPEN)).await
    }

    /// Returns the records of one target that the reconciler needs, read at one instant. They are as durable as an answered
    /// commit.
    ///
    /// # Errors
    /// [`StoreError::Fenced`] if this broker no longer holds the lease.
    pub async fn snapshot(&self, lease: &Lease) -> Result<TargetSnapshot, StoreError> {
        let index = open_on_target(&lease.target);
        let target = lease.target.to_string();
        let one = (AgentRecord::KIND, target.as_str());
        let manifest = TheManifest.to_string();
        let beside = (PolicyManifest::KIND, manifest.as_str());
        let wanted = SnapshotQuery { kind: Grant::KIND, index: &index, whole: Policy::KIND, beside, one };
        // Before the read: what is read after it is no older, unless the store went back.
        let seen = self.seen();
        let found = self.backend().snapshot(lease, wanted).await?;
        let grants = self.without_forged(&found.indexed, Some(&index))?;
        let policies = self.policies_for(&found, &lease.target, &seen).map_err(Arc::new);
        let agent = found.one.as_slice();
        let agent = self.without_forged::<AgentRecord>(agent, None)?.pop().map(|agent| agent.record);
        Ok(TargetSnapshot { grants, policies, agent, seq: found.seq })
    }

    fn policies_for(
        &self,
        found: &Snapshot,
        target: &TargetId,
        seen: &SeenPolicies,
    ) -> Result<KeptPolicies<Policy>, StoreError> {
        let manifest = self.of_document::<PolicyManifest>(found.beside.as_ref())?;
        let KeptPolicies { generation, policies } = self.fitting(&found.whole, manifest, seen)?;
        let policies = policies.into_iter().map(|policy| policy.record);
        Ok(KeptPolicies { generation, policies: policies.filter(|policy| policy.covers(target)).collect() })
    }
}

#[cfg(test)]
mod tests {
    use postern_core::audit::AuditEvent;
    use postern_core::{CloseReason, Event};

    use super::*;
    use crate::testing::builders::{a_grant, at, key};
    use crate::testing::memory::Memory;

    #[tokio::test]
    async fn i10_a_query_that_finds_little_reads_whole_pages() {
        let memory = Memory::default();
        let put = |changes: Transaction, number: u8| {
            let who = if number == 0 { "alice" } else { "bob" };
            changes.put_grant(a_grant().of(who).number(number).build(), Expect::Absent)
        };
        let event = AuditEvent::done(at(0), "a test", "test");
        memory.commit((0..100).fold(Transaction::default().audit(event), put)).await.unwrap();
        let before = memory.reads_of(Grant::KIND);
        let read = async |query: GrantQuery| {
            let before = memory.reads_of(Grant::KIND);
            let found = memory.grants(query).await.unwrap();
            (found.len(), memory.reads_of(Grant::KIND) - before)
        };
        assert_eq!(before, 0);
        let one = || GrantQuery { limit: 1, ..GrantQuery::default() };
        let alice = Some(key("alice"));
        let on_vm_1 = Some("host:vm-1".parse().unwrap());
        assert_eq!(read(one()).await, (1, 1));
        assert_eq!(read(GrantQuery { target: on_vm_1, principal: alice.clone(), ..one() }).await, (1, 1));
        assert_eq!(read(GrantQuery { states: vec!["closed"], ..one() }).await, (0, 1));
        assert_eq!(read(GrantQuery { states: vec!["opening"], principal: alice, ..one() }).await, (1, 1));
    }

    #[test]
    fn a_grant_is_in_the_open_indexes_until_it_is_over() {
        let names = |grant: &Grant| {
            let mut names: Vec<String> = grant.indexes().names().map(str::to_owned).collect();
            names.sort_unstable();
            names
        };
        let grant = a_grant().and_on("host:vm-2").build();
        let over = ["all", "of:alice", "on:host:vm-1", "on:host:vm-2"];
        let open = [
            "all",
            "of:alice",
            "of:alice open",
            "on:host:vm-1",
            "on:host:vm-1 open",
            "on:host:vm-2",
            "on:host:vm-2 open",
            "open",
        ];
        assert_eq!(names(&grant), open);
        let closing = grant.after(Event::Close(CloseReason::Expired), at(60)).unwrap();
        assert!(OPEN_STATES.contains(&closing.state.word()));
        assert_eq!(names(&closing), open);
        let closed = closing.after(Event::ClosedEverywhere, at(61)).unwrap();
        assert!(!OPEN_STATES.contains(&closed.state.word()));
        assert_eq!(names(&closed), over);
    }
}
