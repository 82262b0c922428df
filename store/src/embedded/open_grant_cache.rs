//! A cache of the open grants, the policies and the head, which every request and every pass of the reconciler reads.
//!
//! Only this broker has the database open, so the cache is complete. It follows a commit once that is durable and before the
//! callers are answered: no reader sees a record that a power cut could take back, and a caller that was answered sees its
//! own commit.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use postern_core::audit::Head;
use postern_core::{Grant, GrantId, Name, Policy, TargetId};

use crate::{Change, TargetSnapshot, Version, Versioned};

/// The cache, shared by the writer and all readers.
#[derive(Debug, Clone)]
pub(super) struct OpenGrantCache {
    shared: Arc<RwLock<Cached>>,
}

#[derive(Debug)]
struct Cached {
    /// The grants that are not in a final state.
    open: BTreeMap<GrantId, Versioned<Grant>>,
    by_target: HashMap<TargetId, BTreeSet<GrantId>>,
    policies: BTreeMap<Name, Versioned<Policy>>,
    head: Head,
}

/// The effect of a change on the cache.
#[derive(Debug)]
pub(super) enum Effect {
    Grant(Box<Versioned<Grant>>),
    Policy(Versioned<Policy>),
    NoPolicy(Name),
    None,
}

impl Effect {
    /// Returns the effect of a change that gave its record this version.
    pub(super) fn of(change: Change, version: Version) -> Self {
        match change {
            Change::PutGrant { grant, .. } => Self::Grant(Box::new(Versioned { record: grant, version })),
            Change::PutPolicy { policy, .. } => Self::Policy(Versioned { record: policy, version }),
            Change::DeletePolicy { name } => Self::NoPolicy(name),
            Change::RememberRequest { .. }
            | Change::PutAgent { .. }
            | Change::PutToken { .. }
            | Change::TakeToken { .. } => Self::None,
        }
    }
}

impl OpenGrantCache {
    /// Fills the cache from the database.
    pub(super) fn new(
        open: impl IntoIterator<Item = Versioned<Grant>>,
        policies: impl IntoIterator<Item = Versioned<Policy>>,
        head: Head,
    ) -> Self {
        let mut cached =
            Cached { open: BTreeMap::new(), by_target: HashMap::new(), policies: BTreeMap::new(), head };
        open.into_iter().for_each(|grant| cached.follow(Effect::Grant(Box::new(grant))));
        policies.into_iter().for_each(|policy| cached.follow(Effect::Policy(policy)));
        Self { shared: Arc::new(RwLock::new(cached)) }
    }

    /// Follows a durable commit.
    pub(super) fn follow(&self, effects: impl IntoIterator<Item = Effect>, head: Head) {
        let mut cached = self.shared.write().unwrap_or_else(PoisonError::into_inner);
        effects.into_iter().for_each(|effect| cached.follow(effect));
        cached.head = head;
    }

    /// Returns a grant that is not in a final state.
    pub(super) fn open_grant(&self, id: GrantId) -> Option<Versioned<Grant>> {
        self.look().open.get(&id).cloned()
    }

    pub(super) fn open_grants(&self) -> Vec<Versioned<Grant>> {
        self.look().open.values().cloned().collect()
    }

    pub(super) fn snapshot(&self, target: &TargetId) -> TargetSnapshot {
        let cached = self.look();
        let ids = cached.by_target.get(target).into_iter().flatten();
        let policies = cached.policies.values().filter(|policy| policy.record.covers(target));
        TargetSnapshot {
            grants: ids.filter_map(|id| cached.open.get(id)).cloned().collect(),
            policies: policies.map(|policy| policy.record.clone()).collect(),
            seq: cached.head.seq,
        }
    }

    pub(super) fn policies(&self) -> Vec<Versioned<Policy>> {
        self.look().policies.values().cloned().collect()
    }

    pub(super) fn policy(&self, name: &Name) -> Option<Versioned<Policy>> {
        self.look().policies.get(name).cloned()
    }

    pub(super) fn head(&self) -> Head {
        self.look().head
    }

    fn look(&self) -> RwLockReadGuard<'_, Cached> {
        self.shared.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cached {
    fn follow(&mut self, effect: Effect) {
        match effect {
            Effect::Grant(grant) if grant.record.state.is_final() => self.forget(&grant.record),
            Effect::Grant(grant) => {
                for target in grant.record.targets() {
                    self.by_target.entry(target.clone()).or_default().insert(grant.record.id);
                }
                self.open.insert(grant.record.id, *grant);
            }
            Effect::Policy(policy) => {
                self.policies.insert(policy.record.name.clone(), policy);
            }
            Effect::NoPolicy(name) => {
                self.policies.remove(&name);
            }
            Effect::None => {}
        }
    }

    fn forget(&mut self, grant: &Grant) {
        self.open.remove(&grant.id);
        for target in grant.targets() {
            if let Some(ids) = self.by_target.get_mut(target) {
                ids.remove(&grant.id);
                if ids.is_empty() {
                    self.by_target.remove(target);
                }
            }
        }
    }
}
