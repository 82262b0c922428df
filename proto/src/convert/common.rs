//! Conversions that several services share.

use std::time::Duration;

use jiff::Timestamp;
use postern_core::{Invalid, Mode, Port, Principal, PrincipalKey, ProtectedPort, Protocol, Role};

use crate::v1;

/// Parses a duration of zero or more, whole in nanoseconds.
///
/// # Errors
/// The duration is not set, negative, or not normalised (google.protobuf.Duration: seconds and nanos of one sign).
pub fn duration(field: &str, wire: Option<&prost_types::Duration>) -> Result<Duration, Invalid> {
    let remedy = "give a positive duration such as 1800s";
    let wire = wire.ok_or_else(|| Invalid::new(field, "is not set", remedy))?;
    match (u64::try_from(wire.seconds), u32::try_from(wire.nanos)) {
        (Ok(seconds), Ok(nanos)) if nanos < 1_000_000_000 => Ok(Duration::new(seconds, nanos)),
        _ => Err(Invalid::new(field, "is negative or malformed", remedy)),
    }
}

/// Converts a duration for the wire; saturates past 2^63 seconds.
pub fn duration_to_wire(duration: Duration) -> prost_types::Duration {
    let seconds = i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    prost_types::Duration { seconds, nanos: i32::try_from(duration.subsec_nanos()).unwrap_or(0) }
}

/// Parses a time.
///
/// # Errors
/// The time is out of range.
pub fn timestamp(field: &str, wire: &prost_types::Timestamp) -> Result<Timestamp, Invalid> {
    Timestamp::new(wire.seconds, wire.nanos)
        .map_err(|_| Invalid::new(field, "is out of range", "give a time between the years 1 and 9999"))
}

/// Returns a time that the sender may leave out; `None` also for one that is no time.
pub fn optional_timestamp(wire: Option<&prost_types::Timestamp>) -> Option<Timestamp> {
    timestamp("time", wire?).ok()
}

/// Converts a time for the wire.
pub fn timestamp_to_wire(at: Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: at.as_second(), nanos: at.subsec_nanosecond() }
}

/// Parses a protected port.
///
/// # Errors
/// The port is not set, its protocol is unknown, or its number is no port.
pub fn port(field: &str, wire: Option<&v1::ProtectedPort>) -> Result<ProtectedPort, Invalid> {
    let wire = wire.ok_or_else(|| Invalid::new(field, "is not set", "name a protocol and a port"))?;
    let protocol = match wire.protocol() {
        v1::Protocol::Tcp => Protocol::Tcp,
        v1::Protocol::Udp => Protocol::Udp,
        v1::Protocol::Unspecified => {
            return Err(Invalid::new("protocol", "is not set or not known", "use tcp or udp").within(field));
        }
    };
    let port = Port::new(wire.number).map_err(|e| e.named("number").within(field))?;
    Ok(ProtectedPort { protocol, port })
}

/// Converts a protected port for the wire.
pub fn port_to_wire(port: ProtectedPort) -> v1::ProtectedPort {
    let protocol = match port.protocol {
        Protocol::Tcp => v1::Protocol::Tcp,
        Protocol::Udp => v1::Protocol::Udp,
    };
    v1::ProtectedPort { protocol: protocol.into(), number: u32::from(port.port.get()) }
}

/// Parses a mode.
///
/// # Errors
/// The mode is not set or not known.
pub fn mode(field: &str, wire: v1::Mode) -> Result<Mode, Invalid> {
    match wire {
        v1::Mode::Monitor => Ok(Mode::Monitor),
        v1::Mode::Enforce => Ok(Mode::Enforce),
        v1::Mode::Unspecified => {
            Err(Invalid::new(field, "is not set or not known", "use enforce or monitor"))
        }
    }
}

/// Converts a mode for the wire.
pub fn mode_to_wire(mode: Mode) -> v1::Mode {
    match mode {
        Mode::Monitor => v1::Mode::Monitor,
        Mode::Enforce => v1::Mode::Enforce,
    }
}

/// Converts a role for the wire.
pub fn role_to_wire(role: Role) -> v1::Role {
    match role {
        Role::Administrator => v1::Role::Administrator,
        Role::Requester => v1::Role::Requester,
        Role::Reader => v1::Role::Reader,
    }
}

/// Converts a principal for the wire.
pub fn principal_to_wire(principal: &Principal) -> v1::Principal {
    let (issuer, subject) = match principal.key() {
        PrincipalKey::Local(name) => (String::new(), name.to_string()),
        PrincipalKey::Foreign { issuer, subject } => (issuer.to_string(), subject.to_string()),
    };
    v1::Principal {
        role: role_to_wire(principal.role()).into(),
        name: principal.key().to_text(),
        issuer,
        subject,
        display_name: principal.display_name().to_owned(),
    }
}

/// Parses the size and the token of a page: a size of 0 means 100 items.
///
/// # Errors
/// The size is past 1000.
pub fn page(wire: Option<&v1::PageRequest>) -> Result<(usize, Option<String>), Invalid> {
    const DEFAULT: u32 = 100;
    const MAX: u32 = 1000;
    let wire = wire.cloned().unwrap_or_default();
    if wire.size > MAX {
        let problem = format!("{} is past {MAX}", wire.size);
        return Err(Invalid::new("page.size", problem, "use 1 to 1000, or 0 for 100"));
    }
    let size = if wire.size == 0 { DEFAULT } else { wire.size };
    Ok((size as usize, Some(wire.token).filter(|token| !token.is_empty())))
}
