//! What every cloud must be able to do.

use std::collections::BTreeSet;

use async_trait::async_trait;
use postern_core::plan::CloudWindow;
use postern_core::{ProtectedPort, TargetId};

use crate::{
    AssessmentReport, CallerToken, CloudError, LockdownOrder, LockdownReport, Observation, Reach, SweepReport,
};

/// Drives one cloud's own rules. Every call is idempotent: the driver repeats whatever it is not sure of, and calls at
/// most one of `open`, `close`, `repair`, `lockdown` and `release` at a time for a target.
///
/// Every implementation passes the conformance suite beside this file.
#[async_trait]
pub trait Provider: Send + Sync + 'static {
    /// What the cloud holds for the target, read anew.
    ///
    /// # Errors
    /// [`CloudError::NotFound`] only where the cloud says that the target does not exist.
    async fn observe(&self, target: &TargetId) -> Result<Observation, CloudError>;

    /// Another broker may have driven the target until now: what is remembered of it beyond the next look is not to be
    /// believed. Called before the first look of a broker that drives it from now on.
    fn taken_over(&self, target: &TargetId) {
        let _ = target;
    }

    /// Opens windows of one target; one that is open already stays. How the target is reached is answered where the cloud
    /// translates connections on their way.
    ///
    /// # Errors
    /// [`CloudError::Refused`] where the target is not under lockdown. After any other error each window may or may not
    /// be open.
    async fn open(&self, target: &TargetId, windows: &BTreeSet<CloudWindow>) -> Result<Reach, CloudError>;

    /// Closes windows of one target; one that is not there is closed, and one that the cloud keeps does not keep the
    /// others. Windows of other grants stay, also where they share a rule. A window counts as closed once a read after the
    /// change shows that it is gone.
    ///
    /// # Errors
    /// After any error each window may or may not be open.
    async fn close(&self, target: &TargetId, windows: &BTreeSet<CloudWindow>) -> Result<(), CloudError>;

    /// Reports whether a call since the last look has read something that only a look can judge: the driver looks before it
    /// goes on.
    fn needs_look(&self, target: &TargetId) -> bool {
        let _ = target;
        false
    }

    /// Puts right the repairable drift of a target that is under lockdown, as a fresh look finds it, and takes every
    /// [`crate::Stray`] away.
    ///
    /// # Errors
    /// What was not put right is still found by the next look.
    async fn repair(&self, target: &TargetId) -> Result<(), CloudError>;

    /// Whether the cloud itself lets a caller ask for access to the target, by the caller's own token. A cloud that is not
    /// to be asked lets everyone: policy decides alone.
    ///
    /// # Errors
    /// [`CloudError::Refused`] where the caller may not, or has shown no token. Any other error decides nothing.
    async fn authorize(&self, target: &TargetId, caller: Option<&CallerToken>) -> Result<(), CloudError> {
        let _ = (target, caller);
        Ok(())
    }

    /// Finds everything of ours in the cloud, from its own state alone (I2), a lockdown or release that was interrupted
    /// and what is left of targets that are gone included.
    async fn sweep(&self) -> SweepReport;

    /// Judges every VM of the cloud by whether it exposes one of these ports.
    async fn assess(&self, management: &BTreeSet<ProtectedPort>) -> AssessmentReport;

    /// What [`Self::lockdown`] would change and what it would ask.
    ///
    /// # Errors
    /// The cloud could not be read, or the lockdown cannot be done.
    async fn plan_lockdown(&self, order: &LockdownOrder) -> Result<LockdownReport, CloudError>;

    /// Shuts the ports in every rule that applies to the target, having parked the originals in the cloud itself, and
    /// makes room for windows. Does nothing where the report holds a concern that is not accepted.
    ///
    /// # Errors
    /// After an error the lockdown may be half done: doing it again goes on where it stopped, and so does a sweep.
    async fn lockdown(&self, order: &LockdownOrder) -> Result<LockdownReport, CloudError>;

    /// What [`Self::release`] would change.
    ///
    /// # Errors
    /// The cloud could not be read.
    async fn plan_release(&self, target: &TargetId) -> Result<LockdownReport, CloudError>;

    /// Puts back what the lockdown of the target took away, unless another target needs it shut, and takes away what is
    /// ours. The store is not asked. A target that is gone can be released as well.
    ///
    /// # Errors
    /// [`CloudError::Refused`] where a window is open on the target. After another error the release may be half done:
    /// doing it again goes on where it stopped, and so does a sweep.
    async fn release(&self, target: &TargetId) -> Result<LockdownReport, CloudError>;
}
