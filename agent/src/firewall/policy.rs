//! The policy that *is* the desired state of the host layer.

use std::collections::BTreeSet;

use postern_core::{Mode, ProtectedPort, SourcePrefix};
use serde::{Deserialize, Serialize};

use crate::clock::BootTime;

/// Everything the host layer must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPolicy {
    /// What to do with a protected port that has no window.
    pub mode: Mode,
    /// The protected ports; all other traffic is not looked at.
    pub ports: BTreeSet<ProtectedPort>,
    /// The open windows. They may overlap and repeat.
    pub windows: Vec<OpenWindow>,
}

/// One open window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct OpenWindow {
    /// The port that is open.
    pub port: ProtectedPort,
    /// Who may connect.
    pub source: SourcePrefix,
    /// The end, on the clock that never steps.
    pub deadline: BootTime,
}
