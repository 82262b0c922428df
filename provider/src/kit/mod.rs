//! The kit: the mechanisms that every provider needs, once each.
//!
//! The problem: every cloud is slow, metered, shared with other principals, and late to show what it did. Each provider needs the
//! same few answers to that, and a second copy of one drifts from the first.
//!
//! The parts:
//!
//! - [`Known`] is the last known state of a resource, which a failed call leaves unknown; [`KeyedStates`] is one such memory for
//!   each target or resource.
//! - [`CallError`] is the error of one call, with its [`ErrorClass`]; it becomes the broker's [`crate::CloudError`] in one place.
//! - [`Buckets`] holds calls under the rates that a cloud allows: a bucket of tokens for each key that the provider chooses.
//! - [`attempt_until()`] repeats an attempt, with growing pauses, until the cloud shows what is waited for.
//! - [`read_places`] reads many accounts, Regions or subscriptions at once; one that fails does not lose the others.
//!
//! The rule: a part knows no cloud. It gets rates, pauses and classes from the provider, and decides nothing about a window.
//!
//! On failure: an error ends an attempt, and no part repeats it. An attempt that writes answers [`Attempt::NotYet`] only where the
//! cloud refused the write, so that it had no effect; in every other case the provider reads first.

mod attempt;
mod buckets;
mod call_error;
mod keyed_states;
mod known;
mod places;

pub use attempt::{Attempt, attempt_until};
pub use buckets::{Buckets, Rate};
pub use call_error::{CallError, ErrorClass};
pub use keyed_states::KeyedStates;
pub use known::Known;
pub use places::{Place, read_places};
