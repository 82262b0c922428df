//! The orders and reports of a lockdown, which puts a target's protected ports under JIT in its cloud, and of
//! a release.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use postern_core::{ProtectedPort, TargetId};

/// An order to lock a target down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockdownOrder {
    /// The target.
    pub target: TargetId,
    /// The ports that no rule may let in any more.
    pub ports: BTreeSet<ProtectedPort>,
    /// The concerns that the administrator accepts.
    pub consent: Consent,
    /// Other targets of the same order, with their ports: a rule that they share with this one is no concern
    /// if the order protects this target's ports on them, too.
    pub together: BTreeMap<TargetId, BTreeSet<ProtectedPort>>,
}

/// The kinds of concern that an administrator accepts. None by default.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Consent(pub BTreeSet<ConcernKind>);

impl Consent {
    /// Returns a consent to every concern.
    pub fn all() -> Self {
        Self(ConcernKind::ALL.into())
    }

    /// Returns the concerns that must be accepted and are not.
    pub fn unmet<'a>(&self, concerns: &'a [Concern]) -> Vec<&'a Concern> {
        let holds_up = |concern: &&Concern| concern.kind != ConcernKind::Precedence;
        concerns.iter().filter(holds_up).filter(|concern| !self.0.contains(&concern.kind)).collect()
    }
}

/// A consequence of a lockdown that an administrator should know, and must accept.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Concern {
    /// Its kind.
    pub kind: ConcernKind,
    /// The consequence, in words that name the rule and the machines that it affects.
    pub what: String,
}

/// The kinds of concern.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ConcernKind {
    /// The rules also apply to machines that are not under JIT: their ports shut too, and no window opens
    /// them.
    Shared,
    /// A part of the traffic that a rule lets in cannot be expressed without the protected ports, and is
    /// lost.
    Loss,
    /// Connections that are established over a rule may be cut when it is removed.
    Cut,
    /// The customer's rules come before Postern's and keep a port open. This concern holds nothing up: if it
    /// is not accepted, the rest is done and those rules keep the port open; if it is accepted, Postern's
    /// rules come first.
    Precedence,
}

impl ConcernKind {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Shared, Self::Loss, Self::Cut, Self::Precedence];

    /// Returns the word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Shared => "shared",
            Self::Loss => "loss",
            Self::Cut => "cut",
            Self::Precedence => "precedence",
        }
    }
}

/// The changes and concerns of a lockdown or a release.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LockdownReport {
    /// Every change, in order. Empty if everything is already as it should be.
    pub changes: Vec<CloudChange>,
    /// The concerns of an administrator. If one of them had to be accepted and was not, nothing was changed.
    pub concerns: Vec<Concern>,
}

/// A change in a cloud.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloudChange {
    /// The action.
    pub action: Action,
    /// The resource, by the cloud's own id or name.
    pub resource: String,
    /// The details, in words.
    pub detail: String,
}

/// The action of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// A resource of Postern's is created.
    Create,
    /// A resource of Postern's is attached to the target.
    Attach,
    /// A rule is copied to a place where a broker with an empty store finds it.
    Park,
    /// A rule is added.
    Add,
    /// A rule is removed.
    Remove,
    /// A tag is written on a resource.
    Mark,
    /// A rule is given another place among the others.
    Move,
    /// A resource of Postern's is detached from the target.
    Detach,
    /// A resource of Postern's is deleted.
    Delete,
}

impl Action {
    /// Returns the word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Attach => "attach",
            Self::Park => "park",
            Self::Add => "add",
            Self::Remove => "remove",
            Self::Mark => "mark",
            Self::Move => "move",
            Self::Detach => "detach",
            Self::Delete => "delete",
        }
    }
}

impl fmt::Display for CloudChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.action.word(), self.resource)?;
        if self.detail.is_empty() { Ok(()) } else { write!(f, ": {}", self.detail) }
    }
}
