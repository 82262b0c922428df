//! The cloud layer on AWS: EC2 security groups.
//!
//! Each instance under lockdown has one group of its own, and each of its windows is a rule there that carries its grants
//! and their ends as tags: a broker with an empty store finds and closes it (I2). What a lockdown takes out of a
//! customer's groups is parked in groups of ours, from which a release puts it back (I6).
//!
//! The way of a window: [`Aws`] finds the place (account and Region) of its target, `windows` opens and closes it, with
//! one call each while nothing unforeseen happens, as `marking` decides, and `look` says what EC2 holds. The way of a lockdown: `locking` reads
//! and carries out what `parking` decides for each customer's group, with `split` for each rule. The whole of an account
//! is `fleet`'s: the sweep and the assessment.

mod accounts;
mod api;
mod assess;
mod backoff;
mod error;
mod inventory;
mod limits;
mod lockdown;
mod names;
mod open_close;
mod parking;
mod provider;
mod resource;
mod rule;
mod rule_codec;
mod rule_plan;
mod settings;
mod snapshot;
mod split;
mod tags;
mod wire;
mod written;

pub use provider::Aws;
pub use settings::{Account, Settings};
