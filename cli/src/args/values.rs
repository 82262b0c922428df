//! Values of flags, parsed into the types of the domain. Every complaint is `problem; remedy`; clap names the flag.

use std::str::FromStr;
use std::time::Duration;

use jiff::SignedDuration;
use jiff::fmt::friendly::SpanParser;
use postern_core::audit::Hash;
use postern_core::{Invalid, Justification, Name, Port, ProtectedPort, Protocol};

/// A port as it is typed: `22`, or `udp/161` whatever `--proto` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PortArg {
    /// A bare number.
    Number(Port),
    /// With its protocol.
    Full(ProtectedPort),
}

impl PortArg {
    /// The protected port, where a bare number is of this protocol.
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
        let number = text.parse::<u32>().map_err(|_| {
            Invalid::new("port", format!("{text:?} is not a port"), "write a number such as 22, or udp/161")
        })?;
        Port::new(number).map(Self::Number)
    }
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

/// A duration longer than nothing.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let remedy = "write it like 90s, 30m or \"1h 30m\"";
    let span = SpanParser::new().parse_duration(text).map_err(|_| format!("is not a duration; {remedy}"))?;
    if span <= SignedDuration::ZERO {
        let problem = if span.is_zero() { "is zero" } else { "is negative" };
        return Err(format!("{problem}; {remedy}"));
    }
    Ok(span.unsigned_abs())
}

/// A duration of at least a second, without a fraction of one.
pub(super) fn whole_seconds(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        whole if whole.subsec_nanos() == 0 => Ok(whole),
        _ => Err("has a fraction of a second; ask for whole seconds".to_owned()),
    }
}

fn words(invalid: Invalid) -> String {
    format!("{}; {}", invalid.problem, invalid.remedy)
}
