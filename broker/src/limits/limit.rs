//! The limits by name, as the metrics and the log have them.

/// A limit that something ran into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Limit {
    /// No byte came in time.
    FirstByte,
    /// The TLS handshake took too long.
    Handshake,
    /// HTTP/2 was not begun in time.
    Preface,
    /// Too many handshakes in all.
    Handshakes,
    /// Too many handshakes of one address.
    HandshakesPerAddress,
    /// Too many connections without a certificate.
    Anonymous,
    /// Too many of them from one address.
    AnonymousPerAddress,
    /// Too many connections of principals.
    People,
    /// Too many connections of one principal.
    PerPrincipal,
    /// Too many connections of agents.
    Agents,
    /// Too many connections of one agent.
    PerAgent,
    /// A connection without a certificate has reached its age.
    AnonymousAge,
    /// A request was not received in time.
    Receive,
    /// A call was not answered in time.
    Answer,
    /// A message was too large.
    Message,
}

impl Limit {
    /// The word in the metric's label, which is the key in the section `[limits]` or its plural.
    pub const fn word(self) -> &'static str {
        match self {
            Self::FirstByte => "first_byte",
            Self::Handshake => "handshake",
            Self::Preface => "preface",
            Self::Handshakes => "handshakes",
            Self::HandshakesPerAddress => "handshakes_per_address",
            Self::Anonymous => "anonymous",
            Self::AnonymousPerAddress => "anonymous_per_address",
            Self::People => "people",
            Self::PerPrincipal => "per_principal",
            Self::Agents => "agents",
            Self::PerAgent => "per_agent",
            Self::AnonymousAge => "anonymous_age",
            Self::Receive => "receive",
            Self::Answer => "answer",
            Self::Message => "message",
        }
    }
}
