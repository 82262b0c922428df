//! The seam between the broker and a cloud.
//!
//! [`Provider`] is what a cloud must be able to do; the broker's driver calls it and nothing else. The types beside it say
//! in words and in a cloud-neutral form what a provider found ([`Observation`], [`SweepReport`], [`Assessment`]) and what it
//! changes ([`LockdownReport`]). With the feature `testing` there are a fake cloud and the conformance suite that the
//! fake and every provider run.

mod assessment;
mod caller;
#[cfg(feature = "testing")]
pub mod conformance;
mod error;
#[cfg(feature = "testing")]
pub mod fake;
mod lockdown;
mod observation;
mod provider;

pub use assessment::{Assessment, AssessmentReport, Health};
pub use caller::CallerToken;
pub use error::CloudError;
pub use lockdown::{Action, CloudChange, Concern, ConcernKind, Consent, LockdownOrder, LockdownReport};
pub use observation::{Drift, Observation, Reach, Sighting, Stray, SweepReport, Translation, Unread};
pub use provider::Provider;
