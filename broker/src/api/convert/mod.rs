//! Wire to core and back, for the calls that only the broker parses. [`postern_proto::convert`] has what the programs share.

mod access;
mod target;

pub(super) use access::{CallerSource, grant_filter, grant_to_wire, other_addresses, requested_access, wait};
pub(super) use target::{cloud_targets, lockable_targets, ports};
