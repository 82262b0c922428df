//! Putting a target's protected ports under JIT in its cloud, and back.

use std::collections::BTreeSet;
use std::fmt;

use postern_core::{ProtectedPort, TargetId};

/// What is to be locked down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockdownOrder {
    /// The target.
    pub target: TargetId,
    /// The ports that no rule may let in any more.
    pub ports: BTreeSet<ProtectedPort>,
    /// What the administrator accepts.
    pub consent: Consent,
    /// Other targets of the same order: rules that they share with this one are theirs to shut too.
    pub together: BTreeSet<TargetId>,
}

/// The concerns that an administrator accepts. None, unless said.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Consent(pub BTreeSet<ConcernKind>);

impl Consent {
    /// Every concern.
    pub fn all() -> Self {
        Self(ConcernKind::ALL.into())
    }

    /// Those of the concerns that have to be accepted, and are not.
    pub fn unmet<'a>(&self, concerns: &'a [Concern]) -> Vec<&'a Concern> {
        let holds_up = |concern: &&Concern| concern.kind != ConcernKind::Precedence;
        concerns.iter().filter(holds_up).filter(|concern| !self.0.contains(&concern.kind)).collect()
    }
}

/// Something that an administrator should know before a lockdown, and has to accept.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Concern {
    /// Its kind.
    pub kind: ConcernKind,
    /// What it is, in words that name the rule and whom it concerns.
    pub what: String,
}

/// The kinds of concern.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ConcernKind {
    /// The rules apply also to machines that are not under JIT: their ports shut too, and no window opens them.
    Shared,
    /// Something that a rule lets in cannot be written down without the protected ports, and is lost.
    Loss,
    /// Connections that are established over a rule may be cut when it goes.
    Cut,
    /// Rules of others come before ours, and keep a port open. It holds nothing up: where it is not accepted, the rest is
    /// done, and the port stays open by those rules; where it is, ours come first.
    Precedence,
}

impl ConcernKind {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Shared, Self::Loss, Self::Cut, Self::Precedence];

    /// Its word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Shared => "shared",
            Self::Loss => "loss",
            Self::Cut => "cut",
            Self::Precedence => "precedence",
        }
    }
}

/// What a lockdown or a release changes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LockdownReport {
    /// Every change, in order. Empty where everything is as it should be already.
    pub changes: Vec<CloudChange>,
    /// What an administrator should know. Where one of them is not accepted, nothing was changed.
    pub concerns: Vec<Concern>,
}

/// One change in a cloud.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloudChange {
    /// What is done.
    pub action: Action,
    /// What it is done to, by the cloud's own id or name.
    pub resource: String,
    /// The rest, in words.
    pub detail: String,
}

/// What is done in a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// Something of ours is made.
    Create,
    /// Something of ours is attached to the target.
    Attach,
    /// A rule is copied to where a broker with an empty store finds it.
    Park,
    /// A rule is added.
    Add,
    /// A rule is taken away.
    Remove,
    /// Something is written on a resource: a tag.
    Mark,
    /// A rule is given another place among the others.
    Move,
    /// Something of ours is detached from the target.
    Detach,
    /// Something of ours is deleted.
    Delete,
}

impl Action {
    /// Its word.
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
