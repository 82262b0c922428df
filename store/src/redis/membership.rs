//! The broker's membership, the scripts that use it, and the errors of a broker that has lost it or a lease.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock};

use redis::Script;

use crate::error::StoreError;

/// The broker's current membership, which every write names.
#[derive(Debug)]
pub(super) struct Membership {
    id: RwLock<String>,
    /// Set until a renewal reports that the membership is new. The answer to a join may be lost although the server applied
    /// it; then a later renewal reports it.
    unreported: AtomicBool,
}

impl Membership {
    pub(super) fn new() -> Self {
        Self { id: RwLock::new(fresh()), unreported: AtomicBool::new(false) }
    }

    pub(super) fn id(&self) -> String {
        self.id.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn renew(&self) -> String {
        let id = fresh();
        self.id.write().unwrap_or_else(PoisonError::into_inner).clone_from(&id);
        self.unreported.store(true, Ordering::Relaxed);
        id
    }

    /// Notes that the caller now learns of the membership. Returns true if it is new to the caller.
    pub(super) fn report(&self) -> bool {
        self.unreported.swap(false, Ordering::Relaxed)
    }
}

/// Makes a random membership, so that none is used twice, even on a server that has lost its last writes.
fn fresh() -> String {
    format!("{:032x}", rand::random::<u128>())
}

/// The scripts.
pub(super) struct Scripts {
    pub(super) renew: Script,
    pub(super) take: Script,
    pub(super) take_over: Script,
    pub(super) give_back: Script,
    pub(super) lock: Script,
    pub(super) publish: Script,
    pub(super) statuses: Script,
}

impl Scripts {
    pub(super) fn new() -> Self {
        Self {
            renew: Script::new(script!("coordination/renew.lua")),
            take: Script::new(include_str!("coordination/take.lua")),
            take_over: Script::new(include_str!("coordination/take_over.lua")),
            give_back: Script::new(include_str!("coordination/give_back.lua")),
            lock: Script::new(include_str!("coordination/lock.lua")),
            publish: Script::new(include_str!("coordination/publish.lua")),
            statuses: Script::new(include_str!("coordination/statuses.lua")),
        }
    }
}

/// The error for a broker whose membership has ended.
pub(super) fn ended() -> StoreError {
    StoreError::Fenced {
        what: "this broker was away from its store for too long, and others do its work".into(),
    }
}

/// The error for a broker whose lease another broker holds by now.
pub(super) fn lost(target: &str) -> StoreError {
    StoreError::Fenced { what: format!("another broker works on {target} by now") }
}
