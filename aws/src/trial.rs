//! What a trial of the broker's permissions has found: see [`crate::permissions`].

/// The outcome of the trial of one action in one account and Region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PermissionTrial {
    /// The account and the Region.
    pub place: String,
    /// The action; empty where none could be tried.
    pub action: &'static str,
    /// The outcome.
    pub outcome: TrialOutcome,
}

/// The outcome of a dry run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TrialOutcome {
    /// EC2 would carry the action out.
    Allowed,
    /// EC2 refuses the action, with this reason.
    Denied(String),
    /// EC2 judged something else first, or there is no resource to try the action on.
    Unknown(String),
    /// EC2 did not answer, or the credentials are another account's.
    Unreachable(String),
}
