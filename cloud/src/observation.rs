//! What a provider reads from its cloud.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use postern_core::plan::CloudWindow;
use postern_core::{ProtectedPort, SourcePrefix, TargetId};

use crate::CloudError;

/// What the cloud holds for one target.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Observation {
    /// Every window of ours that is open whole, read from the rules' own names and tags: the store is not asked (I2).
    pub windows: BTreeSet<CloudWindow>,
    /// Windows of which something is open, and not all that a connection passes: begun, half closed, or half taken away.
    pub partial: BTreeSet<CloudWindow>,
    /// How the target is reached.
    pub reach: Reach,
    /// What is not as Postern left it.
    pub drift: Vec<Drift>,
}

/// How connections get to a target.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reach {
    /// Where to connect for a port that something on the way translates: a firewall or a load balancer.
    pub endpoints: BTreeMap<ProtectedPort, SocketAddr>,
    /// Whose connections the target sees under another address.
    pub translation: Option<Translation>,
}

/// Something on the way to a target puts its own address in the place of a connection's source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Translation {
    /// The sources that keep their own address all the same.
    pub keeps: Vec<SourcePrefix>,
    /// The addresses that the target sees in the place of all others.
    pub seen_as: Vec<SourcePrefix>,
}

impl Translation {
    /// What the target sees of connections from the source.
    pub fn of(&self, source: SourcePrefix) -> Vec<SourcePrefix> {
        if self.keeps.iter().any(|kept| kept.covers(&source)) { vec![source] } else { self.seen_as.clone() }
    }
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
