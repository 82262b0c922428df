//! The table of limits: one row for each key of the section `[limits]`.
//!
//! A row gives the key, its default, its range, what it bounds, and how a peer that reaches it is counted. Everything else
//! follows from the rows: the fields of [`Limits`], the parsing of the configuration, the labels of `postern_limited_total`,
//! and the table in `docs/operations.md`. A test drives each row, and another fails if a row has none (`tests.rs`).

use std::time::Duration;

/// The row of a limit, as far as its type does not matter.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// The key in the section `[limits]`.
    pub key: &'static str,
    /// The default; seconds if the limit is a span.
    pub default: u64,
    /// The least and the greatest value.
    pub range: (u64, u64),
    /// True if the value is a span of time, false if it is a number.
    pub is_span: bool,
    /// The words for the documentation.
    pub what: &'static str,
    /// The counter of peers that reach the limit.
    pub counted: CountedBy,
    /// Sets the limit.
    pub(crate) set: fn(&mut Limits, SettingValue),
}

/// The counter of peers that reach a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CountedBy {
    /// `postern_limited_total` with the key as its label.
    Label,
    /// Another metric of the broker, or a counter of the kernel.
    Other(&'static str),
}

/// A value from the configuration, within its range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SettingValue {
    /// A number.
    Number(u64),
    /// A span of time.
    Span(Duration),
}

/// The type of a limit.
trait Setting {
    const IS_SPAN: bool;
    fn of(value: SettingValue) -> Self;
}

impl SettingValue {
    fn number(self) -> u64 {
        match self {
            Self::Number(number) => number,
            Self::Span(span) => span.as_secs(),
        }
    }
}

impl Setting for usize {
    const IS_SPAN: bool = false;
    fn of(value: SettingValue) -> Self {
        Self::try_from(value.number()).unwrap_or(Self::MAX)
    }
}

impl Setting for u32 {
    const IS_SPAN: bool = false;
    fn of(value: SettingValue) -> Self {
        Self::try_from(value.number()).unwrap_or(Self::MAX)
    }
}

impl Setting for u64 {
    const IS_SPAN: bool = false;
    fn of(value: SettingValue) -> Self {
        value.number()
    }
}

impl Setting for Duration {
    const IS_SPAN: bool = true;
    fn of(value: SettingValue) -> Self {
        match value {
            SettingValue::Number(seconds) => Self::from_secs(seconds),
            SettingValue::Span(span) => span,
        }
    }
}

macro_rules! limits {
    (
        counted { $( $variant:ident $key:ident: $type:ty = $default:literal, $least:literal..=$most:literal, $what:literal; )* }
        uncounted { $( $ukey:ident: $utype:ty = $udefault:literal, $uleast:literal..=$umost:literal, $counter:literal, $uwhat:literal; )* }
    ) => {
        /// Every limit, as in the section `[limits]` of the configuration.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct Limits {
            $( #[doc = $what] pub $key: $type, )*
            $( #[doc = $uwhat] pub $ukey: $utype, )*
            /// The addresses of load balancers: connections from one belong to many callers, and no limit for an address applies.
            pub load_balancers: Vec<postern_core::SourcePrefix>,
        }

        impl Default for Limits {
            fn default() -> Self {
                Self {
                    $( $key: Setting::of(SettingValue::Number($default)), )*
                    $( $ukey: Setting::of(SettingValue::Number($udefault)), )*
                    load_balancers: Vec::new(),
                }
            }
        }

        /// A limit that a peer reached.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Limit {
            $( #[doc = $what] $variant, )*
        }

        impl Limit {
            /// Returns the metric's label, which is the key in the section `[limits]`.
            pub const fn word(self) -> &'static str {
                match self {
                    $( Self::$variant => stringify!($key), )*
                }
            }
        }

        /// The labels of `postern_limited_total`.
        pub(crate) const LABELS: &[&str] = &[ $( stringify!($key), )* ];

        /// The table.
        pub const ROWS: &[Row] = &[
            $( Row {
                key: stringify!($key),
                default: $default,
                range: ($least, $most),
                is_span: <$type as Setting>::IS_SPAN,
                what: $what,
                counted: CountedBy::Label,
                set: |limits, value| limits.$key = Setting::of(value),
            }, )*
            $( Row {
                key: stringify!($ukey),
                default: $udefault,
                range: ($uleast, $umost),
                is_span: <$utype as Setting>::IS_SPAN,
                what: $uwhat,
                counted: CountedBy::Other($counter),
                set: |limits, value| limits.$ukey = Setting::of(value),
            }, )*
        ];
    };
}

limits! {
    counted {
        Connections connections: usize = 32_768, 64..=1_000_000,
            "connections in all. At least half are for agents alone, and an agent is refused once that half belongs to other agents";
        Descriptors descriptors: usize = 256, 64..=65_536,
            "file descriptors kept back for the store, clouds and the metrics port. `LimitNOFILE`, which the broker raises as far as it may, less these lowers `connections`, and the log says so";
        Handshakes handshakes: usize = 1_024, 8..=65_536,
            "connections whose TLS handshake is not done. When all are taken, a new one closes the one that has waited longest for its peer";
        HandshakesPerAddress handshakes_per_address: usize = 256, 1..=65_536,
            "the same for one address; a new one closes that address's own";
        HandshakesPerNetwork handshakes_per_network: usize = 512, 1..=65_536,
            "the same for one IPv6 network of 48 bits";
        HandshakeRate handshakes_per_second: u32 = 1_000, 10..=100_000,
            "handshakes begun in a second. The last quarter is for addresses (IPv6: networks of 48 bits) with fewer than 4 in that second; the broker closes every other connection before it costs a handshake";
        HandshakeRatePerAddress handshakes_per_second_per_address: u32 = 256, 1..=100_000,
            "the same for one address";
        HandshakeRatePerNetwork handshakes_per_second_per_network: u32 = 512, 1..=100_000,
            "the same for one IPv6 network of 48 bits";
        Anonymous anonymous: usize = 256, 4..=4_096,
            "connections without a client certificate. A new one closes the oldest of the address (IPv6: the network of 48 bits) that has most";
        AnonymousPerAddress anonymous_per_address: usize = 32, 1..=4_096,
            "the same from one address; a new one closes that address's oldest";
        AnonymousPerNetwork anonymous_per_network: usize = 96, 1..=4_096,
            "the same from one IPv6 network of 48 bits";
        People people: usize = 2_048, 4..=65_536,
            "connections of principals that are no administrators. A new one closes the oldest of the principal that has most";
        Administrators administrators: usize = 64, 2..=65_536,
            "connections of administrators, so that none of the others takes their room. A new one closes the oldest of the administrator that has most";
        PerPrincipal per_principal: usize = 256, 2..=65_536,
            "connections of one principal, and as many as an administrator; a new one closes the oldest";
        PerAgent per_agent: usize = 8, 2..=64,
            "connections of one agent; a new one closes the oldest";
        CallsPerPrincipal calls_per_principal: usize = 128, 8..=65_536,
            "calls at once of one principal on all its connections, from their headers until their answer is taken; a further call is refused";
        FirstByte first_byte: Duration = 5, 1..=60,
            "from accepting a connection to its first byte";
        Handshake handshake: Duration = 10, 1..=60,
            "from the first byte to the end of the TLS handshake";
        Preface preface: Duration = 5, 1..=60,
            "from the handshake to the beginning of HTTP/2";
        Receive receive: Duration = 10, 1..=300,
            "from a call's headers to the end of its request; streams of requests are exempt";
        Answer answer: Duration = 120, 90..=3_600,
            "from a call's headers to its answer. Streams are exempt; `assess`, `lockdown`, `release` and `audit verify` may take an hour";
        AnonymousAge anonymous_age: Duration = 60, 5..=86_400,
            "the age of a connection without a certificate: then the broker closes it, after 5 s also in the middle of a call";
        AnonymousBytes anonymous_bytes: usize = 262_144, 65_536..=16_777_216,
            "the bytes that a connection without a certificate may send after its handshake, frames that are no calls included: then the broker closes it";
        AnonymousStreams anonymous_streams: u32 = 8, 2..=1_024,
            "calls at once on one connection without a certificate";
        AgentStreams agent_streams: u32 = 16, 2..=1_024,
            "calls at once on one connection of an agent";
        Streams streams: u32 = 256, 2..=1_024,
            "calls at once on one connection of a principal";
        AnonymousHeaders anonymous_headers: u32 = 8_192, 2_048..=65_536,
            "bytes of a call's headers without a certificate, 32 more for each header (RFC 9113, section 6.5.2)";
        AgentHeaders agent_headers: u32 = 8_192, 2_048..=65_536,
            "the same for a call of an agent";
        Headers headers: u32 = 16_384, 2_048..=65_536,
            "the same for a call of a principal";
        AnonymousMessage anonymous_message: usize = 16_384, 4_096..=65_536,
            "bytes of a message of `Enroll` and of gRPC health";
        AgentMessage agent_message: usize = 65_536, 16_384..=1_048_576,
            "bytes of a message of an agent's calls";
        SmallMessage small_message: usize = 16_384, 4_096..=1_048_576,
            "bytes of a message of a principal's call that names one thing or a page: every call that the next rows do not name";
        RequestMessage request_message: usize = 131_072, 65_536..=1_048_576,
            "bytes of a message of `RequestAccess`, `AssessTargets`, `LockdownTargets` and `ReleaseTargets`";
        Message message: usize = 1_048_576, 65_536..=4_194_304,
            "bytes of a message of `PutPolicy`";
        ExpensiveReads expensive_reads: usize = 2, 2..=64,
            "reads at once that go through many records: `audit verify`, `assess`, a tail of the audit log from far back, lists of targets, agents and principals, lists of grants without a filter. Further ones wait; `audit verify` and `assess` leave one place to the others";
        ExpensiveReadsWaiting expensive_reads_waiting: usize = 256, 1..=4_096,
            "such reads that wait; a further one is refused. The pages of a watch or a tail wait without a bound of their own: calls have one";
        ExpensiveReadsPerCaller expensive_reads_per_caller: usize = 64, 1..=4_096,
            "such reads of one principal that wait or run; a further one is refused";
        Denials denials: u32 = 1_200, 60..=60_000,
            "records of refusals in the audit log each minute, of all callers together. Further refusals are counted (`postern_denials_omitted_total`)";
        DenialsPerCaller denials_per_caller: u32 = 120, 1..=60_000,
            "the same of one principal or agent";
    }
    uncounted {
        backlog: u32 = 1_024, 16..=65_535, "TcpExtListenOverflows",
            "connections that the kernel holds until the broker accepts them; `net.core.somaxconn` lowers it. The kernel counts those that find no room (`nstat -az TcpExtListenOverflows`)";
        store_disk_reserve: u64 = 67_108_864, 0..=1_099_511_627_776, "postern_store_low_on_space",
            "bytes of the file system of `data_dir` that the embedded store keeps to revoke, ban and close; 0: none (`postern_store_low_on_space`)";
        store_memory_reserve: u64 = 5, 0..=50, "postern_store_low_on_space",
            "hundredths of Redis's `maxmemory` that are kept for the same, at least 8 MiB; 0: none";
    }
}

impl Row {
    /// Returns the row of a key.
    pub fn of(key: &str) -> Option<&'static Self> {
        ROWS.iter().find(|row| row.key == key)
    }

    /// Returns a number or a number of seconds as the documentation and the errors write it.
    pub fn in_words(&self, value: u64) -> String {
        match value {
            hours if self.is_span && hours.is_multiple_of(3_600) => format!("{}h", hours / 3_600),
            seconds if self.is_span => format!("{seconds}s"),
            number => number.to_string(),
        }
    }

    /// Returns the row's line in `docs/operations.md`.
    pub fn documented(&self) -> String {
        let (default, (least, most)) = (self.in_words(self.default), self.range);
        let (least, most) = (self.in_words(least), self.in_words(most));
        format!("| `{}` | {default} | {least} to {most} | {} |", self.key, self.what)
    }
}
