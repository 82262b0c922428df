//! Policies on the wire.

use postern_core::policy::{PortRule, Unreachable, WidestPrefix};
use postern_core::{Invalid, Layers, Name, Policy};

use super::common::{duration, duration_to_wire, mode, mode_to_wire, port, port_to_wire};
use crate::v1;

/// Parses and checks a policy. Returns it with the version that it replaces (`None`: any version).
///
/// # Errors
/// The first field that is wrong.
pub fn policy(wire: Option<&v1::Policy>) -> Result<(Policy, Option<u64>), Invalid> {
    let wire = wire.ok_or_else(|| Invalid::new("policy", "is not set", "give the policy to keep"))?;
    let policy = Policy {
        name: Name::new(&wire.name)?,
        targets: each("targets", &wire.targets)?,
        ports: wire.ports.iter().enumerate().map(|(i, rule)| port_rule(i, rule)).collect::<Result<_, _>>()?,
        requesters: each("requesters", &wire.requesters)?,
        approval_required: wire.approval_required,
        layers: match wire.layers() {
            v1::Layers::Host => Layers::Host,
            v1::Layers::Cloud => Layers::Cloud,
            v1::Layers::Both => Layers::Both,
            v1::Layers::Unspecified => {
                return Err(Invalid::new("layers", "is not set or not known", "use host, cloud or both"));
            }
        },
        unreachable: match wire.unreachable() {
            v1::Unreachable::Fail => Unreachable::Fail,
            v1::Unreachable::Wait => Unreachable::Wait,
            v1::Unreachable::Unspecified => {
                return Err(Invalid::new("unreachable", "is not set or not known", "use fail or wait"));
            }
        },
        mode: mode("mode", wire.mode())?,
        max_open_grants: wire.max_open_grants,
    };
    Ok((policy.checked()?, Some(wire.version).filter(|version| *version != 0)))
}

/// Converts a policy for the wire.
pub fn policy_to_wire(policy: &Policy, version: u64) -> v1::Policy {
    v1::Policy {
        name: policy.name.to_string(),
        targets: policy.targets.iter().map(ToString::to_string).collect(),
        ports: policy.ports.iter().map(port_rule_to_wire).collect(),
        requesters: policy.requesters.iter().map(ToString::to_string).collect(),
        approval_required: policy.approval_required,
        layers: layers_to_wire(policy.layers).into(),
        unreachable: match policy.unreachable {
            Unreachable::Fail => v1::Unreachable::Fail,
            Unreachable::Wait => v1::Unreachable::Wait,
        }
        .into(),
        mode: mode_to_wire(policy.mode).into(),
        max_open_grants: policy.max_open_grants,
        version,
    }
}

/// Converts the limits of a port for the wire.
pub fn port_rule_to_wire(rule: &PortRule) -> v1::PortRule {
    v1::PortRule {
        port: Some(port_to_wire(rule.port)),
        sources: rule.sources.iter().map(ToString::to_string).collect(),
        max_duration: Some(duration_to_wire(rule.max_duration)),
        widest: Some(v1::WidestPrefix { ipv4: rule.widest.ipv4.into(), ipv6: rule.widest.ipv6.into() }),
    }
}

/// Converts the layers of a policy for the wire.
pub fn layers_to_wire(layers: Layers) -> v1::Layers {
    match layers {
        Layers::Host => v1::Layers::Host,
        Layers::Cloud => v1::Layers::Cloud,
        Layers::Both => v1::Layers::Both,
    }
}

fn port_rule(index: usize, wire: &v1::PortRule) -> Result<PortRule, Invalid> {
    let field = format!("ports[{index}]");
    Ok(PortRule {
        port: port("port", wire.port.as_ref()).map_err(|e| e.within(&field))?,
        sources: each("sources", &wire.sources).map_err(|e| e.within(&field))?,
        max_duration: duration("max_duration", wire.max_duration.as_ref()).map_err(|e| e.within(&field))?,
        widest: wire.widest.map_or_else(WidestPrefix::default, |widest| {
            // A length that is past its type is past its range, too, which the policy's check refuses.
            let length = |length: u32| u8::try_from(length).unwrap_or(u8::MAX);
            WidestPrefix { ipv4: length(widest.ipv4), ipv6: length(widest.ipv6) }
        }),
    })
}

/// Parses every item of a list.
///
/// # Errors
/// The first item that fails, named by its place in the list.
pub fn each<T: std::str::FromStr<Err = Invalid>>(field: &str, items: &[String]) -> Result<Vec<T>, Invalid> {
    let parse =
        |(i, item): (usize, &String)| item.parse::<T>().map_err(|e| e.named(&format!("{field}[{i}]")));
    items.iter().enumerate().map(parse).collect()
}
