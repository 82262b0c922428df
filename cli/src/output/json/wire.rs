//! Conversions from the wire to the JSON output. They refuse nothing: a value that cannot be read is `null` or
//! `unknown`.

use jiff::Timestamp;
use postern_proto::{convert, v1};

use super::{
    AgentJson, CloneAlarmJson, ForgottenJson, GrantJson, PolicyJson, PortJson, PortRuleJson, PrincipalJson,
    SecondsJson, TargetJson, TargetLayerJson, VerifiedJson, WidestPrefixJson, WindowJson, WindowLayerJson,
    words,
};

impl From<v1::Grant> for GrantJson {
    fn from(wire: v1::Grant) -> Self {
        Self {
            state: words::grant_state(wire.state()),
            close_reason: words::close_reason(wire.close_reason()),
            id: wire.id,
            principal: wire.principal.map(PrincipalJson::from),
            justification: wire.justification,
            requested_at: time(wire.requested_at),
            duration: seconds(wire.duration),
            not_after: time(wire.not_after),
            opened_at: time(wire.opened_at),
            closed_at: time(wire.closed_at),
            reason: wire.reason,
            windows: wire.windows.into_iter().map(WindowJson::from).collect(),
        }
    }
}

impl From<v1::Principal> for PrincipalJson {
    fn from(wire: v1::Principal) -> Self {
        // A broker that knows no other issuer sends the name alone.
        let or_name = |text: String| if text.is_empty() { wire.name.clone() } else { text };
        Self {
            role: words::role(wire.role()),
            issuer: Some(wire.issuer.clone()).filter(|issuer| !issuer.is_empty()),
            subject: or_name(wire.subject.clone()),
            display_name: or_name(wire.display_name.clone()),
            name: wire.name,
        }
    }
}

impl From<v1::Window> for WindowJson {
    fn from(wire: v1::Window) -> Self {
        let layers = wire.layers.into_iter().map(|layer| WindowLayerJson {
            layer: words::layer(layer.layer()),
            state: words::window_state(layer.state()),
            detail: layer.detail,
        });
        Self {
            layers: layers.collect(),
            target: wire.target,
            port: wire.port.map(PortJson::from),
            source: wire.source,
            connect_to: wire.connect_to,
        }
    }
}

impl From<v1::ProtectedPort> for PortJson {
    fn from(wire: v1::ProtectedPort) -> Self {
        Self { protocol: words::protocol(wire.protocol()), number: wire.number }
    }
}

impl From<v1::Policy> for PolicyJson {
    fn from(wire: v1::Policy) -> Self {
        let (layers, unreachable, mode) = (wire.layers(), wire.unreachable(), wire.mode());
        let ports = wire.ports.into_iter().map(|rule| PortRuleJson {
            port: rule.port.map(PortJson::from),
            sources: rule.sources,
            widest: rule.widest.map(|widest| WidestPrefixJson { ipv4: widest.ipv4, ipv6: widest.ipv6 }),
            max_duration: seconds(rule.max_duration),
        });
        Self {
            name: wire.name,
            targets: wire.targets,
            ports: ports.collect(),
            requesters: wire.requesters,
            approval_required: wire.approval_required,
            layers: words::layers(layers),
            unreachable: words::unreachable(unreachable),
            mode: words::mode(mode),
            version: Some(wire.version).filter(|version| *version != 0),
            max_open_grants: wire.max_open_grants,
        }
    }
}

impl From<v1::Target> for TargetJson {
    fn from(wire: v1::Target) -> Self {
        let layers = wire.layers.iter().map(|layer| TargetLayerJson {
            layer: words::layer(layer.layer()),
            status: words::layer_status(layer.status()),
            detail: layer.detail.clone(),
            last_seen: time(layer.last_seen),
        });
        Self {
            mode: words::mode(wire.mode()),
            layers: layers.collect(),
            id: wire.id,
            ports: wire.ports.into_iter().map(PortJson::from).collect(),
            policies: wire.policies,
            open_windows: wire.open_windows,
        }
    }
}

impl From<v1::Agent> for AgentJson {
    fn from(wire: v1::Agent) -> Self {
        Self {
            status: words::agent_status(wire.status()),
            target: wire.target,
            enrolled_at: time(wire.enrolled_at),
            certificate_not_after: time(wire.certificate_not_after),
            version: wire.version,
            last_seen: time(wire.last_seen),
            cloned: wire.cloned.map(CloneAlarmJson::from),
        }
    }
}

impl From<v1::CloneAlarm> for CloneAlarmJson {
    fn from(wire: v1::CloneAlarm) -> Self {
        Self {
            first_at: time(wire.first_at),
            last_at: time(wire.last_at),
            attempts: wire.attempts,
            reason: wire.reason,
        }
    }
}

impl From<v1::ForgetAgentResponse> for ForgottenJson {
    fn from(wire: v1::ForgetAgentResponse) -> Self {
        Self { forgotten: wire.target, held_until: time(wire.held_until), held_grants: wire.held_grants }
    }
}

impl From<v1::VerifyAuditResponse> for VerifiedJson {
    fn from(wire: v1::VerifyAuditResponse) -> Self {
        Self {
            records: wire.records,
            head: wire.head,
            sound: wire.sound,
            broken_line: (!wire.sound).then_some(wire.broken_line),
            problem: (!wire.sound).then_some(wire.problem),
            uncovered: (!wire.checkpoint.is_empty()).then_some(wire.uncovered),
            trusted: None,
            remembered: None,
            read_from: (wire.read_from > 0).then_some(wire.read_from),
            verified_at: wire.verified_at.parse().ok(),
            accepted_record: (wire.accepted_record > 0).then_some(wire.accepted_record),
        }
    }
}

/// Converts a time; one that is out of range becomes one that is not set.
pub(crate) fn time(wire: Option<prost_types::Timestamp>) -> Option<Timestamp> {
    wire.and_then(|wire| convert::timestamp("", &wire).ok())
}

pub(super) fn seconds(wire: Option<prost_types::Duration>) -> Option<SecondsJson> {
    convert::duration("", wire.as_ref()).ok().map(SecondsJson)
}
