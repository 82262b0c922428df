//! Limits in the configuration.

use std::ops::RangeInclusive;
use std::time::Duration;

use jiff::SignedDuration;
use postern_core::{Invalid, SourcePrefix};
use postern_store::Reserve;
use serde::Deserialize;

use crate::limits::Limits;

/// The section `[limits]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct LimitsSection {
    connections: Option<usize>,
    handshakes: Option<usize>,
    handshakes_per_address: Option<usize>,
    anonymous: Option<usize>,
    anonymous_per_address: Option<usize>,
    people: Option<usize>,
    per_principal: Option<usize>,
    per_agent: Option<usize>,
    load_balancers: Vec<String>,
    first_byte: Option<String>,
    handshake: Option<String>,
    preface: Option<String>,
    receive: Option<String>,
    answer: Option<String>,
    anonymous_age: Option<String>,
    anonymous_bytes: Option<usize>,
    anonymous_streams: Option<usize>,
    agent_streams: Option<usize>,
    streams: Option<usize>,
    anonymous_message: Option<usize>,
    agent_message: Option<usize>,
    message: Option<usize>,
    denials: Option<usize>,
    denials_per_caller: Option<usize>,
    store_disk_reserve: Option<usize>,
    store_memory_reserve: Option<usize>,
}

impl LimitsSection {
    /// Returns the limits, each key that is left out at its default.
    ///
    /// # Errors
    /// The first key that is wrong.
    pub(super) fn checked(self) -> Result<Limits, Invalid> {
        let usual = Limits::default();
        let balancer = |(i, text): (usize, &String)| {
            text.parse::<SourcePrefix>().map_err(|e| e.named(&format!("limits.load_balancers[{i}]")))
        };
        let limits = Limits {
            connections: number("connections", self.connections, 64..=1_000_000, usual.connections)?,
            handshakes: number("handshakes", self.handshakes, 8..=65_536, usual.handshakes)?,
            handshakes_per_address: number(
                "handshakes_per_address",
                self.handshakes_per_address,
                1..=65_536,
                usual.handshakes_per_address,
            )?,
            anonymous: number("anonymous", self.anonymous, 4..=4_096, usual.anonymous)?,
            anonymous_per_address: number(
                "anonymous_per_address",
                self.anonymous_per_address,
                1..=4_096,
                usual.anonymous_per_address,
            )?,
            people: number("people", self.people, 4..=65_536, usual.people)?,
            per_principal: number("per_principal", self.per_principal, 2..=65_536, usual.per_principal)?,
            per_agent: number("per_agent", self.per_agent, 2..=64, usual.per_agent)?,
            load_balancers: self.load_balancers.iter().enumerate().map(balancer).collect::<Result<_, _>>()?,
            first_byte: span("first_byte", self.first_byte, 1..=60, usual.first_byte)?,
            handshake: span("handshake", self.handshake, 1..=60, usual.handshake)?,
            preface: span("preface", self.preface, 1..=60, usual.preface)?,
            receive: span("receive", self.receive, 1..=300, usual.receive)?,
            // A request may wait for its grant for a minute.
            answer: span("answer", self.answer, 90..=3_600, usual.answer)?,
            anonymous_age: span("anonymous_age", self.anonymous_age, 5..=86_400, usual.anonymous_age)?,
            anonymous_bytes: number(
                "anonymous_bytes",
                self.anonymous_bytes,
                65_536..=16_777_216,
                usual.anonymous_bytes,
            )?,
            anonymous_streams: streams("anonymous_streams", self.anonymous_streams, usual.anonymous_streams)?,
            agent_streams: streams("agent_streams", self.agent_streams, usual.agent_streams)?,
            streams: streams("streams", self.streams, usual.streams)?,
            denials: count("denials", self.denials, 60..=60_000, usual.denials)?,
            denials_per_caller: count(
                "denials_per_caller",
                self.denials_per_caller,
                1..=60_000,
                usual.denials_per_caller,
            )?,
            store_reserve: reserve(self.store_disk_reserve, self.store_memory_reserve, usual.store_reserve)?,
            anonymous_message: number(
                "anonymous_message",
                self.anonymous_message,
                4_096..=65_536,
                usual.anonymous_message,
            )?,
            agent_message: number(
                "agent_message",
                self.agent_message,
                16_384..=1_048_576,
                usual.agent_message,
            )?,
            message: number("message", self.message, 65_536..=4_194_304, usual.message)?,
        };
        let others = limits.handshakes + limits.anonymous + limits.people;
        if others > limits.connections / 2 {
            let problem = format!("{} leaves agents less than half", limits.connections);
            let remedy = format!("use {} or more, or lower handshakes, anonymous or people", 2 * others);
            return Err(Invalid::new("limits.connections", problem, remedy));
        }
        Ok(limits)
    }
}

fn number(
    key: &str,
    value: Option<usize>,
    range: RangeInclusive<usize>,
    usual: usize,
) -> Result<usize, Invalid> {
    super::number::number(("limits", key), value, range, usual)
}

fn reserve(disk: Option<usize>, percent: Option<usize>, usual: Reserve) -> Result<Reserve, Invalid> {
    let key = "store_disk_reserve";
    let disk = disk.map(|disk| number(key, Some(disk), 0..=1 << 40, disk)).transpose()?;
    let percent =
        percent.map(|percent| number("store_memory_reserve", Some(percent), 0..=50, percent)).transpose()?;
    let bytes = |number: Option<usize>, usual| number.map_or(usual, |number| number as u64);
    Ok(Reserve { disk: bytes(disk, usual.disk), memory_percent: bytes(percent, usual.memory_percent) })
}

fn streams(key: &str, value: Option<usize>, usual: u32) -> Result<u32, Invalid> {
    count(key, value, 2..=1_024, usual)
}

fn count(key: &str, value: Option<usize>, range: RangeInclusive<usize>, usual: u32) -> Result<u32, Invalid> {
    let value = number(key, value, range, usual as usize)?;
    Ok(u32::try_from(value).unwrap_or(usual))
}

/// Parses a span in this range of seconds.
fn span(
    key: &str,
    text: Option<String>,
    seconds: RangeInclusive<u64>,
    usual: Duration,
) -> Result<Duration, Invalid> {
    let Some(text) = text else { return Ok(usual) };
    let span = text.parse::<SignedDuration>().ok().and_then(|span| Duration::try_from(span).ok());
    let range = Duration::from_secs(*seconds.start())..=Duration::from_secs(*seconds.end());
    span.filter(|span| range.contains(span)).ok_or_else(|| {
        let problem = format!("{text:?} is not a span of {} s to {} s", seconds.start(), seconds.end());
        Invalid::new(format!("limits.{key}"), problem, "write it like 10s")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Limits, String> {
        let file: LimitsSection = toml::from_str(text).map_err(|error| error.to_string())?;
        file.checked().map_err(|error| error.to_string())
    }

    #[test]
    fn an_empty_section_is_the_defaults_and_these_are_in_range() {
        assert_eq!(parse(""), Ok(Limits::default()));
        let usual = Limits::default();
        let text = format!(
            "connections = {}\nhandshakes = {}\nanonymous = {}\npeople = {}\nanswer = \"{}s\"\nmessage = {}\n",
            usual.connections,
            usual.handshakes,
            usual.anonymous,
            usual.people,
            usual.answer.as_secs(),
            usual.message,
        );
        assert_eq!(parse(&text), Ok(usual));
    }

    #[test]
    fn a_good_section_becomes_limits() {
        let limits = parse(
            "anonymous = 16\nanonymous_age = \"2m\"\nload_balancers = [\"192.0.2.1\", \"2001:db8::/64\"]\n",
        );
        let expected = Limits {
            anonymous: 16,
            anonymous_age: Duration::from_secs(120),
            load_balancers: vec!["192.0.2.1".parse().unwrap(), "2001:db8::/64".parse().unwrap()],
            ..Limits::default()
        };
        assert_eq!(limits, Ok(expected));
    }

    #[test]
    fn each_rate_and_reserve_is_its_own_key() {
        let text = "denials = 901\ndenials_per_caller = 91\nstore_disk_reserve = 134217728\nstore_memory_reserve = 7\n";
        let expected = Limits {
            denials: 901,
            denials_per_caller: 91,
            store_reserve: Reserve { disk: 134_217_728, memory_percent: 7 },
            ..Limits::default()
        };
        assert_eq!(parse(text), Ok(expected));
    }

    #[test]
    fn a_bad_section_names_the_key_and_the_remedy() {
        for (text, key, remedy) in [
            ("anonymus = 1", "anonymus", "anonymous"),
            ("anonymous = 0", "limits.anonymous", "4 to 4096"),
            ("connections = 5000", "limits.connections", "6656 or more"),
            ("per_agent = 1", "limits.per_agent", "2 to 64"),
            ("first_byte = \"0s\"", "limits.first_byte", "10s"),
            ("receive = \"1h\"", "limits.receive", "1 s to 300 s"),
            ("answer = \"10s\"", "limits.answer", "90 s"),
            ("streams = 1", "limits.streams", "2 to 1024"),
            ("anonymous_bytes = 1000", "limits.anonymous_bytes", "65536"),
            ("message = 1", "limits.message", "65536"),
            ("store_memory_reserve = 51", "limits.store_memory_reserve", "0 to 50"),
            ("denials_per_caller = 0", "limits.denials_per_caller", "1 to 60000"),
            ("load_balancers = [\"192.0.2.1\", \"lb\"]", "limits.load_balancers[1]", "203.0.113.7"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(key) && error.contains(remedy), "{key}: {error}");
        }
    }
}
