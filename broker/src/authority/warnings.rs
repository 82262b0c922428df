//! The warnings about the authority's life, in words. Pure: time is an argument.

use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use postern_pki::life::{Life, Nearness};

use super::root_key::RootKey;

/// The remedy for an intermediate that has ended or ends soon.
const RENEW: &str = "run `postern-broker authority renew --root-key FILE`";
/// The remedy for a root that is not valid.
const NEW_AUTHORITY: &str =
    "set up a new authority and enrol every agent under it (docs/operations.md, \"The end of the root\")";
/// The remedy for a root that ends soon.
const NEXT_ROOT: &str = "replace the root in time with `postern-broker authority roll begin` (docs/operations.md, \"A new root\")";

/// The lead of the broker's clock over the wall clock up to which there is no warning.
pub(crate) const CLOCK_TOLERANCE: Duration = Duration::from_secs(5);

/// The facts on which the warnings depend.
pub(super) struct Facts {
    pub(super) root: Life,
    pub(super) intermediate: Life,
    /// The life of the intermediate for people, if there is one.
    pub(super) people: Option<Life>,
    /// The reason why the intermediate for people cannot be read.
    pub(super) people_failure: Option<String>,
    /// Set if the intermediate for agents, which signed the serving certificate, is revoked.
    pub(super) is_revoked: bool,
    /// The reason why the last attempt to renew failed, or why the files cannot be used.
    pub(super) failure: Option<String>,
    /// The root's key.
    pub(super) root_key: RootKey,
    /// `intermediate.pem`, if it is not a copy of the intermediate.
    pub(super) stale_copy: Option<PathBuf>,
    /// The client certificate for the store, with its life.
    pub(super) store: Option<(PathBuf, Life)>,
}

/// Returns the warnings for an operator, one line each; none if all is well. `now` is the time of the wall clock.
pub(super) fn warnings(facts: &Facts, now: Timestamp) -> Vec<String> {
    let mut found = Vec::new();
    let root = early_in_words("root", &facts.root, now).or_else(|| end_in_words("root", &facts.root, now));
    // Only a root that is valid vouches for the next one.
    let remedy = if facts.root.holds(now) { NEXT_ROOT } else { NEW_AUTHORITY };
    found.extend(root.map(|root| format!("{root}; {remedy}")));
    // An intermediate cannot outlast its root: if both end together, only a new root helps.
    let bounded = facts.intermediate.not_after >= facts.root.not_after;
    let intermediate = early_in_words("intermediate", &facts.intermediate, now)
        .or_else(|| end_in_words("intermediate", &facts.intermediate, now).filter(|_| !bounded));
    match (intermediate, &facts.root_key) {
        (Some(intermediate), RootKey::AtHand) => found.push(format!(
            "{intermediate}; the root key is at hand and the broker renews the intermediate by itself, so look for the \
             error in its log"
        )),
        (Some(intermediate), RootKey::Offline) => found.push(format!("{intermediate}; {RENEW}")),
        (Some(intermediate), RootKey::Unusable { reason }) => found.push(format!(
            "{intermediate}; the root key cannot be used ({reason}); repair it, or {RENEW}"
        )),
        // Long before the renewal: an exposed key has leaked already, and stops the next start of the broker.
        (None, RootKey::Unusable { reason }) => found.push(format!(
            "the root key cannot be used, so the broker cannot renew the authority's intermediate certificate: \
             {reason}; repair the file, or take it offline"
        )),
        (None, RootKey::AtHand | RootKey::Offline) => {}
    }
    let people = facts.people.filter(|people| people.not_after < facts.root.not_after);
    found.extend(people.and_then(|people| people_in_words(&people, now)));
    if let Some(reason) = &facts.people_failure {
        found.push(format!(
            "the authority's intermediate certificate for people cannot be read ({reason}); repair people.key and people.pem, or move both \
             away and run `postern-broker authority renew --root-key FILE --replace-people`"
        ));
    }
    if facts.is_revoked {
        found.push(format!(
            "the authority's intermediate certificate is revoked, and still signs; {RENEW} on this machine"
        ));
    }
    if let Some(failure) = &facts.failure {
        found.push(format!(
            "the authority's intermediate certificate could not be renewed or read: {failure}"
        ));
    }
    if let Some(copy) = &facts.stale_copy {
        found.push(format!(
            "{} is not a copy of the certificate in intermediate.key, which counts; a running broker writes the copy \
             again, if it may",
            copy.display()
        ));
    }
    found.extend(facts.store.as_ref().and_then(|(file, life)| store_in_words(file, life, now)));
    found
}

/// Warns of the end of the intermediate for people. It does not concern agents.
fn people_in_words(people: &Life, now: Timestamp) -> Option<String> {
    let (end, remedy) =
        (people.not_after, format!("{RENEW} with --people-key FILE, and issue new certificates"));
    match people.nearness(now) {
        Nearness::Far => None,
        Nearness::Within90Days | Nearness::Within30Days | Nearness::Within7Days => {
            let left = humane(end.duration_since(now));
            Some(format!(
                "the authority's intermediate certificate for people ends in {left}, at {end:.0}; {remedy}"
            ))
        }
        Nearness::Ended => Some(format!(
            "the authority's intermediate certificate for people ended at {end:.0}, so no person can connect; {remedy}"
        )),
    }
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

/// Describes a certificate whose life has not begun, with the remedy where the clock is at fault.
fn early_in_words(which: &str, life: &Life, now: Timestamp) -> Option<String> {
    let begin = life.not_before;
    life.is_early(now).then(|| {
        format!(
            "the authority's {which} certificate is not valid before {begin:.0}, so no agent or person can connect; \
             either this machine's clock is behind now: set it; or it was ahead when the certificate was made"
        )
    })
}

/// Warns of a broker's clock that is ahead of the wall clock. `wall_ahead` is the lead of the wall clock.
pub(super) fn clock_in_words(wall_ahead: SignedDuration) -> Option<String> {
    let lead = wall_ahead.checked_neg().unwrap_or(SignedDuration::MAX);
    (lead > SignedDuration::try_from(CLOCK_TOLERANCE).unwrap_or_default()).then(|| {
        format!(
            "the broker's clock is {:#} ahead of the wall clock, which was stepped back, or was ahead when the newest \
             audit record was written; grants last as long as they were asked for, and their ends are written later by \
             as much; set the machine's clock if it is wrong (docs/operations.md, \"A clock that was ahead\")",
            SignedDuration::from_secs(lead.as_secs())
        )
    })
}

/// Describes the end of a certificate, if it is near enough for a warning.
fn end_in_words(which: &str, life: &Life, now: Timestamp) -> Option<String> {
    let end = life.not_after;
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
        Facts {
            root: life(0, 3650),
            intermediate: life(0, 365),
            failure: None,
            people: None,
            people_failure: None,
            is_revoked: false,
            root_key: RootKey::Offline,
            stale_copy: None,
            store: None,
        }
    }

    fn exposed() -> RootKey {
        RootKey::Unusable { reason: "root.key is open to others".into() }
    }

    #[test]
    fn an_intermediate_is_warned_of_from_90_days_before_its_end_on_with_the_remedy() {
        assert!(warnings(&facts(), day(274)).is_empty());
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
            let found = warnings(&facts(), day(now));
            assert!(found.len() == 1 && found[0].contains(words), "day {now}: {found:?}");
        }
    }

    #[test]
    fn a_root_is_warned_of_the_same_way_and_alone_where_it_bounds_the_intermediate() {
        let ending = Facts { intermediate: life(3400, 3650), ..facts() };
        assert!(warnings(&ending, day(3559)).is_empty());
        let (in_time, late) = ("authority roll begin", "enrol every agent");
        for (now, remedy) in [(3560, in_time), (3620, in_time), (3643, in_time), (3650, late)] {
            let found = warnings(&ending, day(now));
            assert!(found.len() == 1 && found[0].contains("root certificate end"), "day {now}: {found:?}");
            assert!(found[0].contains(remedy), "{found:?}");
        }
    }

    #[test]
    fn the_end_of_the_intermediate_for_people_and_a_revoked_one_for_agents_are_warned_of() {
        for (now, words) in [(275, "ends in 90 days"), (365, "no person can connect")] {
            let ending = Facts { intermediate: life(200, 565), people: Some(life(0, 365)), ..facts() };
            let found = warnings(&ending, day(now));
            assert!(found.len() == 1 && found[0].contains(words), "day {now}: {found:?}");
            assert!(found[0].contains("--people-key"), "{found:?}");
        }
        let found = warnings(&Facts { is_revoked: true, ..facts() }, day(1));
        assert!(found.len() == 1 && found[0].contains("is revoked, and still signs"), "{found:?}");
    }

    #[test]
    fn an_intermediate_for_people_that_cannot_be_read_is_named_with_the_remedy() {
        let damaged = Facts { people_failure: Some("people.key is malformed".into()), ..facts() };
        let found = warnings(&damaged, day(1));
        assert!(found.len() == 1 && found[0].contains("people.key is malformed"), "{found:?}");
        assert!(found[0].contains("--replace-people"), "{found:?}");
    }

    #[test]
    fn a_renewal_that_fails_is_warned_of_at_once() {
        let failing = Facts { failure: Some("no space left".into()), ..facts() };
        let found = warnings(&failing, day(183));
        assert!(found.len() == 1 && found[0].ends_with("no space left"), "{found:?}");
    }

    #[test]
    fn a_root_key_that_cannot_be_used_is_named_with_the_reason() {
        let exposed = Facts { root_key: exposed(), ..facts() };
        // From the first day on, and in one line with an end that is near.
        for now in [0, 1, 200, 300, 400] {
            let found = warnings(&exposed, day(now));
            assert!(found.len() == 1 && found[0].contains("root.key is open to others"), "{now}: {found:?}");
        }
    }

    #[test]
    fn a_stale_copy_is_named() {
        let stale = Facts { stale_copy: Some("/ca/intermediate.pem".into()), ..facts() };
        let found = warnings(&stale, day(1));
        assert!(found.len() == 1 && found[0].starts_with("/ca/intermediate.pem is not a copy"), "{found:?}");
    }

    #[test]
    fn a_brokers_clock_is_warned_of_from_5_s_ahead_of_the_wall_clock_on() {
        let seconds = SignedDuration::from_secs;
        for wall_ahead in [seconds(0), seconds(-5), seconds(7200), SignedDuration::MAX] {
            assert_eq!(clock_in_words(wall_ahead), None, "{wall_ahead:?}");
        }
        for (wall_ahead, words) in [(seconds(-6), "6s ahead"), (seconds(-7203), "2h 3s ahead")] {
            let found = clock_in_words(wall_ahead).unwrap();
            assert!(found.contains(words), "{found}");
        }
        assert!(clock_in_words(SignedDuration::MIN).is_some());
    }

    #[test]
    fn a_certificate_from_the_future_is_named_with_both_causes_and_their_remedies() {
        for until in [375, 3650] {
            let early = Facts { intermediate: life(10, until), ..facts() };
            let found = warnings(&early, day(9));
            assert_eq!(found.len(), 1, "{found:?}");
            for words in
                ["clock is behind now: set it", "it was ahead when", "; run `postern-broker authority renew"]
            {
                assert!(found[0].contains(words), "{found:?}");
            }
        }
        let early = Facts { root: life(10, 3660), ..facts() };
        let found = warnings(&early, day(9));
        assert!(found.len() == 1 && found[0].contains("clock is behind now: set it"), "{found:?}");
        assert!(found[0].contains("set up a new authority"), "{found:?}");
    }

    #[test]
    fn a_client_certificate_for_the_store_that_was_not_renewed_is_named_with_its_file() {
        let with_store = Facts { store: Some((PathBuf::from("/etc/redis.pem"), life(0, 90))), ..facts() };
        assert!(warnings(&with_store, day(59)).is_empty());
        for (now, words) in [(61, "ends in 29 days"), (90, "ended at"), (200, "/etc/redis.pem")] {
            let found = warnings(&with_store, day(now));
            assert!(found.len() == 1 && found[0].contains(words), "day {now}: {found:?}");
        }
    }
}
