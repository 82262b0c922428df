//! The names of groups of ours. EC2 lets nobody change a group's name (EC2 API reference, `CreateSecurityGroup`), and has
//! each once in a VPC: a group that has lost its tags is still known by it.

const OWN_PREFIX: &str = "postern-";
const PARKED_PREFIX: &str = "postern-parked-";

/// The name of an instance's own group.
pub(crate) fn own(instance: &str) -> String {
    format!("{OWN_PREFIX}{instance}")
}

/// The name of the group that keeps what is parked for another group.
pub(crate) fn parked(group: &str) -> String {
    format!("{PARKED_PREFIX}{group}")
}

/// The instance whose own group has this name.
pub(crate) fn instance(name: &str) -> Option<&str> {
    name.strip_prefix(OWN_PREFIX).filter(|id| id.starts_with("i-"))
}

/// The group for which something is parked in the one with this name.
pub(crate) fn parked_for(name: &str) -> Option<&str> {
    name.strip_prefix(PARKED_PREFIX).filter(|id| id.starts_with("sg-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_what_its_group_is_for() {
        assert_eq!(instance(&own("i-0123")), Some("i-0123"));
        assert_eq!(parked_for(&parked("sg-0123")), Some("sg-0123"));
        assert_eq!((instance(&parked("sg-0123")), parked_for(&own("i-0123"))), (None, None));
        assert_eq!((instance("postern-web"), parked_for("web")), (None, None));
    }
}
