//! Limits in the configuration: every key is a row of the table of limits.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::SignedDuration;
use postern_core::text::{MAX_REPEATED, clipped};
use postern_core::{Invalid, SourcePrefix};
use serde::Deserialize;
use toml::Value;

use crate::limits::{Limits, ROWS, Row, SettingValue};

/// The one key that is no row: a list.
const LOAD_BALANCERS: &str = "load_balancers";

/// The section `[limits]`.
#[derive(Debug, Default, Deserialize)]
#[serde(transparent)]
pub(super) struct LimitsSection(BTreeMap<String, Value>);

impl LimitsSection {
    /// Returns the limits, each key that is left out at its default.
    ///
    /// # Errors
    /// The first key that is wrong.
    pub(super) fn checked(self) -> Result<Limits, Invalid> {
        let mut limits = Limits::default();
        for (key, value) in &self.0 {
            if key == LOAD_BALANCERS {
                limits.load_balancers = load_balancers(value)?;
                continue;
            }
            let row = Row::of(key).ok_or_else(|| unknown(key))?;
            (row.set)(&mut limits, checked(row, value)?);
        }
        let others = limits.others();
        if others > limits.connections / 2 {
            let problem = format!("{} leaves agents less than half", limits.connections);
            let remedy = format!(
                "use {} or more, or lower handshakes, anonymous, people or administrators",
                2 * others
            );
            return Err(Invalid::new("limits.connections", problem, remedy));
        }
        Ok(limits)
    }
}

fn unknown(key: &str) -> Invalid {
    let known: Vec<&str> = ROWS.iter().map(|row| row.key).chain([LOAD_BALANCERS]).collect();
    let key = clipped(&key, MAX_REPEATED);
    Invalid::new(format!("limits.{key}"), "is not known", format!("use one of {}", known.join(", ")))
}

/// Parses a value within the range of its row.
fn checked(row: &Row, value: &Value) -> Result<SettingValue, Invalid> {
    let (least, most) = row.range;
    let range = format!("{} to {}", row.in_words(least), row.in_words(most));
    let wrong = |remedy: String| {
        let problem = format!("{} is out of range", clipped(value, MAX_REPEATED));
        Invalid::new(format!("limits.{}", row.key), problem, remedy)
    };
    if row.is_span {
        let span = value.as_str().and_then(|text| text.parse::<SignedDuration>().ok());
        let span = span.and_then(|span| Duration::try_from(span).ok());
        let range_of_spans = Duration::from_secs(least)..=Duration::from_secs(most);
        let span = span.filter(|span| range_of_spans.contains(span));
        return span
            .map(SettingValue::Span)
            .ok_or_else(|| wrong(format!("use {range}, written like \"10s\"")));
    }
    let number = value.as_integer().and_then(|number| u64::try_from(number).ok());
    let number = number.filter(|number| (least..=most).contains(number));
    number.map(SettingValue::Number).ok_or_else(|| wrong(format!("use {range}")))
}

fn load_balancers(value: &Value) -> Result<Vec<SourcePrefix>, Invalid> {
    let field = |i: usize| format!("limits.{LOAD_BALANCERS}[{i}]");
    let list = value.as_array().ok_or_else(|| {
        let remedy = "write a list like [\"192.0.2.1\", \"2001:db8::/64\"]";
        Invalid::new(format!("limits.{LOAD_BALANCERS}"), "is not a list", remedy)
    })?;
    let prefix = |(i, value): (usize, &Value)| {
        let text = value.as_str().ok_or_else(|| {
            Invalid::new(field(i), "is not a text", "write an address or a range in quotation marks")
        })?;
        let prefix = text.parse::<SourcePrefix>().map_err(|invalid| invalid.named(&field(i)))?;
        if prefix.net().prefix_len() < if prefix.is_ipv4() { 8 } else { 16 } {
            let problem = format!("{prefix} holds strangers: no limit for an address would count for them");
            let remedy = "name the addresses of your load balancers, in ranges of /8 (IPv4) or /16 (IPv6) at the widest";
            return Err(Invalid::new(field(i), problem, remedy));
        }
        Ok(prefix)
    };
    list.iter().enumerate().map(prefix).collect()
}

#[cfg(test)]
mod tests {
    use postern_store::Reserve;

    use super::*;

    fn parse(text: &str) -> Result<Limits, String> {
        let file: LimitsSection = toml::from_str(text).map_err(|error| error.to_string())?;
        file.checked().map_err(|error| error.to_string())
    }

    /// The line of a row with this value.
    fn line(row: &Row, value: u64) -> String {
        if row.is_span { format!("{} = \"{value}s\"", row.key) } else { format!("{} = {value}", row.key) }
    }

    #[test]
    fn an_empty_section_is_the_defaults_and_these_are_in_range() {
        assert_eq!(parse(""), Ok(Limits::default()));
        let all: Vec<String> = ROWS.iter().map(|row| line(row, row.default)).collect();
        assert_eq!(parse(&all.join("\n")), Ok(Limits::default()));
    }

    #[test]
    fn each_row_is_a_key_of_its_own_with_its_range() {
        for row in ROWS {
            let (least, most) = row.range;
            let other = if row.default == least { most } else { least };
            // The shares of connections are judged together.
            let room = if row.key == "connections" { "" } else { "\nconnections = 1000000" };
            let small = "handshakes = 8\nanonymous = 4\npeople = 4\nadministrators = 2";
            let rest: Vec<&str> =
                small.lines().filter(|line| !line.starts_with(&format!("{} ", row.key))).collect();
            let with = |value| parse(&format!("{}{room}\n{}", line(row, value), rest.join("\n")));
            let (usual, changed) = (with(row.default), with(other));
            assert!(usual.is_ok() && changed.is_ok(), "{}: {usual:?} {changed:?}", row.key);
            assert_ne!(usual, changed, "{} is not set", row.key);
            for beyond in [least.checked_sub(1), most.checked_add(1)].into_iter().flatten() {
                let error = with(beyond).unwrap_err();
                let range = format!("{} to {}", row.in_words(least), row.in_words(most));
                assert!(error.contains(&format!("limits.{}", row.key)) && error.contains(&range), "{error}");
            }
        }
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
    fn each_reserve_of_the_store_is_its_own_key() {
        let limits = parse("store_disk_reserve = 134217728\nstore_memory_reserve = 7\n").unwrap();
        assert_eq!(limits.store_reserve(), Reserve { disk: 134_217_728, memory_percent: 7 });
    }

    #[test]
    fn a_bad_section_names_the_key_and_the_remedy() {
        let long = format!("{} = 1", "x".repeat(10_000));
        for (text, key, remedy) in [
            ("anonymus = 1", "anonymus", "anonymous"),
            (long.as_str(), "limits.xxx", "anonymous"),
            ("anonymous = 0", "limits.anonymous", "4 to 4096"),
            ("anonymous = -1", "limits.anonymous", "4 to 4096"),
            ("anonymous = \"16\"", "limits.anonymous", "4 to 4096"),
            ("connections = 5000", "limits.connections", "6784 or more"),
            ("per_agent = 1", "limits.per_agent", "2 to 64"),
            ("first_byte = \"0s\"", "limits.first_byte", "10s"),
            ("first_byte = 5", "limits.first_byte", "10s"),
            ("receive = \"1h\"", "limits.receive", "1s to 300s"),
            ("answer = \"10s\"", "limits.answer", "90s"),
            ("streams = 1", "limits.streams", "2 to 1024"),
            ("anonymous_bytes = 1000", "limits.anonymous_bytes", "65536"),
            ("message = 1", "limits.message", "65536"),
            ("expensive_reads = 1", "limits.expensive_reads", "2 to 64"),
            ("store_memory_reserve = 51", "limits.store_memory_reserve", "0 to 50"),
            ("denials_per_caller = 0", "limits.denials_per_caller", "1 to 60000"),
            ("load_balancers = \"192.0.2.1\"", "limits.load_balancers", "a list like"),
            ("load_balancers = [1]", "limits.load_balancers[0]", "quotation marks"),
            ("load_balancers = [\"192.0.2.1\", \"lb\"]", "limits.load_balancers[1]", "203.0.113.7"),
            ("load_balancers = [\"0.0.0.0/0\"]", "limits.load_balancers[0]", "/8"),
            ("load_balancers = [\"::/1\"]", "limits.load_balancers[0]", "/16"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(key) && error.contains(remedy), "{key}: {error}");
            assert!(error.len() < 2_000, "{error}");
        }
    }
}
