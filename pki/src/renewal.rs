//! The time to renew a certificate.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

/// The time after its end for which an agent's certificate is still good for one thing: its renewal. Agents whose machines
/// were off for weeks, or whose broker was down for longer than a certificate's life, need not be enrolled again.
pub const GRACE: Duration = Duration::from_secs(30 * 24 * 3600);

/// Returns the time to renew: at half of the life, up to a tenth of it earlier or later. `spread` (0.0 to 1.0, chosen at
/// random by the caller) keeps agents that enrolled at the same time from renewing at the same time.
pub fn renew_at(not_before: Timestamp, not_after: Timestamp, spread: f64) -> Timestamp {
    let life = not_after.duration_since(not_before).as_secs_f64();
    let share = 0.4 + 0.2 * spread.clamp(0.0, 1.0);
    let age = SignedDuration::try_from_secs_f64(life * share).unwrap_or_default();
    not_before.checked_add(age).unwrap_or(not_after)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_renewed_between_40_and_60_percent_of_its_life() {
        let at = |second| Timestamp::from_second(second).unwrap();
        for (spread, expected) in [(0.0, 1400), (0.5, 1500), (1.0, 1600), (9.0, 1600), (f64::NAN, 1000)] {
            let renewal = renew_at(at(1000), at(2000), spread);
            if spread.is_nan() {
                assert!(renewal <= at(1600), "a spread that is no number does not put the renewal off");
            } else {
                assert_eq!(renewal, at(expected));
            }
        }
    }
}
