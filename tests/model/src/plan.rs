//! The plan of a replica: the next state of each grant and the calls to make, from what the replica read and observed.
//! Module `replica` acts on it.

use crate::lookup::{is_busy, replica};
use crate::model::Model;
use crate::setup::Rule;
use crate::state::{Change, Grant, Id, Replica, Set, Sight, State, View};

impl Model {
    /// Returns what the replica wants both layers to hold, by what it read last.
    pub(crate) fn wanted(&self, state: &State, id: Id) -> Set {
        let read = replica(state, id).read;
        Set::of(|grant| !self.is_over(state) && read.is_some_and(|grants| grants[grant].is_wanted()))
    }

    /// The state that a grant goes into next, by what the replica read and observed.
    pub(crate) fn decides(&self, state: &State, id: Id, grant: usize) -> Option<Grant> {
        let replica = replica(state, id);
        match replica.read?[grant] {
            Grant::Opening | Grant::Active if self.is_over(state) => Some(Grant::Closing),
            Grant::Opening => is_open(replica, grant).then_some(Grant::Active),
            Grant::Closing => self.is_absent(state, id, grant).then_some(Grant::Closed),
            Grant::Unasked | Grant::Active | Grant::Closed => None,
        }
    }

    /// Reports whether the grant's window is in no layer, as far as the replica knows.
    fn is_absent(&self, state: &State, id: Id, grant: usize) -> bool {
        let replica = replica(state, id);
        let cloud = match replica.sight {
            Sight::Unseen => false,
            Sight::First(windows) => {
                !self.setup.keeps(Rule::AbsenceWaitsForTheSecondLook) && !windows.has(grant)
            }
            Sight::Settled(windows) => !windows.has(grant),
        };
        cloud && !is_busy(state, id) && !replica.may_hold.has(grant)
    }

    /// Returns what the replica would publish; nothing before it has read anything.
    pub(crate) fn view(&self, state: &State, id: Id) -> Option<View> {
        let replica = replica(state, id);
        let open = Set::of(|grant| is_open(replica, grant));
        let absent = Set::of(|grant| self.is_absent(state, id, grant));
        replica.read.map(|head| View { head, open, absent })
    }

    /// Returns the published view if it may be believed now: its publisher still has the lease, and is alive.
    pub(crate) fn valid_view(state: &State) -> Option<View> {
        let (token, view) = state.store.view?;
        let lease = state.store.lease.filter(|lease| lease.token == token)?;
        let member = state.store.members[usize::from(lease.holder)];
        (member.serial == lease.serial && member.life > 0).then_some(view)
    }

    /// The state that a grant goes into next, by what was published of this target.
    pub(crate) fn far_decides(&self, state: &State, grant: usize) -> Option<Grant> {
        let view = state.far?;
        let knows = !self.setup.keeps(Rule::ViewsNameWhatWasRead) || view.head[grant] == Grant::Closing;
        match state.store.grants[grant] {
            Grant::Opening if !self.is_over(state) && view.open.has(grant) => Some(Grant::Active),
            Grant::Closing if knows && view.absent.has(grant) => Some(Grant::Closed),
            Grant::Unasked | Grant::Opening | Grant::Active | Grant::Closing | Grant::Closed => None,
        }
    }

    /// Makes that durable.
    pub(crate) fn far_commits(&self, state: &mut State, grant: usize) {
        if let Some(next) = self.far_decides(state, grant) {
            self.put(state, grant, next);
        }
    }

    /// A grant goes into its next state in the store.
    pub(crate) fn put(&self, state: &mut State, grant: usize, next: Grant) {
        state.store.grants[grant] = next;
        let both = state.agent.held.has(grant) && state.cloud.has(grant);
        state.violations.active_too_early |= next == Grant::Active && !both && !self.is_over(state);
    }

    /// Reports whether the replica makes this call: it believes that it may, and the cloud is not as it should be. A
    /// replica closes a window that is past its end even without a membership.
    pub(crate) fn calls_for(&self, state: &State, id: Id, change: Change) -> bool {
        let replica = replica(state, id);
        let Some(windows) = replica.sight.windows() else { return false };
        let is_member = replica.belief > 0 || !self.setup.keeps(Rule::CallsNeedBelief);
        let believes = is_member && replica.read.is_some();
        let wanted = self.wanted(state, id);
        match change {
            Change::Open(grant) => {
                believes && wanted.has(usize::from(grant)) && !windows.has(usize::from(grant))
            }
            Change::Close(grant) => {
                let unwanted = windows.has(usize::from(grant)) && !wanted.has(usize::from(grant));
                unwanted && (believes || self.is_over(state))
            }
        }
    }
}

/// Reports whether both layers have confirmed the grant's window to the replica.
fn is_open(replica: &Replica, grant: usize) -> bool {
    let host = replica.confirmed && replica.pushed.is_some_and(|pushed| pushed.has(grant));
    host && replica.sight.windows().is_some_and(|windows| windows.has(grant))
}
