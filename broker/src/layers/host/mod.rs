//! The host layer: the agents' sessions, the state that the broker pushed to each agent, and the state that it confirmed.
//!
//! The problem: a window in a host's firewall is opened and closed by an agent on the far side of a connection that may break
//! at any moment, between a message and its answer. The broker must never call a window closed that the agent may hold (I6),
//! and never open before the agent says so (I5).
//!
//! The words:
//! - A *session* is one connection of one agent. Sessions of a target are numbered; an agent has one, and a newer one ends
//!   the one before, whose late messages are then ignored.
//! - A *desired state* is everything that the host must hold, with a *generation*. It is pushed whole, so a push that was lost
//!   or overtaken needs no repair: the newest one says it all.
//! - The agent *confirms* a generation, or *refuses* it with the reason.
//!
//! The rule: what the agent confirmed is what the layer holds, and nothing else is believed. A new session starts with nothing
//! known. Windows that were pushed and neither confirmed nor taken back by a later confirmation are *left behind*: without a
//! session the agent may hold them.
//!
//! On a failure:
//! - The connection breaks: nothing more is known, and a window counts as held if the agent may hold it. The host closes it at
//!   its end by itself (I2).
//! - The agent refuses: the window is refused, and the state is pushed again with growing pauses, without end. The third
//!   refusal in a row is an alarm.
//! - The broker starts, or takes a target over from another broker: for a grace of ten seconds agents are expected, and their
//!   windows are unconfirmed. After that an agent without a session is unreachable, and may hold what an earlier broker, or
//!   the other broker, pushed to it.

pub mod desired_state;
mod log;
pub mod session_state;
pub mod sessions;
