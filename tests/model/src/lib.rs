//! A model of several brokers on one store, in which every interleaving of their steps with faults is visited.
//!
//! It is about one target: who works on it ([`state::Lease`]), for how long a replica may think so, and what agent and cloud
//! hold when replicas are killed, stopped between reading and acting, or cut off from the store, when the agent moves, and
//! when calls land late. The protocol is a list of rules ([`Rule`]); each can be broken, and a property is false then.
//!
//! What is left out, and why nothing is lost by that:
//! - Messages between replicas. A message that is lost, late or repeated only changes when a step is taken, and every step
//!   may be taken at any time. Facts that need a bound in time travel with the beat.
//! - The audit log. A grant's state only rises, so what was read of all grants stands for the head of the log.
//! - A store that forgets: its brokers end, and begin with what there is.
//! - Clocks that differ: all replicas see one time. Every wait in ticks is a wait of at least that, where time is measured.
//! - A cloud that shows a change only later: a look shows what is. The wait for the second look has to have that in it, too.
//! - Sockets: a session's messages arrive in order, once, or are lost with the session.
//! - More than one target: leases of different targets have nothing in common, but for grants that touch several. Of those
//!   the holder of the other target is modelled, with what it reads of this one ([`Setup::far`]).

mod action;
mod lookup;
mod model;
mod plan;
pub mod properties;
mod replica;
pub mod setup;
pub mod state;
mod symmetry;
mod transitions;
pub mod turns;
mod world;

pub use action::{Action, Fault, Step};
pub use model::Model;
pub use setup::{Faults, Rule, Setup};
pub use symmetry::representative;
