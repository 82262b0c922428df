//! The time from the request to an open port: the caller's RPC has returned `active`, and a SYN has passed.

use postern_tests::clock::monotonic;
use postern_tests::{HIGH_QUOTAS, HostWorld, Reach, STEP_TIMEOUT, TCP, VM, a_request};

use crate::bare;
use crate::lines::{Samples, note, percentiles};

const ROUNDS: u32 = 500;

pub(crate) fn measure() {
    let world = HostWorld::configured(HIGH_QUOTAS);
    let (alice, vm) = (&world.net.alice, &world.net.vm);
    let ask = a_request().on(VM).port("tcp/22").from(alice.v4()).waiting(STEP_TIMEOUT);
    let (mut answered, mut open) = (Samples::default(), Samples::default());
    for _ in 0..ROUNDS {
        let began = monotonic();
        let grant = world.alice.request(&ask).unwrap().grant.unwrap();
        answered.add(began.elapsed());
        assert_eq!(alice.reach(vm.tcp(TCP)), Reach::Open);
        open.add(began.elapsed());
        world.alice.revoke(&grant.id).unwrap();
    }
    bare::make_set(vm);
    let spawned = bare::nft_spawned(vm, ROUNDS);
    let in_process = bare::netlink(vm, ROUNDS);
    let commit = bare::sqlite_commits(world.dir(), ROUNDS);
    note("targets: p50 under 5 ms, p99 under 15 ms; fwknop's median for the same is 14 ms");
    percentiles("request-to-open", &open, "nft-spawned", &spawned);
    percentiles("request-to-open", &open, "netlink-in-process", &in_process);
    percentiles("request-to-open", &open, "sqlite-synced-commit", &commit);
    percentiles("request-to-active", &answered, "sqlite-synced-commit", &commit);
}
