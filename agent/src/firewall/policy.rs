//! The policy: the desired state of the host layer.

use std::collections::BTreeSet;

use postern_core::{Mode, ProtectedPort, SourcePrefix};
use serde::{Deserialize, Serialize};

use crate::clock::BootTime;

/// The whole policy that the host layer must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPolicy {
    /// The treatment of a protected port that has no window.
    pub mode: Mode,
    /// The protected ports; the table does not look at any other traffic.
    pub ports: BTreeSet<ProtectedPort>,
    /// The open windows, which may overlap and repeat.
    pub windows: Vec<OpenWindow>,
}

/// An open window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct OpenWindow {
    /// The port that is open.
    pub port: ProtectedPort,
    /// The sources that may connect.
    pub source: SourcePrefix,
    /// The end, on the clock that never steps.
    pub deadline: BootTime,
}
