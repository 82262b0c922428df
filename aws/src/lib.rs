//! The cloud layer on AWS: EC2 security groups.
//!
//! The problem: an EC2 instance is reached through the union of the rules of all security groups on its
//! interfaces. Postern must open a port for one source and a limited time, close it without fail, and keep
//! the port shut at all other times, in groups that the customer and the customer's tools also change.
//!
//! The words:
//!
//! - The *own group* of an instance under lockdown, `postern-<instance>`: one group of Postern's on the
//!   instance's interfaces. Each rule in it is exactly a *window*: one port and source, with its grants and
//!   their ends as tags.
//! - A *parked* group, `postern-parked-<group>`: keeps the originals of the rules that a lockdown took out of
//!   a customer's group, and is attached to nothing. A release puts them back from there (I6).
//! - A *piece*: a rule in a customer's group that keeps the unprotected ports of a rule that was split.
//! - A *holder*: an instance for which a customer's group is shut.
//! - A *stray*: a rule in an own group that is not exactly a window. It is removed.
//!
//! The rule that is kept: EC2 is the truth, and tags and names carry everything that Postern must know. A
//! broker with an empty store finds and closes every window (I2) and can release every target. Postern
//! changes only resources that carry its `postern:managed-by` or its names, and the customer's rules only in
//! a lockdown or a release (I6). The names matter because tags can be removed, and EC2 has no call that
//! changes a group's name.
//!
//! EC2 is eventually consistent, and has no compare-and-swap on tags or on the groups of an interface. So
//! each grant has a tag of its own on a rule that several share; a close, a lockdown and a release count only
//! once a read shows them, with growing pauses between reads (`backoff`); and for ten seconds a read that
//! lacks an answered opening is completed from the answer (`written`).
//!
//! The path of a window: [`Aws`] finds the account and Region of its target; `open_close` opens and closes it
//! with one call each while nothing unforeseen happens, as `rule_plan` decides, in the form of `rule_codec`;
//! `snapshot` interprets what EC2 shows. The path of a lockdown: `lockdown` reads, decides and carries out,
//! with `parking` for each customer's group and `split` for each rule. `inventory` reads a whole account and
//! Region, for the sweep and the assessment. `api` has the calls, `wire` the conversions, `rates` the
//! client-side rates, `accounts` the credentials.
//!
//! On failure:
//!
//! - A call without an answer may have taken effect: the cache of the target is dropped, and the next call
//!   reads first.
//! - An error that a retry may cure becomes `Unavailable`, one that it cannot becomes `Refused` with its
//!   remedy (`error`).
//! - A lockdown or release that was interrupted is recorded in a tag, and the next sweep finishes it.
//! - Another principal's change of Postern's resources is drift, which a repair undoes; a change of the
//!   customer's own rules is reported and left alone.
//! - Credentials that belong to another account are refused, because that account's "not found" would pass
//!   for the end of an instance.

mod accounts;
mod api;
mod assess;
mod backoff;
mod ec2;
mod error;
#[cfg(test)]
mod fake_ec2;
mod inventory;
mod lockdown;
mod names;
mod open_close;
mod parking;
mod permissions;
mod provider;
mod rates;
mod resource;
mod rule;
mod rule_codec;
mod rule_plan;
mod settings;
mod snapshot;
mod split;
mod tags;
mod trial;
#[cfg(test)]
mod ways_out;
mod wire;
mod written;

pub use provider::Aws;
pub use settings::{AwsAccount, AwsSettings};
pub use trial::{PermissionTrial, TrialOutcome};
