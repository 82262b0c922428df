//! The life of the authority's own certificates: the time to renew the intermediate, and the nearness of an end. Time is
//! an argument.

use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;

use crate::{PkiError, credentials, identity};

const DAY: Duration = Duration::from_secs(24 * 3600);
/// The time by which certificates are backdated, for clocks that are behind.
pub const BACKDATE: Duration = Duration::from_secs(600);
/// The life of a root certificate.
pub(crate) const ROOT_LIFETIME: Duration = DAY.saturating_mul(3650);
/// The life of an intermediate certificate that the root's own end does not cut short.
pub(crate) const INTERMEDIATE_LIFETIME: Duration = DAY.saturating_mul(365);

/// The time for which a certificate is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Life {
    /// The first moment at which the certificate is valid.
    pub not_before: Timestamp,
    /// The first moment at which the certificate is no longer valid.
    pub not_after: Timestamp,
}

/// The nearness of a certificate's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Nearness {
    /// More than 90 days away.
    Far,
    /// At most 90 days away.
    Within90Days,
    /// At most 30 days away.
    Within30Days,
    /// At most 7 days away.
    Within7Days,
    /// Past.
    Ended,
}

impl Life {
    /// Reads the life of the first certificate in a PEM file.
    ///
    /// # Errors
    /// The file is missing or malformed.
    pub fn of_file(path: &Path) -> Result<Self, PkiError> {
        let certificates = credentials::load_certificates(path)?;
        let first = certificates.first().map(Vec::as_slice).unwrap_or_default();
        let (not_before, not_after) = identity::validity(first)
            .map_err(|error| PkiError::malformed(path.display().to_string(), error))?;
        Ok(Self { not_before, not_after })
    }

    /// Reports whether a certificate that the broker does not renew itself should have been renewed by `now`: less than a
    /// third of its life is left, and at most 30 days.
    pub fn is_overdue(&self, now: Timestamp) -> bool {
        let left = self.not_after.duration_since(now);
        left * 3 < self.not_after.duration_since(self.not_before)
            && self.nearness(now) >= Nearness::Within30Days
    }

    /// Reports whether a certificate of this life is valid at `now`.
    pub fn holds(&self, now: Timestamp) -> bool {
        (self.not_before..self.not_after).contains(&now)
    }

    /// Reports whether the life has not begun at `now`: the clock is behind, or the clock of the signer was ahead.
    pub fn is_early(&self, now: Timestamp) -> bool {
        now < self.not_before
    }

    /// Returns the middle of the life.
    pub fn half(&self) -> Timestamp {
        let half = self.not_after.duration_since(self.not_before) / 2;
        self.not_before.checked_add(half).unwrap_or(self.not_after)
    }

    /// Returns the nearness of the end.
    pub fn nearness(&self, now: Timestamp) -> Nearness {
        let left = Duration::try_from(self.not_after.duration_since(now)).unwrap_or_default();
        if left.is_zero() {
            Nearness::Ended
        } else if left <= DAY * 7 {
            Nearness::Within7Days
        } else if left <= DAY * 30 {
            Nearness::Within30Days
        } else if left <= DAY * 90 {
            Nearness::Within90Days
        } else {
            Nearness::Far
        }
    }
}

/// Reports whether an intermediate that is signed at `now` should take the place of the present one. The root must be
/// valid, and one of two conditions must hold:
///
/// - Half of the life has passed, and the new one would last for at least a day longer. The root's own end bounds every
///   intermediate, and renewing gains nothing once the present one lasts as long as the root.
/// - The life has not begun: the clock was ahead when it was signed. Every peer refuses it until then.
pub fn is_renewal_due(intermediate: &Life, root: &Life, now: Timestamp) -> bool {
    let longer = intermediate.not_after.checked_add(DAY).unwrap_or(Timestamp::MAX);
    let is_old = now >= intermediate.half() && intermediate_end(root, now) >= longer;
    root.holds(now) && (is_old || intermediate.is_early(now))
}

/// Returns the end of an intermediate that the root signs at `now`.
pub(crate) fn intermediate_end(root: &Life, now: Timestamp) -> Timestamp {
    now.checked_add(INTERMEDIATE_LIFETIME).unwrap_or(Timestamp::MAX).min(root.not_after)
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

    #[test]
    fn an_intermediate_is_due_at_half_of_its_life_and_from_then_on() {
        let (intermediate, root) = (life(0, 366), life(0, 3650));
        for (now, due) in [(0, false), (182, false), (183, true), (300, true), (366, true), (900, true)] {
            assert_eq!(is_renewal_due(&intermediate, &root, day(now)), due, "day {now}");
        }
    }

    #[test]
    fn an_intermediate_whose_life_has_not_begun_is_due_at_once_and_its_successor_is_not() {
        let (ahead, root) = (life(240, 605), life(0, 3650));
        for now in [0, 1, 239] {
            assert!(is_renewal_due(&ahead, &root, day(now)), "day {now}");
            let successor = Life { not_before: day(now), not_after: intermediate_end(&root, day(now)) };
            assert!(!is_renewal_due(&successor, &root, day(now)), "day {now}");
        }
        assert!(!is_renewal_due(&ahead, &root, day(240)));
        assert!(is_renewal_due(&life(3400, 3650), &root, day(3390)), "also where the root ends it");
        assert!(!is_renewal_due(&ahead, &life(10, 3660), day(9)), "a root that is not valid signs nothing");
    }

    #[test]
    fn an_intermediate_that_lasts_as_long_as_its_root_is_never_due() {
        let root = life(0, 3650);
        assert!(is_renewal_due(&life(3000, 3366), &root, day(3300)));
        assert!(!is_renewal_due(&life(3300, 3650), &root, day(3500)));
        assert!(!is_renewal_due(&life(3300, 3650), &root, day(3700)), "nor once the root has ended");
        // Each renewal gains a day at least, so the last years of a root do not renew without end.
        let (mut intermediate, mut renewals) = (life(3000, 3366), 0);
        for now in 3000..3650 {
            if is_renewal_due(&intermediate, &root, day(now)) {
                intermediate = Life { not_before: day(now), not_after: intermediate_end(&root, day(now)) };
                renewals += 1;
            }
        }
        assert_eq!((intermediate.not_after, renewals), (root.not_after, 2));
    }

    #[test]
    fn nearness_changes_90_30_and_7_days_before_the_end_and_at_it() {
        let life = life(0, 365);
        for (seconds_left, nearness) in [
            (90 * 86_400 + 1, Nearness::Far),
            (90 * 86_400, Nearness::Within90Days),
            (30 * 86_400 + 1, Nearness::Within90Days),
            (30 * 86_400, Nearness::Within30Days),
            (7 * 86_400 + 1, Nearness::Within30Days),
            (7 * 86_400, Nearness::Within7Days),
            (1, Nearness::Within7Days),
            (0, Nearness::Ended),
            (-1, Nearness::Ended),
        ] {
            let now = Timestamp::from_second(365 * 86_400 - seconds_left).unwrap();
            assert_eq!(life.nearness(now), nearness, "{seconds_left} s left");
        }
    }

    #[test]
    fn a_certificate_that_the_broker_does_not_renew_is_overdue_in_the_last_third_of_its_life_or_the_last_30_days()
     {
        for (life, now, overdue) in [
            (life(0, 365), 334, false),
            (life(0, 365), 335, true),
            (life(0, 90), 59, false),
            (life(0, 90), 61, true),
            (life(0, 3), 1, false),
            (life(0, 3), 4, true),
        ] {
            assert_eq!(life.is_overdue(day(now)), overdue, "{life:?} on day {now}");
        }
    }

    #[test]
    fn a_life_holds_from_its_first_moment_up_to_its_last() {
        let life = life(1, 2);
        assert!(life.holds(day(1)) && !life.holds(day(2)));
        assert!(!life.holds(Timestamp::UNIX_EPOCH));
        assert_eq!(life.half(), Timestamp::from_second(86_400 + 43_200).unwrap());
    }
}
