//! The limits by name, as the metrics and the log have them.

/// A limit that a peer reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Limit {
    /// The first byte did not come in time.
    FirstByte,
    /// The TLS handshake took too long.
    Handshake,
    /// The client did not begin HTTP/2 in time.
    Preface,
    /// Too many handshakes in all.
    Handshakes,
    /// Too many handshakes of one address.
    HandshakesPerAddress,
    /// Too many connections without a certificate.
    Anonymous,
    /// Too many connections without a certificate from one address.
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
    /// A connection without a certificate has sent its share of bytes.
    AnonymousBytes,
    /// A request did not arrive in time.
    Receive,
    /// A call had no answer in time.
    Answer,
    /// A message was too large.
    Message,
}

impl Limit {
    /// Returns the metric's label, which is the key in the section `[limits]` or its plural.
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
            Self::AnonymousBytes => "anonymous_bytes",
            Self::Receive => "receive",
            Self::Answer => "answer",
            Self::Message => "message",
        }
    }
}
