//! The time to renew a certificate.

use std::time::Duration;

use jiff::Timestamp;

use crate::life::BACKDATE;

/// The time after its end for which an agent's certificate is still good for one thing: its renewal. Agents whose machines
/// were off for weeks, or whose broker was down for longer than a certificate's life, need not be enrolled again.
pub const GRACE: Duration = Duration::from_secs(30 * 24 * 3600);

/// Returns the time for which a certificate was granted: from its signing to its end, without the time by which it is backdated.
pub fn granted(not_before: Timestamp, not_after: Timestamp) -> Duration {
    let whole = Duration::try_from(not_after.duration_since(not_before)).unwrap_or_default();
    whole.saturating_sub(BACKDATE)
}

/// Returns the age at which to renew a certificate that was granted for a time: half of it, up to a tenth of it earlier or later.
/// `spread` (0.0 to 1.0, chosen at random by the caller) keeps agents that enrolled at the same time from renewing at the same time.
pub fn renew_at(granted: Duration, spread: f64) -> Duration {
    // A spread that is no number does not put the renewal off.
    let share = 0.4 + 0.2 * if spread.is_nan() { 0.0 } else { spread.clamp(0.0, 1.0) };
    granted.mul_f64(share)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_renewed_between_40_and_60_percent_of_its_life() {
        for (spread, expected) in [(0.0, 400), (0.5, 500), (1.0, 600), (9.0, 600), (f64::NAN, 400)] {
            let renewal = renew_at(Duration::from_secs(1000), spread);
            assert_eq!(renewal.as_secs_f64().round(), f64::from(expected), "{spread}");
        }
    }

    #[test]
    fn a_certificate_is_granted_for_the_time_after_its_signing() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let backdate = i64::try_from(BACKDATE.as_secs()).unwrap();
        assert_eq!(granted(at(0), at(backdate + 3600)), Duration::from_secs(3600));
        assert_eq!(granted(at(0), at(backdate)), Duration::ZERO);
        assert_eq!(granted(at(9), at(0)), Duration::ZERO);
    }
}
