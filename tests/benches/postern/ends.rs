//! From the end of a window to the first SYN that is refused.

use std::net::IpAddr;
use std::time::Duration;

use postern_tests::clock::sleep_until;
use postern_tests::{Reach, TCP, VM, World, an_ask, end_of, further_addresses};

use crate::lines::{Samples, line, note};

/// How many windows end, each with a source of its own.
const WINDOWS: u8 = 200;
/// The pause between two SYNs to one window around its end: what is found is at most that much too long.
const STEP: Duration = Duration::from_millis(4);

pub(crate) fn measure() {
    let world = World::new();
    let (alice, vm) = (&world.net.alice, &world.net.vm);
    alice.add_addresses(further_addresses(WINDOWS));
    let ends: Vec<_> = further_addresses(WINDOWS)
        .map(|source| {
            let source = IpAddr::from(source);
            (source, end_of(&world.alice.open(&an_ask().on(VM).port("tcp/22").from(source).seconds(4))))
        })
        .collect();
    let mut late = Samples::default();
    let mut early = Samples::default();
    for (source, end) in ends {
        sleep_until(end - STEP * 5);
        let watch = alice.watch_from(source, vm.tcp(TCP), STEP);
        sleep_until(end + STEP * 10);
        let refused =
            watch.stop().samples().iter().find(|sample| sample.reach != Reach::Open).map(|sample| sample.at);
        let refused =
            refused.unwrap_or_else(|| panic!("{source} was still open {:?} after its end", STEP * 10));
        let after = refused.duration_since(end);
        late.add(Duration::try_from(after).unwrap_or_default());
        early.add(Duration::try_from(-after).unwrap_or_default());
    }
    note("target: p99 under 100 ms; the window's own length is 4 s, and the SYNs come every 4 ms");
    line("end-to-first-refused-syn-p99", late.percentile(99), "target", 100.0, "ms");
    line("window-shorter-than-granted-p99", early.percentile(99), "target", 100.0, "ms");
}
