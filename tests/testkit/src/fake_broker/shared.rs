//! The state of a fake broker, which its services share with the test.

use std::collections::HashSet;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use postern_pki::authority::Authority;
use postern_proto::v1;
use tokio::sync::mpsc;

use super::rpc::RpcCall;
use super::script::Script;
use super::session::AgentSession;
use crate::faults::FaultPlan;

/// A function that makes the answer to a renewal from its certificate request.
pub(super) type RenewalAnswer = Box<dyn Fn(&[u8]) -> v1::RenewResponse + Send>;

/// The parts of a broker that its services use.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) authority: Authority,
    pub(super) script: Mutex<Script>,
    pub(super) faults: FaultPlan<RpcCall>,
    pub(super) tokens: Mutex<HashSet<String>>,
    pub(super) renewals: Mutex<u32>,
    pub(super) renewal_answer: RenewalScript,
    pub(super) sessions: mpsc::UnboundedSender<AgentSession>,
}

/// The answer to renewals, where a test has another than the authority's.
#[derive(Default)]
pub(super) struct RenewalScript(pub(super) Mutex<Option<RenewalAnswer>>);

impl fmt::Debug for RenewalScript {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RenewalScript").finish_non_exhaustive()
    }
}

impl Shared {
    pub(super) fn script(&self) -> MutexGuard<'_, Script> {
        lock(&self.script)
    }
}

/// Locks a part, also after a test has failed while it held the lock.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
