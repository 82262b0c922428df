//! The cloud layer on AWS: security groups. So far what can be decided without calling the cloud: which rules expose a
//! management port ([`assess`]), and what lockdown makes of such a rule ([`lockdown`]).
//!
//! I6 is prepared here: lockdown takes only the part of a rule that covers a protected port, and says so where the rest
//! cannot be written down in full.

pub mod assess;
pub mod lockdown;
pub mod rule;
