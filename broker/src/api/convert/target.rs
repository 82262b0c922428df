//! Targets of the cloud layer on the wire.

use std::collections::BTreeSet;

use postern_core::{Invalid, ProtectedPort, TargetId};

use postern_proto::convert::{each, port};
use postern_proto::v1;

/// The most targets of one lockdown or release.
const MAX_TARGETS: usize = 100;

/// Parses targets that have a cloud layer, each once. The list may be empty.
///
/// # Errors
/// The first item that is no target, is a plain host, or occurs twice.
pub(in crate::api) fn cloud_targets(field: &str, wire: &[String]) -> Result<Vec<TargetId>, Invalid> {
    let targets: Vec<TargetId> = each(field, wire)?;
    let mut seen = BTreeSet::new();
    for (i, target) in targets.iter().enumerate() {
        let invalid = |problem, remedy| Err(Invalid::new(format!("{field}[{i}]"), problem, remedy));
        if target.cloud().is_none() {
            return invalid(format!("{target} has no cloud layer"), "name a VM of a cloud");
        }
        if !seen.insert(target) {
            return invalid(format!("{target} is there twice"), "name each target once");
        }
    }
    Ok(targets)
}

/// Parses the targets of a lockdown or a release: as [`cloud_targets`], at least one and at most [`MAX_TARGETS`].
///
/// # Errors
/// An empty list, too many targets, or the first that may not be there.
pub(in crate::api) fn lockable_targets(field: &str, wire: &[String]) -> Result<Vec<TargetId>, Invalid> {
    match wire.len() {
        0 => Err(Invalid::new(field, "is empty", "name at least one target")),
        1..=MAX_TARGETS => cloud_targets(field, wire),
        many => {
            let problem = format!("has {many} targets, more than {MAX_TARGETS}");
            Err(Invalid::new(field, problem, "share them out over several calls"))
        }
    }
}

/// Parses ports. A port may be named twice.
///
/// # Errors
/// The first item that is no port.
pub(in crate::api) fn ports(
    field: &str,
    wire: &[v1::ProtectedPort],
) -> Result<BTreeSet<ProtectedPort>, Invalid> {
    wire.iter().enumerate().map(|(i, wire)| port(&format!("{field}[{i}]"), Some(wire))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const VM: &str = "aws:123456789012/eu-central-1/i-0123456789abcdef0";

    fn refused(wire: &[&str]) -> Invalid {
        let wire: Vec<String> = wire.iter().map(ToString::to_string).collect();
        lockable_targets("targets", &wire).unwrap_err()
    }

    #[test]
    fn a_target_that_may_not_be_locked_down_is_named_by_its_place() {
        assert_eq!(refused(&[]).field, "targets");
        assert_eq!(refused(&[VM, "nonsense"]).field, "targets[1]");
        assert_eq!(refused(&[VM, VM]).field, "targets[1]");
        let host = refused(&["host:web-1"]);
        assert_eq!(
            (host.field.as_str(), host.problem.as_str()),
            ("targets[0]", "host:web-1 has no cloud layer")
        );
        assert!(!host.remedy.is_empty());
    }

    #[test]
    fn a_hundred_targets_are_a_call_and_one_more_are_too_many() {
        let names = |n: usize| -> Vec<String> {
            (0..n).map(|i| format!("aws:123456789012/eu-central-1/i-{i:017x}")).collect()
        };
        assert_eq!(lockable_targets("targets", &names(MAX_TARGETS)).unwrap().len(), MAX_TARGETS);
        assert_eq!(lockable_targets("targets", &names(MAX_TARGETS + 1)).unwrap_err().field, "targets");
    }

    #[test]
    fn every_target_may_be_meant_by_naming_none() {
        assert_eq!(cloud_targets("targets", &[]).unwrap(), []);
    }

    #[test]
    fn a_port_that_is_none_is_named_by_its_place() {
        let tcp = |number| v1::ProtectedPort { protocol: v1::Protocol::Tcp.into(), number };
        assert_eq!(ports("management_ports", &[tcp(22), tcp(22)]).unwrap().len(), 1);
        let error = ports("management_ports", &[tcp(22), tcp(0)]).unwrap_err();
        assert_eq!(error.field, "management_ports[1].number");
    }
}
