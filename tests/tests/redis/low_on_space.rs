//! A Redis that is low on memory.

use postern_tests::redis::Redis;
use postern_tests::{HIGH_QUOTAS, HostWorld, Net, ask_for, low_space};

#[test]
fn i10_a_redis_low_on_memory_refuses_requests_and_still_revokes_bans_and_closes() {
    let net = Net::new();
    let redis = Redis::start(&net.hub);
    redis.command(&["CONFIG", "SET", "maxmemory", "64mb"]);
    redis.command(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
    let world = HostWorld::configured(&format!("{HIGH_QUOTAS}{}", redis.configuration()));
    let grant = world.alice.open(&ask_for(&world.net.alice));
    // What else lives on this server: requests alone take long to fill it.
    redis.command(&["SETRANGE", "filler", "50000000", "x"]);
    low_space::fill(&world);
    low_space::closes(&world, &grant);
}
