//! The writes that a lockdown and a release make in network security groups. Pure: a plan needs no call.
//!
//! The problem: a group has one list of rules, ordered by priority, and the first rule that applies to a connection decides. Most
//! rules in the list are the customer's. A rule that denies a port has an effect only if no customer's rule allows the port
//! before it.
//!
//! The rule kept here (I6): Postern rewrites no rule of the customer's unless an administrator asks for it, and a release brings
//! back exactly what was there.
//!
//! - **By default the customer's rules keep their precedence.** Postern's rule that denies goes behind every rule that allows the
//!   port. The report names the rules that keep the port open.
//! - **With `--accept precedence` Postern's rules come first.** If there is room before the customer's rule, Postern writes its rule
//!   there, and the customer's rule stays as it is.
//! - **If there is no room, Postern moves the customer's rule** behind its own. Only the priority changes. Before the move Postern
//!   writes a *note*: a rule that matches no traffic, with the old priority in its name and the name of the rule in its
//!   description. A rule never moves past one that overlaps it and decides otherwise: the plan is refused instead.
//!
//! A consent is for the machine that it was given for. Each rule that denies says in its description whether it stays behind the
//! customer's rules. A move does not pass such a rule of another machine, because it would shut that machine's port as well: there
//! Postern's rules and the moved one go before it, or the plan is refused. A release counts such a rule as no reason to keep a
//! rule moved.
//!
//! The order of the writes makes each stop safe: first the notes, then the rules that deny, then the moves. A broker that dies
//! between two writes leaves a note without a move, or a move with its note. The next lockdown, release or repair continues from
//! the groups alone (I8).
//!
//! A release deletes Postern's rules for the machine, moves the noted rules back, and deletes the notes. Two cases need care:
//!
//! - *Another machine still needs the rule moved*: the rule and its note stay until that machine is released.
//! - *A new rule has the old priority*: the release is refused, and the message names that rule.
//!
//! Another broker may lock one machine while this one releases its neighbour. After each step that moves a rule, the release reads
//! the groups again: a rule that another machine needs behind goes there again, and a note that the other broker deleted too
//! early is written again ([`lost_notes`]). While a release is under way a *mark* in one group says so.

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
