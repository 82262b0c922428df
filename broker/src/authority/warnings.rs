//! The warnings about the authority's life, in words. Pure: time is an argument.

use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};
use postern_pki::life::{Life, Nearness};

use super::root_key::RootKey;

/// The remedy for an intermediate that has ended or ends soon.
const RENEW: &str = "run `postern-broker authority renew --root-key FILE`";
/// The remedy for a root that has ended or ends soon.
const NEW_ROOT: &str = "set up a new authority in time and enrol every agent under it (docs/operations.md, \"The end of the root\")";

/// The facts on which the warnings depend.
pub(super) struct Facts {
    pub(super) root: Life,
    pub(super) intermediate: Life,
    /// The reason why the last attempt to renew failed, or why the files cannot be used.
    pub(super) failure: Option<String>,
    /// The client certificate for the store, with its life.
    pub(super) store: Option<(PathBuf, Life)>,
}

/// Returns the warnings for an operator, one line each; none if all is well. `root_key` looks for the root's key.
pub(super) fn warnings(facts: &Facts, root_key: impl FnOnce() -> RootKey, now: Timestamp) -> Vec<String> {
    let mut found = Vec::new();
    if let Some(end) = end_in_words("root", &facts.root, now) {
        found.push(format!("{end}; {NEW_ROOT}"));
    }
    // An intermediate cannot outlast its root: if both end together, only a new root helps.
    let bounded = facts.intermediate.not_after >= facts.root.not_after;
    if let Some(end) = end_in_words("intermediate", &facts.intermediate, now).filter(|_| !bounded) {
        let remedy = match root_key() {
            RootKey::AtHand => "the root key is at hand and the broker renews the intermediate by itself, \
                                so look for the error in its log"
                .to_owned(),
            RootKey::Offline => RENEW.to_owned(),
            RootKey::Unusable { reason } => {
                format!("the root key cannot be used ({reason}); repair it, or {RENEW}")
            }
        };
        found.push(format!("{end}; {remedy}"));
    }
    if let Some(failure) = &facts.failure {
        found.push(format!(
            "the authority's intermediate certificate could not be renewed or read: {failure}"
        ));
    }
    found.extend(facts.store.as_ref().and_then(|(file, life)| store_in_words(file, life, now)));
    found
}

/// Warns of the client certificate for the store, if an operator should have renewed it.
fn store_in_words(file: &Path, life: &Life, now: Timestamp) -> Option<String> {
    let (end, file) = (life.not_after, file.display());
    let remedy = format!("put a new one into {file}; the broker reads it with each new connection to Redis");
    let left = end.duration_since(now);
    if !left.is_positive() {
        return Some(format!("the client certificate for the store ended at {end:.0}; {remedy}"));
    }
    let ends =
        || format!("the client certificate for the store ends in {}, at {end:.0}; {remedy}", humane(left));
    life.is_overdue(now).then(ends)
}

/// Describes the end of a certificate, if it is near enough for a warning.
fn end_in_words(which: &str, life: &Life, now: Timestamp) -> Option<String> {
    let end = life.not_after;
    if now < life.not_before {
        let begin = life.not_before;
        return Some(format!(
            "the authority's {which} certificate is not valid before {begin:.0}; set the machine's clock"
        ));
    }
    match life.nearness(now) {
        Nearness::Far => None,
        Nearness::Within90Days | Nearness::Within30Days | Nearness::Within7Days => {
            let left = humane(end.duration_since(now));
            Some(format!("the authority's {which} certificate ends in {left}, at {end:.0}"))
        }
        Nearness::Ended => Some(format!(
            "the authority's {which} certificate ended at {end:.0}, so the broker signs nothing and no agent or person \
             can connect; windows go on closing"
        )),
    }
}

/// Writes a span in whole days, or in hours if it is shorter than two days.
pub(crate) fn humane(span: SignedDuration) -> String {
    match span.as_hours() {
        hours @ 48.. => format!("{} days", hours / 24),
        1 => "1 hour".to_owned(),
        hours => format!("{hours} hours"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn day(number: i64) -> Timestamp {
        Timestamp::from_second(number * 86_400).unwrap()
    }

    fn life(from: i64, until: i64) -> Life {
        Life { not_before: day(from), not_after: day(until) }
    }

    fn facts() -> Facts {
        Facts { root: life(0, 3650), intermediate: life(0, 365), failure: None, store: None }
    }

    fn offline(facts: &Facts, now: Timestamp) -> Vec<String> {
        warnings(facts, || RootKey::Offline, now)
    }

    #[test]
    fn an_intermediate_is_warned_of_from_90_days_before_its_end_on_with_the_remedy() {
        assert!(offline(&facts(), day(274)).is_empty());
        for (now, words) in [
            (
                275,
                "certificate ends in 90 days, at 1971-01-01T00:00:00Z; run `postern-broker authority renew",
            ),
            (335, "ends in 30 days"),
            (358, "ends in 7 days"),
            (364, "ends in 24 hours"),
            (365, "ended at 1971-01-01T00:00:00Z, so the broker signs nothing"),
            (900, "; run `postern-broker authority renew --root-key FILE`"),
        ] {
            let found = offline(&facts(), day(now));
            assert!(found.len() == 1 && found[0].contains(words), "day {now}: {found:?}");
        }
    }

    #[test]
    fn a_root_is_warned_of_the_same_way_and_alone_where_it_bounds_the_intermediate() {
        let ending = Facts { intermediate: life(3400, 3650), ..facts() };
        assert!(offline(&ending, day(3559)).is_empty());
        for now in [3560, 3620, 3643, 3650] {
            let found = offline(&ending, day(now));
            assert!(found.len() == 1 && found[0].contains("root certificate end"), "day {now}: {found:?}");
            assert!(found[0].contains("enrol every agent"), "{found:?}");
        }
    }

    #[test]
    fn a_renewal_that_fails_is_warned_of_at_once() {
        let failing = Facts { failure: Some("no space left".into()), ..facts() };
        let found = offline(&failing, day(183));
        assert!(found.len() == 1 && found[0].ends_with("no space left"), "{found:?}");
    }

    #[test]
    fn a_root_key_that_cannot_be_used_is_named_with_the_reason() {
        let exposed = || RootKey::Unusable { reason: "root.key is open to others".into() };
        let found = warnings(&facts(), exposed, day(300));
        assert!(found[0].contains("root.key is open to others"), "{found:?}");
    }

    #[test]
    fn a_clock_that_is_behind_is_the_reason_where_it_is_one() {
        let early = Facts { intermediate: life(10, 375), ..facts() };
        let found = offline(&early, day(9));
        assert!(found.len() == 1 && found[0].contains("set the machine's clock"), "{found:?}");
    }

    #[test]
    fn a_client_certificate_for_the_store_that_was_not_renewed_is_named_with_its_file() {
        let with_store = Facts { store: Some((PathBuf::from("/etc/redis.pem"), life(0, 90))), ..facts() };
        assert!(offline(&with_store, day(59)).is_empty());
        for (now, words) in [(61, "ends in 29 days"), (90, "ended at"), (200, "/etc/redis.pem")] {
            let found = offline(&with_store, day(now));
            assert!(found.len() == 1 && found[0].contains(words), "day {now}: {found:?}");
        }
    }
}
