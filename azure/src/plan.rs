//! What a lockdown and a release change in network security groups. Pure.
//!
//! Nothing of a customer's is ever rewritten unasked. A rule of theirs that lets somebody in to a port keeps its precedence:
//! ours shuts the port behind it, and the report says that the port is still open. Only where the administrator accepts
//! that ours come first, ours are put before theirs; and only where there is no room before theirs, theirs is moved behind
//! ours, with a note in the group of where it was.

mod draft;
mod lockdown;
mod priority;
mod release;
mod write;

pub(crate) use lockdown::{lock, resume};
pub(crate) use priority::window_priority;
pub(crate) use release::{lost_notes, moved_away, notes_taken, release};
pub(crate) use write::{PlanError, RuleWrite, apply};

#[cfg(test)]
mod tests;
