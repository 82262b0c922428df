//! Enforcement on trial: a machine closes its ports for the first time only until a moment at which an operator who got in has confirmed it.
//!
//! **The problem.** A policy in mode enforce may shut out the people who manage a machine, and then none of them can take it back. Firewalls
//! and routers solve this with *commit-confirm*: a change holds for some minutes, and is taken back unless it is confirmed.
//!
//! **The words.** The [`Phase`] of a machine is *untried* (it has closed no port yet), on *trial* (its table denies until the trial's end),
//! *lapsed* (no operator confirmed the trial: the table only monitors) or *confirmed*. The [`mark`] is the file with the phase. The
//! [`keeper`] is the part of the running agent that follows it; the [`commands`] `enforce` and `confirm` change it.
//!
//! **The rule.** With `[enforce] confirm`, the first state in mode enforce begins the trial. The mark is durable before the table denies.
//! The kernel itself ends the trial (the table denies while an element with a timeout is there: [`crate::firewall`]), so that a trial also
//! ends while the agent is dead. The agent judges the end on the boot clock; a reboot ends the trial. After a lapse only an operator of this
//! machine begins another trial, whatever the broker sends. `confirm` wants [`evidence`]: a connection that came in through the closed
//! table. Confirmed is the last phase: only `uninstall` and an enrolment as another target, both by root on this machine, leave it, and
//! nothing that a broker or a network peer sends does.
//!
//! **On failure.** A mark that cannot be read counts as confirmed: the machine stays shut (I1). So does a missing mark on a machine that
//! holds a state in mode enforce, or a table with no ledger: an earlier agent enforced at once, or the mark was lost. To keep a machine on
//! trial out of that case, no state goes to the ledger before the mark is on disk. A machine whose policy only monitors, and whose mark is
//! missing, is untried. Without `[enforce] confirm` each state is enforced at once, and there is no mark.

pub mod commands;
mod evidence;
pub(crate) mod keeper;
mod mark;
mod phase;

pub use mark::{EnforcementMark, MarkError};
pub use phase::{OlderConnections, Phase, PhaseName, TcpConnection, Trial};
