//! The word for each value of each wire enum, the same in tables, in JSON and in files.

use postern_proto::v1;

/// The word for a value that is not set, or that a newer broker knows and this command does not.
pub(super) const UNKNOWN: &str = "unknown";

/// The verdict on a VM whose management ports are exposed.
pub(crate) const UNHEALTHY: &str = "unhealthy";

/// Returns the word for the state of a grant.
pub(crate) fn grant_state(state: v1::GrantState) -> &'static str {
    match state {
        v1::GrantState::Unspecified => UNKNOWN,
        v1::GrantState::PendingApproval => "pending_approval",
        v1::GrantState::Opening => "opening",
        v1::GrantState::Active => "active",
        v1::GrantState::Closing => "closing",
        v1::GrantState::Closed => "closed",
        v1::GrantState::Denied => "denied",
        v1::GrantState::Failed => "failed",
    }
}

pub(super) fn close_reason(reason: v1::CloseReason) -> Option<&'static str> {
    match reason {
        v1::CloseReason::Unspecified => None,
        v1::CloseReason::Expired => Some("expired"),
        v1::CloseReason::Revoked => Some("revoked"),
        v1::CloseReason::Superseded => Some("superseded"),
        v1::CloseReason::CannotOpen => Some("cannot_open"),
    }
}

pub(super) fn window_state(state: v1::WindowState) -> &'static str {
    match state {
        v1::WindowState::Unspecified => UNKNOWN,
        v1::WindowState::Opening => "opening",
        v1::WindowState::Open => "open",
        v1::WindowState::Closing => "closing",
        v1::WindowState::Closed => "closed",
        v1::WindowState::Unreachable => "unreachable",
        v1::WindowState::Refused => "refused",
    }
}

pub(super) fn layer(layer: v1::Layer) -> &'static str {
    match layer {
        v1::Layer::Unspecified => UNKNOWN,
        v1::Layer::Host => "host",
        v1::Layer::Cloud => "cloud",
    }
}

pub(super) fn layer_status(status: v1::LayerStatus) -> &'static str {
    match status {
        v1::LayerStatus::Unspecified => UNKNOWN,
        v1::LayerStatus::NotRequired => "not_required",
        v1::LayerStatus::InSync => "in_sync",
        v1::LayerStatus::Pending => "pending",
        v1::LayerStatus::Unreachable => "unreachable",
        v1::LayerStatus::Failed => "failed",
    }
}

pub(super) fn layers(layers: v1::Layers) -> &'static str {
    match layers {
        v1::Layers::Unspecified => UNKNOWN,
        v1::Layers::Host => "host",
        v1::Layers::Cloud => "cloud",
        v1::Layers::Both => "both",
    }
}

pub(super) fn unreachable(unreachable: v1::Unreachable) -> Option<&'static str> {
    match unreachable {
        v1::Unreachable::Unspecified => None,
        v1::Unreachable::Fail => Some("fail"),
        v1::Unreachable::Wait => Some("wait"),
    }
}

pub(super) fn mode(mode: v1::Mode) -> Option<&'static str> {
    match mode {
        v1::Mode::Unspecified => None,
        v1::Mode::Monitor => Some("monitor"),
        v1::Mode::Enforce => Some("enforce"),
    }
}

pub(super) fn agent_status(status: v1::AgentStatus) -> &'static str {
    match status {
        v1::AgentStatus::Unspecified => UNKNOWN,
        v1::AgentStatus::Offline => "offline",
        v1::AgentStatus::Online => "online",
        v1::AgentStatus::Banned => "banned",
    }
}

pub(super) fn role(role: v1::Role) -> &'static str {
    match role {
        v1::Role::Unspecified => UNKNOWN,
        v1::Role::Administrator => "administrator",
        v1::Role::Requester => "requester",
        v1::Role::Reader => "reader",
    }
}

pub(super) fn protocol(protocol: v1::Protocol) -> &'static str {
    match protocol {
        v1::Protocol::Unspecified => UNKNOWN,
        v1::Protocol::Tcp => "tcp",
        v1::Protocol::Udp => "udp",
    }
}

pub(super) fn verdict(verdict: v1::Verdict) -> &'static str {
    match verdict {
        v1::Verdict::Unspecified => UNKNOWN,
        v1::Verdict::Healthy => "healthy",
        v1::Verdict::Unhealthy => UNHEALTHY,
        v1::Verdict::NotApplicable => "not_applicable",
    }
}

pub(super) fn change_action(action: v1::ChangeAction) -> &'static str {
    match action {
        v1::ChangeAction::Unspecified => UNKNOWN,
        v1::ChangeAction::Create => "create",
        v1::ChangeAction::Attach => "attach",
        v1::ChangeAction::Park => "park",
        v1::ChangeAction::Add => "add",
        v1::ChangeAction::Remove => "remove",
        v1::ChangeAction::Mark => "mark",
        v1::ChangeAction::Detach => "detach",
        v1::ChangeAction::Delete => "delete",
        v1::ChangeAction::Move => "move",
    }
}

pub(super) fn concern_kind(kind: v1::ConcernKind) -> &'static str {
    match kind {
        v1::ConcernKind::Unspecified => UNKNOWN,
        v1::ConcernKind::Shared => "shared",
        v1::ConcernKind::Loss => "loss",
        v1::ConcernKind::Cut => "cut",
        v1::ConcernKind::Precedence => "precedence",
    }
}

pub(super) fn store_kind(kind: v1::StoreKind) -> &'static str {
    match kind {
        v1::StoreKind::Unspecified => UNKNOWN,
        v1::StoreKind::Embedded => "embedded",
        v1::StoreKind::Redis => "redis",
    }
}

pub(super) fn root_key(place: v1::RootKey) -> &'static str {
    match place {
        v1::RootKey::Unspecified => UNKNOWN,
        v1::RootKey::AtHand => "at_hand",
        v1::RootKey::Offline => "offline",
        v1::RootKey::Unusable => "unusable",
    }
}

pub(super) fn target_error_code(code: v1::TargetErrorCode) -> &'static str {
    match code {
        v1::TargetErrorCode::Unspecified => UNKNOWN,
        v1::TargetErrorCode::NotFound => "not_found",
        v1::TargetErrorCode::FailedPrecondition => "failed_precondition",
        v1::TargetErrorCode::Unavailable => "unavailable",
    }
}
