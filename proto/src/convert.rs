//! Wire to core and back. Parsing refuses what core types cannot hold and names the field; writing cannot fail.

mod access;
mod common;
mod policy;
mod target;

pub use access::{
    Asked, CallerSource, MAX_WAIT, RequestedAccess, grant_filter, grant_states, grant_to_wire,
    requested_access, wait,
};
pub use common::{
    duration, duration_to_wire, mode, mode_to_wire, page, port, port_to_wire, principal_to_wire, timestamp,
    timestamp_to_wire,
};
pub use policy::{policy, policy_to_wire};
pub use target::{MAX_TARGETS, cloud_targets, lockable_targets, ports};
