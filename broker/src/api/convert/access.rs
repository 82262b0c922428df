//! Requests and grants on the wire.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use postern_core::plan::{Layer, Observed};
use postern_core::text::free_text;
use postern_core::{
    AccessRequest, CloseReason, Grant, GrantState, Invalid, Justification, PrincipalKey, SourcePrefix,
    TargetId, Window,
};
use postern_proto::convert::{
    duration, duration_to_wire, each, port, port_to_wire, principal_to_wire, timestamp_to_wire,
};
use postern_proto::v1;

use crate::app::access::{GrantFilter, KeyedRequest};

/// The longest time that an answer may wait.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// The parts of a `RequestAccess` call.
#[derive(Debug)]
pub(in crate::api) struct RequestedAccess {
    /// The request, for the use case.
    pub(in crate::api) request: KeyedRequest,
    /// The origin of its sources.
    pub(in crate::api) source: CallerSource,
    /// The longest that the answer may wait.
    pub(in crate::api) wait: Option<Duration>,
}

/// The origin of a request's sources.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::api) enum CallerSource {
    /// The request named them.
    Named,
    /// The request named none: the broker used the address that it sees.
    FromCaller,
}

/// Parses a request; `caller` is the caller's address as the broker sees it.
///
/// # Errors
/// The first field that is wrong.
pub(in crate::api) fn requested_access(
    wire: &v1::RequestAccessRequest,
    caller: Option<IpAddr>,
) -> Result<RequestedAccess, Invalid> {
    let targets: Vec<TargetId> = each("targets", &wire.targets)?;
    let ports = wire.ports.iter().enumerate().map(|(i, wire)| port(&format!("ports[{i}]"), Some(wire)));
    let ports = ports.collect::<Result<Vec<_>, _>>()?;
    let others = other_addresses(&wire.caller_addresses, caller)?;
    let (sources, source) = if wire.sources.is_empty() {
        let caller = caller.ok_or_else(|| {
            Invalid::new("sources", "is empty and the caller's address is not known", "name a source")
        })?;
        let others = others.into_iter().map(|(address, _)| address);
        (std::iter::once(caller).chain(others).map(SourcePrefix::single).collect(), CallerSource::FromCaller)
    } else {
        (each("sources", &wire.sources)?, CallerSource::Named)
    };
    let asked_for = duration("duration", wire.duration.as_ref())?;
    if asked_for.subsec_nanos() != 0 {
        return Err(Invalid::new("duration", "has a fraction of a second", "ask for whole seconds"));
    }
    free_text("idempotency_key", &wire.idempotency_key, 64)?;
    let justification = Justification::new(&wire.justification)?;
    let is_from_caller = source == CallerSource::FromCaller;
    let own: Vec<SourcePrefix> = sources.iter().take(1).copied().collect();
    let of = |sources| {
        AccessRequest::new(targets.clone(), ports.clone(), sources, asked_for, justification.clone())
    };
    let request = match of(sources) {
        // The command adds other addresses by itself: they make no request too large.
        Err(_) if is_from_caller => of(own)?,
        request => request?,
    };
    Ok(RequestedAccess {
        request: KeyedRequest {
            request,
            idempotency_key: Some(wire.idempotency_key.clone()).filter(|key| !key.is_empty()),
            is_from_caller,
        },
        source,
        wait: wait(wire.wait.as_ref())?,
    })
}

/// Parses the caller's addresses in other families than that of the address that the broker sees, each with its proof.
///
/// # Errors
/// The first field that is wrong.
pub(in crate::api) fn other_addresses(
    wire: &[v1::CallerAddress],
    caller: Option<IpAddr>,
) -> Result<Vec<(IpAddr, &[u8])>, Invalid> {
    if wire.len() > 2 {
        return Err(Invalid::new("caller_addresses", "has more than two", "name one of each family"));
    }
    let mut others = Vec::new();
    for (i, address) in wire.iter().enumerate() {
        let parsed: IpAddr = address.address.parse().map_err(|_| {
            let field = format!("caller_addresses[{i}].address");
            Invalid::new(&field, "is no IP address", "send what GetCallerAddress returned")
        })?;
        let parsed = parsed.to_canonical();
        if caller.is_none_or(|caller| caller.to_canonical().is_ipv4() != parsed.is_ipv4()) {
            others.push((parsed, address.proof.as_slice()));
        }
    }
    others.truncate(1);
    Ok(others)
}

/// Parses the time that an answer may wait.
///
/// # Errors
/// Negative, or past [`MAX_WAIT`].
pub(in crate::api) fn wait(wire: Option<&prost_types::Duration>) -> Result<Option<Duration>, Invalid> {
    let Some(wire) = wire else { return Ok(None) };
    let wait = duration("wait", Some(wire))?;
    if wait > MAX_WAIT {
        return Err(Invalid::new("wait", "is past 60 s", "wait at most 60s and ask again"));
    }
    Ok(Some(wait))
}

/// Parses a filter; a filter that is not set admits every grant.
///
/// # Errors
/// The first field that is wrong.
pub(in crate::api) fn grant_filter(wire: Option<&v1::GrantFilter>) -> Result<GrantFilter, Invalid> {
    let Some(wire) = wire else { return Ok(GrantFilter::default()) };
    let set = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    Ok(GrantFilter {
        target: set(&wire.target)
            .map(|text| text.parse())
            .transpose()
            .map_err(|e: Invalid| e.within("filter"))?,
        states: grant_states(wire.states())?,
        principal: set(&wire.principal)
            .map(|text| PrincipalKey::parse(&text))
            .transpose()
            .map_err(|e| e.named("filter.principal"))?,
        grant: set(&wire.grant_id)
            .map(|text| text.parse())
            .transpose()
            .map_err(|e: Invalid| e.named("filter.grant_id"))?,
    })
}

/// Converts states into their words.
///
/// # Errors
/// A state that is not set or not known.
fn grant_states(states: impl Iterator<Item = v1::GrantState>) -> Result<Vec<&'static str>, Invalid> {
    states
        .map(|state| match state {
            v1::GrantState::PendingApproval => Ok("pending_approval"),
            v1::GrantState::Opening => Ok("opening"),
            v1::GrantState::Active => Ok("active"),
            v1::GrantState::Closing => Ok("closing"),
            v1::GrantState::Closed => Ok("closed"),
            v1::GrantState::Denied => Ok("denied"),
            v1::GrantState::Failed => Ok("failed"),
            v1::GrantState::Unspecified => Err(Invalid::new(
                "filter.states",
                "has a state that is not known",
                "use the states of a grant",
            )),
        })
        .collect()
}

/// Converts a grant for the wire. `observe` answers how each window stands in each layer that it needs, and `endpoint` the
/// address to connect to, if something on the way translates it.
pub(in crate::api) fn grant_to_wire(
    grant: &Grant,
    observe: impl Fn(&Window, Layer) -> Observed,
    endpoint: impl Fn(&Window) -> Option<SocketAddr>,
) -> v1::Grant {
    let (state, close_reason) = state_to_wire(&grant.state);
    let waits = grant.state == GrantState::PendingApproval;
    v1::Grant {
        id: grant.id.to_string(),
        principal: Some(principal_to_wire(&grant.principal)),
        justification: grant.justification.to_string(),
        requested_at: Some(timestamp_to_wire(grant.requested_at)),
        duration: Some(duration_to_wire(grant.duration)),
        not_after: (!waits).then(|| timestamp_to_wire(grant.not_after)),
        opened_at: grant.opened_at.map(timestamp_to_wire),
        closed_at: grant.closed_at.map(timestamp_to_wire),
        state: state.into(),
        close_reason: close_reason.into(),
        reason: grant.state.reason(),
        windows: grant
            .windows
            .iter()
            .map(|window| window_to_wire(grant, window, &observe, &endpoint))
            .collect(),
    }
}

fn window_to_wire(
    grant: &Grant,
    window: &Window,
    observe: impl Fn(&Window, Layer) -> Observed,
    endpoint: impl Fn(&Window) -> Option<SocketAddr>,
) -> v1::Window {
    let layers = Layer::ALL.into_iter().filter(|layer| layer.required_by(window));
    let layers = layers.map(|layer| {
        let (state, detail) = window_state(grant, observe(window, layer));
        let layer = match layer {
            Layer::Host => v1::Layer::Host,
            Layer::Cloud => v1::Layer::Cloud,
        };
        v1::WindowLayer { layer: layer.into(), state: state.into(), detail }
    });
    v1::Window {
        target: window.target.to_string(),
        port: Some(port_to_wire(window.port)),
        source: window.source.to_string(),
        layers: layers.collect(),
        connect_to: endpoint(window).map(|endpoint| endpoint.to_string()).unwrap_or_default(),
    }
}

/// Converts a layer's answer on a window. Its meaning depends on whether the grant opens or closes.
fn window_state(grant: &Grant, observed: Observed) -> (v1::WindowState, String) {
    if grant.state.is_final() {
        return (v1::WindowState::Closed, String::new());
    }
    let opening = matches!(grant.state, GrantState::Opening | GrantState::Active);
    let (state, detail) = match observed {
        Observed::Open if opening => (v1::WindowState::Open, String::new()),
        Observed::Absent if !opening => (v1::WindowState::Closed, String::new()),
        Observed::Open | Observed::Absent | Observed::Unconfirmed if opening => {
            (v1::WindowState::Opening, String::new())
        }
        Observed::Open | Observed::Absent | Observed::Unconfirmed => {
            (v1::WindowState::Closing, String::new())
        }
        Observed::Unreachable { reason, .. } => (v1::WindowState::Unreachable, reason),
        Observed::Refused { reason } => (v1::WindowState::Refused, reason),
    };
    (state, detail)
}

fn state_to_wire(state: &GrantState) -> (v1::GrantState, v1::CloseReason) {
    let reason = |reason: &CloseReason| match reason {
        CloseReason::Expired => v1::CloseReason::Expired,
        CloseReason::Revoked { .. } => v1::CloseReason::Revoked,
        CloseReason::Superseded { .. } => v1::CloseReason::Superseded,
        CloseReason::CannotOpen { .. } => v1::CloseReason::CannotOpen,
    };
    match state {
        GrantState::PendingApproval => (v1::GrantState::PendingApproval, v1::CloseReason::Unspecified),
        GrantState::Opening => (v1::GrantState::Opening, v1::CloseReason::Unspecified),
        GrantState::Active => (v1::GrantState::Active, v1::CloseReason::Unspecified),
        GrantState::Closing(why) => (v1::GrantState::Closing, reason(why)),
        GrantState::Closed(why) => (v1::GrantState::Closed, reason(why)),
        GrantState::Denied { .. } => (v1::GrantState::Denied, v1::CloseReason::Unspecified),
        GrantState::Failed { .. } => (v1::GrantState::Failed, v1::CloseReason::CannotOpen),
    }
}
