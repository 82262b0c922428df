//! What a provider reads from its cloud.

use std::collections::BTreeSet;

use postern_core::TargetId;
use postern_core::plan::CloudWindow;

use crate::CloudError;

/// What the cloud holds for one target.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Observation {
    /// Every window of ours, read from the rules' own names and tags: the store is not asked (I2).
    pub windows: BTreeSet<CloudWindow>,
    /// What is not as Postern left it.
    pub drift: Vec<Drift>,
}

/// Something that is not as Postern left it, because someone else changed it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Drift {
    /// What it is, in words.
    pub what: String,
    /// Whether [`crate::Provider::repair`] puts it right. What is not ours is reported and left alone (I6).
    pub repairable: bool,
}

/// What was seen of one target in a sweep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sighting {
    /// The target.
    pub target: TargetId,
    /// What its cloud holds; none where the target is gone and something of ours is left of it.
    pub held: Option<Observation>,
}

/// Everything of ours in a cloud, from the cloud's own state alone.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sweep {
    /// Every target that holds something of ours.
    pub sightings: Vec<Sighting>,
    /// Where the sweep could not look: what is there stays as it was known.
    pub unread: Vec<Unread>,
}

/// A part of a cloud that could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unread {
    /// The part, for instance `account 123456789012 in eu-central-1`.
    pub place: String,
    /// Why.
    pub error: CloudError,
}
