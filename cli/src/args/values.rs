//! The values of flags, parsed into domain types. Every error is `problem; remedy`; clap names the flag.

use std::str::FromStr;
use std::time::Duration;

use jiff::SignedDuration;
use jiff::fmt::friendly::SpanParser;
use postern_core::audit::Hash;
use postern_core::{Invalid, Justification, Name, Port, ProtectedPort, Protocol};

/// The services that a port can be named by, with their TCP ports (IANA service names; `rdp`, `winrm` and
/// `winrm-https` are the usual short forms of `ms-wbt-server`, `wsman` and `wsmans`).
const SERVICES: [(&str, u32); 4] = [("ssh", 22), ("rdp", 3389), ("winrm", 5985), ("winrm-https", 5986)];

/// A port as it is typed: `22`, `udp/161`, or the name of a service such as `ssh`. Only a bare number takes the
/// protocol of `--proto`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PortArg {
    /// A bare number.
    Number(Port),
    /// A port with its protocol, written out or implied by a service's name.
    Full(ProtectedPort),
}

impl PortArg {
    /// Returns the protected port; a bare number takes the given protocol.
    pub(crate) fn with(self, protocol: Protocol) -> ProtectedPort {
        match self {
            Self::Number(port) => ProtectedPort { protocol, port },
            Self::Full(port) => port,
        }
    }
}

impl FromStr for PortArg {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        if text.contains('/') {
            return text.parse().map(Self::Full);
        }
        if let Some((_, number)) = SERVICES.iter().find(|(name, _)| text.eq_ignore_ascii_case(name)) {
            return Ok(Self::Full(ProtectedPort { protocol: Protocol::Tcp, port: Port::new(*number)? }));
        }
        let number = text.parse::<u32>().map_err(|_| not_a_port(text))?;
        Port::new(number).map(Self::Number)
    }
}

fn not_a_port(text: &str) -> Invalid {
    let services = SERVICES.map(|(name, _)| name).join(", ");
    let remedy =
        format!("write a number such as 22, a protocol and a number such as udp/161, or one of {services}");
    Invalid::new("port", format!("{text:?} is not a port or a service"), remedy)
}

pub(super) fn parsed<T: FromStr<Err = Invalid>>(text: &str) -> Result<T, String> {
    text.parse().map_err(words)
}

pub(super) fn justification(text: &str) -> Result<Justification, String> {
    Justification::new(text).map_err(words)
}

pub(super) fn name(text: &str) -> Result<Name, String> {
    Name::new(text).map_err(words)
}

pub(super) fn head(text: &str) -> Result<Hash, String> {
    text.parse()
}

/// Parses a duration that is longer than zero.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let remedy = "write it like 90s, 30m or \"1h 30m\"";
    let span = SpanParser::new().parse_duration(text).map_err(|_| format!("is not a duration; {remedy}"))?;
    if span <= SignedDuration::ZERO {
        let problem = if span.is_zero() { "is zero" } else { "is negative" };
        return Err(format!("{problem}; {remedy}"));
    }
    Ok(span.unsigned_abs())
}

/// Parses a duration in whole seconds, at least one.
pub(super) fn whole_seconds(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        whole if whole.subsec_nanos() == 0 => Ok(whole),
        _ => Err("has a fraction of a second; ask for whole seconds".to_owned()),
    }
}

fn words(invalid: Invalid) -> String {
    format!("{}; {}", invalid.problem, invalid.remedy)
}
