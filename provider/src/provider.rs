//! The interface that every cloud implements.

use std::collections::BTreeSet;

use async_trait::async_trait;
use postern_core::plan::LayerWindow;
use postern_core::{ProtectedPort, TargetId};

use crate::{
    AssessmentReport, CallerToken, CloudError, LockdownOrder, LockdownReport, Observation, Reach, SweepReport,
};

/// The driver of one cloud's own rules. Every call is idempotent: the broker repeats a call of unknown
/// outcome, and makes at most one of the calls `open`, `close`, `repair`, `lockdown` and `release` at a time
/// for a target.
///
/// Every implementation passes the conformance suite beside this file.
#[async_trait]
pub trait Provider: Send + Sync + 'static {
    /// Reads the state of the target from the cloud.
    ///
    /// # Errors
    /// [`CloudError::NotFound`] only where the cloud says that the target does not exist.
    async fn observe(&self, target: &TargetId) -> Result<Observation, CloudError>;

    /// Tells the provider that another broker may have driven the target until now, so that anything it
    /// remembers of the target beyond the next observation may be out of date. The broker calls it before its
    /// first observation of a target that it drives from now on.
    fn taken_over(&self, target: &TargetId) {
        let _ = target;
    }

    /// Opens windows of one target; a window that is open already stays. Returns how the target is reached,
    /// if the cloud translates connections on their way.
    ///
    /// # Errors
    /// [`CloudError::Refused`] if the target is not under lockdown. After any other error each window may or
    /// may not be open.
    async fn open(&self, target: &TargetId, windows: &BTreeSet<LayerWindow>) -> Result<Reach, CloudError>;

    /// Closes windows of one target. A window that is not there counts as closed, and a window that the cloud
    /// does not remove does not keep the others open. Windows of other grants stay, also if they share a
    /// rule. A window counts as closed once a read after the change shows that it is gone.
    ///
    /// # Errors
    /// After any error each window may or may not be open.
    async fn close(&self, target: &TargetId, windows: &BTreeSet<LayerWindow>) -> Result<(), CloudError>;

    /// Reports whether a call since the last observation has read a rule that only an observation can judge:
    /// the broker then observes before it goes on.
    fn needs_look(&self, target: &TargetId) -> bool {
        let _ = target;
        false
    }

    /// Repairs the repairable drift of a target that is under lockdown, as a fresh read finds it, and removes
    /// every [`crate::Stray`].
    ///
    /// # Errors
    /// The next observation still finds the drift that was not repaired.
    async fn repair(&self, target: &TargetId) -> Result<(), CloudError>;

    /// Asks the cloud whether the caller may request access to the target, by the caller's own token. A cloud
    /// that is not configured to be asked allows every caller: policy decides alone.
    ///
    /// # Errors
    /// [`CloudError::Refused`] if the caller may not, or presented no token. Any other error decides nothing.
    async fn authorize(&self, target: &TargetId, caller: Option<&CallerToken>) -> Result<(), CloudError> {
        let _ = (target, caller);
        Ok(())
    }

    /// Finds all of Postern's resources in the cloud, from its own state alone (I2), including an interrupted
    /// lockdown or release and the remains of targets that are gone.
    async fn sweep(&self) -> SweepReport;

    /// Judges every VM of the cloud by whether it exposes one of these ports.
    async fn assess(&self, management: &BTreeSet<ProtectedPort>) -> AssessmentReport;

    /// Reports the changes and concerns of [`Self::lockdown`], without carrying it out.
    ///
    /// # Errors
    /// The cloud could not be read, or the lockdown cannot be done.
    async fn plan_lockdown(&self, order: &LockdownOrder) -> Result<LockdownReport, CloudError>;

    /// Plans several lockdowns that are carried out one after the other: each plan builds on the changes of those before it that
    /// have no concern left. Returns a report for each order.
    async fn plan_lockdowns(&self, orders: &[LockdownOrder]) -> Vec<Result<LockdownReport, CloudError>> {
        let mut reports = Vec::new();
        for order in orders {
            reports.push(self.plan_lockdown(order).await);
        }
        reports
    }

    /// Shuts the ports in every rule that applies to the target, after parking the originals in the cloud
    /// itself, and makes room for windows. Does nothing if the report holds a concern that must be accepted
    /// and is not.
    ///
    /// # Errors
    /// After an error the lockdown may be half done: calling it again resumes where it stopped, and so does a
    /// sweep.
    async fn lockdown(&self, order: &LockdownOrder) -> Result<LockdownReport, CloudError>;

    /// Reports the changes of [`Self::release`], without carrying it out.
    ///
    /// # Errors
    /// The cloud could not be read.
    async fn plan_release(&self, target: &TargetId) -> Result<LockdownReport, CloudError>;

    /// Plans several releases that are carried out one after the other: each plan builds on the changes of those before it.
    /// Returns a report for each target.
    async fn plan_releases(&self, targets: &[TargetId]) -> Vec<Result<LockdownReport, CloudError>> {
        let mut reports = Vec::new();
        for target in targets {
            reports.push(self.plan_release(target).await);
        }
        reports
    }

    /// Restores the rules that the lockdown of the target removed, unless another target needs them shut, and
    /// removes Postern's resources. Does not read the store. A target that is gone can be released too.
    ///
    /// # Errors
    /// [`CloudError::Refused`] if a window is open on the target. After another error the release may be half
    /// done: calling it again resumes where it stopped, and so does a sweep.
    async fn release(&self, target: &TargetId) -> Result<LockdownReport, CloudError>;
}
