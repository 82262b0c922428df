//! Which VMs need just-in-time access, and why.
//!
//! The three words are those of Microsoft Defender for Cloud's recommendation on just-in-time access: unhealthy is a VM
//! that could use it and does not, healthy is one that needs nothing, and not applicable is one that cannot be judged.

use std::collections::BTreeSet;

use postern_core::TargetId;
use postern_core::plan::CloudWindow;

use crate::Unread;

/// Every VM of a cloud, judged.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AssessmentReport {
    /// The VMs, by target.
    pub assessments: Vec<Assessment>,
    /// Where nobody could look.
    pub unread: Vec<Unread>,
}

/// One VM, judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assessment {
    /// The VM.
    pub target: TargetId,
    /// Its name in the cloud's console; may be empty.
    pub name: String,
    /// Whether Postern holds it under lockdown.
    pub locked: bool,
    /// The windows that are open on it, by the rules that were read. The grants are not asked here.
    pub windows: BTreeSet<CloudWindow>,
    /// The judgement.
    pub health: Health,
}

/// How a VM stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// Its management ports are shut.
    Healthy {
        /// Why.
        reason: String,
    },
    /// Rules expose management ports.
    Unhealthy {
        /// Each rule that exposes a port, in words, those open to anyone first.
        reasons: Vec<String>,
    },
    /// It cannot be judged.
    NotApplicable {
        /// Why.
        reason: String,
    },
}

impl Health {
    /// Its word.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Healthy { .. } => "healthy",
            Self::Unhealthy { .. } => "unhealthy",
            Self::NotApplicable { .. } => "not applicable",
        }
    }
}
