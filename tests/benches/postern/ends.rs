//! The time from the end of a window to the first SYN that is refused.

use std::net::IpAddr;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use postern_tests::clock::sleep_until;
use postern_tests::{HIGH_QUOTAS, HostWorld, Reach, TCP, VM, a_request, end_of, further_addresses};

use crate::lines::{Samples, line, note};

/// The number of windows that end, each with a source of its own.
const WINDOWS: u8 = 150;
/// The time for which each window is open, in whole seconds.
const OPEN: u64 = 3;
/// The pause between two openings, and so between two ends.
const APART: Duration = Duration::from_millis(80);
/// The pause between two SYNs to one window around its end: what is found is at most that much too long.
const STEP: Duration = Duration::from_millis(2);
/// The time before and after its end for which a window is watched.
const AROUND: Duration = Duration::from_millis(30);

pub(crate) fn measure() {
    let world = HostWorld::configured(HIGH_QUOTAS);
    world.net.alice.add_addresses(further_addresses(WINDOWS));
    let (opened, ends) = mpsc::channel();
    let (mut late, mut early) = (Samples::default(), Samples::default());
    thread::scope(|scope| {
        scope.spawn(|| open_all(&world, opened));
        // A probe without an answer takes a while to give up, so each window is watched by itself.
        let watched: Vec<_> = ends
            .into_iter()
            .map(|(source, end)| {
                scope.spawn({
                    let world = &world;
                    move || first_refused(world, source, end)
                })
            })
            .collect();
        for after in watched.into_iter().map(|watched| watched.join().unwrap()) {
            late.add(Duration::try_from(after).unwrap_or_default());
            early.add(Duration::try_from(-after).unwrap_or_default());
        }
    });
    note("target: p99 under 100 ms after the end; SYNs come every 2 ms");
    line("end-to-first-refused-syn-p99", late.percentile(99), "target", 100.0, "ms");
    line("closed-before-its-end-p99", early.percentile(99), "target", 100.0, "ms");
}

fn open_all(world: &HostWorld, opened: mpsc::Sender<(IpAddr, Timestamp)>) {
    for source in further_addresses(WINDOWS).map(IpAddr::from) {
        let grant = world.alice.open(&a_request().on(VM).port("tcp/22").from(source).seconds(OPEN));
        opened.send((source, end_of(&grant))).unwrap();
        thread::sleep(APART);
    }
}

/// Returns the time from the end to the first SYN that was refused; negative where that SYN came before the end.
fn first_refused(world: &HostWorld, source: IpAddr, end: Timestamp) -> SignedDuration {
    sleep_until(end - AROUND);
    let watch = world.net.alice.watch_from(source, world.net.vm.tcp(TCP), STEP);
    sleep_until(end + AROUND);
    let seen = watch.stop();
    let refused = seen.samples().iter().find(|sample| sample.reach != Reach::Open);
    refused.unwrap_or_else(|| panic!("{source} was open {AROUND:?} after its end")).at.duration_since(end)
}
