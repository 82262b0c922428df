//! The cost of attacks, most of them without a certificate: the broker's memory at its highest, and how long an administrator's `postern
//! revoke` takes on a connection of its own meanwhile. One line for each attack.
//!
//! `POSTERN_BENCH_SECONDS` bounds how long an attack may take to come up; 60 by default.

use std::time::Duration;

use postern_tests::attack::{Attack, peak_memory};
use postern_tests::clock::monotonic;
use postern_tests::stranger::Stranger;
use postern_tests::{HostWorld, ask_for};

use crate::lines::{note, value};

/// The time within which all of an attack must be sent, in seconds.
const SECONDS: u64 = 60;
/// The time for which the broker's memory must not have risen until the attack counts as complete, and the interval between
/// measurements.
const SETTLED: Duration = Duration::from_secs(3);
const LOOK: Duration = Duration::from_millis(10);

pub(crate) fn measure() {
    let seconds = std::env::var("POSTERN_BENCH_SECONDS").map_or(SECONDS, |text| text.parse().unwrap());
    note("an attack, the broker's peak memory, and the time of `postern revoke` under it");
    for attack in Attack::ALL {
        let mut world = HostWorld::new();
        let grant = world.alice.open(&ask_for(&world.net.alice));
        let mut stranger = Stranger::new(&world.broker, &world.net.mallory, &world.net.hub);
        if attack.needs_certificate() {
            stranger = stranger.known_by(&world.broker.issue("mallory", postern_core::Role::Reader));
        }
        let (began, before) = (monotonic(), peak_memory(&mut world.broker));
        let attacking = attack.start(&[stranger]);
        let (mut sent_in, mut highest, mut risen) = (None, before, began);
        while began.elapsed() < Duration::from_secs(seconds) {
            std::thread::sleep(LOOK);
            let memory = peak_memory(&mut world.broker);
            if memory > highest {
                (highest, risen) = (memory, monotonic());
            }
            if attacking.sent() >= attack.size() && sent_in.is_none() {
                (sent_in, risen) = (Some(began.elapsed()), monotonic());
            }
            if sent_in.is_some() && risen.elapsed() > SETTLED {
                break;
            }
        }
        let sent_in = sent_in.unwrap_or_else(|| began.elapsed());
        let asked = monotonic();
        let revoked = world.admin.cli().run(&["revoke", &grant.id]);
        let took = asked.elapsed();
        note(&format!(
            "{}: {} of {} sent in {:.1} s ({:.2} MB), from {before} MiB",
            attack.words(),
            attacking.sent(),
            attack.size(),
            sent_in.as_secs_f64(),
            attacking.bytes() as f64 / 1e6,
        ));
        let name = format!("{attack:?}").to_lowercase();
        value(&format!("limits-{name}-memory"), peak_memory(&mut world.broker) as f64, "MiB");
        let outcome = if revoked.succeeded() { "" } else { "-REFUSED" };
        value(&format!("limits-{name}-revoke{outcome}"), took.as_secs_f64() * 1e3, "ms");
    }
}
