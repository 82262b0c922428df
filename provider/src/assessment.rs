//! The assessment of VMs: those that need just-in-time access, and the reasons.
//!
//! The three words are those of Microsoft Defender for Cloud's recommendation on just-in-time access: a VM is
//! unhealthy if it could use just-in-time access and does not, healthy if it needs nothing, and not
//! applicable if it cannot be judged.

use std::collections::BTreeSet;

use postern_core::TargetId;
use postern_core::plan::LayerWindow;

use crate::Unread;

/// The assessment of every VM of a cloud.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AssessmentReport {
    /// The VMs, by target.
    pub assessments: Vec<Assessment>,
    /// The parts of the cloud that could not be read.
    pub unread: Vec<Unread>,
}

/// The assessment of one VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assessment {
    /// The VM.
    pub target: TargetId,
    /// The name in the cloud's console; may be empty.
    pub name: String,
    /// The VM is under lockdown.
    pub locked: bool,
    /// The windows that are open on it, by the rules that were read. The provider does not compare them with
    /// grants.
    pub windows: BTreeSet<LayerWindow>,
    /// The judgement.
    pub health: Health,
}

/// The judgement of a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// Its management ports are shut.
    Healthy {
        /// The reason.
        reason: String,
    },
    /// Rules expose management ports.
    Unhealthy {
        /// Each rule that exposes a port, in words, those open to anyone first.
        reasons: Vec<String>,
    },
    /// The VM cannot be judged.
    NotApplicable {
        /// The reason.
        reason: String,
    },
}

impl Health {
    /// Judges a VM by the rules that expose its management ports.
    pub fn of(reasons: Vec<String>, is_locked: bool) -> Self {
        if !reasons.is_empty() {
            return Self::Unhealthy { reasons };
        }
        let reason = "no rule exposes a management port";
        let reason =
            if is_locked { format!("it is under lockdown, and {reason}") } else { reason.to_owned() };
        Self::Healthy { reason }
    }

    /// Returns the word for it.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Healthy { .. } => "healthy",
            Self::Unhealthy { .. } => "unhealthy",
            Self::NotApplicable { .. } => "not applicable",
        }
    }
}
