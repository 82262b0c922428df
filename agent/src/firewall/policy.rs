//! The policy: the desired state of the host layer.

use std::collections::BTreeSet;

use postern_core::{GrantId, Mode, ProtectedPort, SourcePrefix};

use crate::clock::BootTime;

/// The whole policy that the host layer must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPolicy {
    /// The treatment of a protected port that has no window.
    pub mode: Mode,
    /// The protected ports; the table does not look at any other traffic.
    pub ports: BTreeSet<ProtectedPort>,
    /// The open windows, which may overlap and repeat.
    pub windows: Vec<HeldWindow>,
}

/// An open window, with its end on this host's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HeldWindow {
    /// The grant it belongs to.
    pub grant: GrantId,
    /// The port that is open.
    pub port: ProtectedPort,
    /// The sources that may connect.
    pub source: SourcePrefix,
    /// The end, never after the true end.
    pub deadline: BootTime,
}

impl HeldWindow {
    /// Reports whether both are the same opening for the same grant, whatever their deadlines.
    pub fn same_opening(&self, other: &Self) -> bool {
        (self.grant, self.port, self.source) == (other.grant, other.port, other.source)
    }
}
