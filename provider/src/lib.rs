//! The seam between the broker and a cloud.
//!
//! The problem: each cloud has other rules, other limits and other faults, and the broker must open, close
//! and lock down in all of them by the same promises. So the broker's driver knows one trait, [`Provider`],
//! and one language: targets, windows and protected ports of `postern_core`, and the types of this crate,
//! which carry no id, tag or error code of a cloud except as text for people.
//!
//! The words:
//!
//! - An [`Observation`] is the state of one target in its cloud. It holds the *windows* that are open whole,
//!   those that are open in *part*, the [`Reach`] of the target, its [`Drift`] (differences from the state
//!   that Postern left, repairable or not) and its [`Stray`] rules (rules among Postern's own that are not
//!   exactly a window).
//! - A [`SweepReport`] holds an observation of every target with resources of Postern's, found without the
//!   store. An [`AssessmentReport`] judges every VM, whether or not Postern manages it.
//! - A *lockdown* takes the protected ports out of the customer's rules and makes room for windows; a
//!   *release* restores them. Both report each [`CloudChange`] and each [`Concern`], which an administrator
//!   accepts by a [`Consent`].
//!
//! The rules that every provider keeps:
//!
//! - The cloud is the truth. An observation and a sweep read rules, names and tags and nothing else, so that
//!   a broker with an empty store closes every window (I2) and releases every target.
//! - Every call is idempotent, and the broker repeats a call of unknown outcome. For one target it makes one
//!   changing call at a time.
//! - A window counts as closed only once a read after the change shows that it is gone.
//! - A provider changes the customer's rules in a lockdown or a release alone, and only after it has parked
//!   the originals in the cloud (I6).
//!
//! What happens on each failure ([`CloudError`]):
//!
//! - `NotFound`: the cloud itself says that the target does not exist. Only this error means absence; the
//!   broker then counts the windows of the target as closed.
//! - `Refused`: a retry does not help. The reason names the remedy, for the administrator.
//! - `Unavailable`: the outcome is unknown. The broker reads again and retries.
//! - A part of a cloud that cannot be read is [`Unread`] in a report, and the broker keeps its last known
//!   state.
//! - A lockdown or a release that was interrupted leaves its state in the cloud, and the next sweep resumes
//!   it.
//!
//! [`kit`] has the mechanisms that the providers share.
//!
//! The feature `testing` adds a fake cloud with the faults of a real one, and the conformance suite, which
//! the fake and every provider run.

mod assessment;
mod caller;
#[cfg(feature = "testing")]
pub mod conformance;
mod error;
#[cfg(feature = "testing")]
pub mod fake;
pub mod kit;
mod lockdown;
mod observation;
mod provider;

pub use assessment::{Assessment, AssessmentReport, Health};
pub use caller::CallerToken;
pub use error::CloudError;
pub use lockdown::{Action, CloudChange, Concern, ConcernKind, Consent, LockdownOrder, LockdownReport};
pub use observation::{Drift, Hidden, Observation, Reach, Sighting, Stray, SweepReport, Translation, Unread};
pub use provider::Provider;
