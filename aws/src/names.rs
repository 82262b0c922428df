//! The names of Postern's security groups. EC2 has no call that changes a group's name (EC2 API reference,
//! `CreateSecurityGroup`), and has each name once in a VPC: the broker still knows a group that has lost its
//! tags by its name.

const OWN_PREFIX: &str = "postern-";
const PARKED_PREFIX: &str = "postern-parked-";

/// Returns the name of an instance's own group.
pub(crate) fn own(instance: &str) -> String {
    format!("{OWN_PREFIX}{instance}")
}

/// Returns the name of the parked group with a number, from 1, of another group.
pub(crate) fn parked(group: &str, number: usize) -> String {
    match number {
        0 | 1 => format!("{PARKED_PREFIX}{group}"),
        more => format!("{PARKED_PREFIX}{group}-{more}"),
    }
}

/// Returns the instance whose own group has this name.
pub(crate) fn instance(name: &str) -> Option<&str> {
    name.strip_prefix(OWN_PREFIX).filter(|id| id.starts_with("i-"))
}

/// Returns the group whose rules are parked in the group with this name.
pub(crate) fn parked_for(name: &str) -> Option<&str> {
    parked_parts(name).map(|(group, _)| group)
}

/// Reports whether the group with this name is Postern's, and does not belong on an interface of this instance: a parked
/// group, or the own group of another instance.
pub(crate) fn is_misplaced(name: &str, on: Option<&str>) -> bool {
    parked_for(name).is_some() || instance(name).is_some_and(|of| Some(of) != on)
}

/// Returns the group whose rules are parked in the group with this name, and the number of the parked group.
pub(crate) fn parked_parts(name: &str) -> Option<(&str, usize)> {
    let rest = name.strip_prefix(PARKED_PREFIX).filter(|id| id.starts_with("sg-"))?;
    // The id of a group is `sg-` and digits.
    match rest.rsplit_once('-') {
        Some(("sg", _)) | None => Some((rest, 1)),
        Some((group, number)) => Some((group, number.parse().ok().filter(|number| *number > 1)?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_what_its_group_is_for() {
        assert_eq!(instance(&own("i-0123")), Some("i-0123"));
        for number in [1, 2, 17] {
            assert_eq!(parked_parts(&parked("sg-0123", number)), Some(("sg-0123", number)));
        }
        assert_eq!(parked_for("postern-parked-sg-0123-x"), None);
        assert_eq!((instance(&parked("sg-0123", 1)), parked_for(&own("i-0123"))), (None, None));
        assert!(
            is_misplaced(&parked("sg-0123", 1), Some("i-0123"))
                && is_misplaced(&own("i-0123"), Some("i-4567"))
        );
        assert!(!is_misplaced(&own("i-0123"), Some("i-0123")) && !is_misplaced("web", None));
        assert_eq!((instance("postern-web"), parked_for("web")), (None, None));
    }
}
