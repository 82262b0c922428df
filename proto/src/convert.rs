//! Wire to core and back. Parsing refuses what core types cannot hold and names the field; writing cannot fail.

mod common;
mod policy;

pub use common::{
    duration, duration_to_wire, mode, mode_to_wire, optional_timestamp, page, port, port_to_wire,
    principal_to_wire, role_to_wire, timestamp, timestamp_to_wire,
};
pub use policy::{each, layers_to_wire, policy, policy_to_wire, port_rule_to_wire};
