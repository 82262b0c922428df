//! Several brokers on one subscription: one of them drives each target at a time, and all of them write the groups and firewalls.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use postern_azure::Azure;
use postern_azure_sim::{AzureSim, Fault, Lab};
use postern_core::plan::LayerWindow;
use postern_provider::{CloudError, Provider as _};
use postern_testkit::clock::until;

use crate::firewall::behind_a_firewall;
use crate::world::{DoubleWorld, SUBSCRIPTION, posterns_first};

const NSG: &str = "Microsoft.Network/networkSecurityGroups";
const ALICE: &str = "203.0.113.7";
const OUTSIDE: &str = "203.0.113.99";

/// Two machines behind one group, whose rule leaves no room before it: a lockdown moves it.
async fn crowded() -> DoubleWorld {
    let sim = AzureSim::new();
    let lab = Lab::new(&sim, SUBSCRIPTION, "web");
    lab.nsg("nsg");
    lab.rule("nsg", "ssh", 100, "Allow", "*", "*", "22");
    lab.vnet("net", &["10.0.0.0/16"]);
    let subnet = lab.subnet("net", "web", "10.0.0.0/24", Some("nsg"), None);
    let vms =
        vec![lab.vm("vm-1", &subnet, &["10.0.0.4"], None), lab.vm("vm-2", &subnet, &["10.0.0.5"], None)];
    DoubleWorld::around(sim, lab, vms).await
}

impl DoubleWorld {
    /// Counts the changes that were answered with a status.
    fn answered(&self, status: u16) -> usize {
        self.sim.calls().iter().filter(|call| call.is_change() && call.status == Some(status)).count()
    }

    /// Windows of a machine, each from an address of its own.
    fn some(&self, number: usize, count: u128) -> Vec<LayerWindow> {
        let first = 100 * number as u128 + 1;
        (first..first + count)
            .map(|at| self.window(number, at, "tcp/22", &format!("203.0.113.{at}")))
            .collect()
    }
}

async fn open(azure: &Azure, window: &LayerWindow) -> Result<(), CloudError> {
    azure.open(&window.target, &[window.clone()].into()).await.map(drop)
}

async fn close(azure: &Azure, window: &LayerWindow) -> Result<(), CloudError> {
    azure.close(&window.target, &[window.clone()].into()).await
}

/// Two providers, each with a view of its own of the first two machines.
async fn two(world: &DoubleWorld) -> [Arc<Azure>; 2] {
    let both = [world.another(), world.another()];
    for (number, azure) in both.iter().enumerate() {
        azure.observe(&world.target(number)).await.unwrap();
    }
    both
}

#[tokio::test]
async fn i8_two_brokers_write_one_group_at_once_and_neither_loses_a_rule() {
    let world = DoubleWorld::new().await;
    world.lock(0).await;
    world.lock(1).await;
    let [one, two] = two(&world).await;
    world.sim.settle(NSG, Duration::from_millis(10));
    world.sim.forget_calls();
    let (of_one, of_two) = (world.some(0, 20), world.some(1, 20));
    let opened = futures_util::future::join(
        join_all(of_one.iter().map(|window| open(&one, window))),
        join_all(of_two.iter().map(|window| open(&two, window))),
    )
    .await;
    assert!(opened.0.iter().chain(&opened.1).all(Result::is_ok), "{opened:?}");
    // The two did collide: in time, and at a priority.
    assert!(world.answered(409) + world.answered(429) > 0 && world.answered(400) > 0);
    for (number, windows) in [(0, &of_one), (1, &of_two)] {
        let seen = world.observe(number).await;
        assert_eq!(seen.windows, windows.iter().cloned().collect(), "of machine {number}");
        assert_eq!((seen.partial, seen.drift), ([].into(), vec![]));
        for window in windows {
            assert!(world.admits(&window.source.to_string().replace("/32", ""), number, 22), "{window:?}");
        }
    }
    // One closes its windows while the other opens more: nothing is lost, and nothing stays.
    let more = world.some(1, 30).split_off(20);
    let (closed, opened) = futures_util::future::join(
        join_all(of_one.iter().map(|window| close(&one, window))),
        join_all(more.iter().map(|window| open(&two, window))),
    )
    .await;
    assert!(closed.iter().chain(&opened).all(Result::is_ok), "{closed:?} {opened:?}");
    assert_eq!(world.observe(0).await.windows, [].into());
    assert_eq!(world.observe(1).await.windows, of_two.iter().chain(&more).cloned().collect());
}

#[tokio::test]
async fn i8_two_brokers_lock_down_and_release_behind_one_group_at_once() {
    for _ in 0..3 {
        let world = crowded().await;
        let before = world.group_rules("nsg");
        let [one, two] = two(&world).await;
        world.sim.settle(NSG, Duration::from_millis(5));
        let (first_order, second_order) =
            (world.order(0, posterns_first()), world.order(1, posterns_first()));
        let locked = tokio::join!(one.lockdown(&first_order), two.lockdown(&second_order));
        let (locked_one, locked_two) = (locked.0.unwrap(), locked.1.unwrap());
        assert_eq!((locked_one.concerns, locked_two.concerns), (vec![], vec![]));
        assert!(!world.admits(OUTSIDE, 0, 22) && !world.admits(OUTSIDE, 1, 22));
        for number in [0, 1] {
            assert_eq!(world.observe(number).await.drift, []);
        }
        let (here, there) = (world.target(0), world.target(1));
        let released = tokio::join!(one.release(&here), two.release(&there));
        released.0.unwrap();
        released.1.unwrap();
        // The broker that read last moved the rule back.
        assert_eq!(world.group_rules("nsg"), before);
    }
}

#[tokio::test]
async fn what_one_broker_releases_while_another_locks_down_stays_shut_for_that_one() {
    // The other's lockdown begins a little later each time.
    for late in (0..60).step_by(15) {
        let world = crowded().await;
        world.lock(0).await;
        let [one, two] = two(&world).await;
        world.sim.settle(NSG, Duration::from_millis(5));
        let (target, order) = (world.target(0), world.order(1, posterns_first()));
        let locking = async {
            tokio::time::sleep(Duration::from_millis(late)).await;
            two.lockdown(&order).await
        };
        let (released, locked) = tokio::join!(one.release(&target), locking);
        released.unwrap();
        locked.unwrap();
        assert!(world.admits(OUTSIDE, 0, 22), "{late} ms: the first is released");
        assert!(!world.admits(OUTSIDE, 1, 22), "{late} ms: the second is shut");
        assert_eq!(world.observe(1).await.drift, [], "{late} ms");
        world.another().release(&world.target(1)).await.unwrap();
        let left: Vec<_> = world.group_rules("nsg").into_iter().map(|rule| rule["name"].clone()).collect();
        assert_eq!(left, ["ssh"], "{late} ms");
        assert_eq!(world.group_rules("nsg")[0]["properties"]["priority"], 100, "{late} ms");
    }
}

impl DoubleWorld {
    /// Waits until a rule of the group has a priority.
    async fn moved(&self, rule: &str, to: u64) {
        let is_there = |it: &serde_json::Value| it["name"] == rule && it["properties"]["priority"] == to;
        until("the rule to move", || self.group_rules("nsg").iter().any(is_there)).await;
    }

    /// Asserts that only the second machine is locked down, with a moved rule and its note, and that a release restores all.
    async fn only_the_second_is_shut(&self) {
        assert!(self.admits(OUTSIDE, 0, 22) && !self.admits(OUTSIDE, 1, 22));
        assert_eq!(self.observe(1).await.drift, []);
        self.another().release(&self.target(1)).await.unwrap();
        let left: Vec<_> = self.group_rules("nsg").into_iter().map(|rule| rule["name"].clone()).collect();
        assert_eq!(left, ["ssh"]);
        assert_eq!(self.group_rules("nsg")[0]["properties"]["priority"], 100);
    }
}

#[tokio::test]
async fn a_rule_that_goes_back_late_is_moved_again_by_the_broker_that_moved_it_back() {
    let world = crowded().await;
    world.lock(0).await;
    let [one, two] = two(&world).await;
    let (target, order) = (world.target(0), world.order(1, posterns_first()));
    // Meanwhile the other broker finds the rule behind, has nothing to move, and is done.
    world.sim.fail("PUT", "/securityrules/ssh", 1, Fault::Slow(Duration::from_secs(4)));
    let locking = async {
        let is_denying = |name: &String| name.starts_with("postern-deny-");
        until("Postern's rule to go", || !world.managed_rules("nsg").iter().any(is_denying)).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        two.lockdown(&order).await.unwrap();
        assert!(!world.group_rules("nsg").iter().any(|rule| rule["properties"]["priority"] == 100));
    };
    let (released, ()) = tokio::join!(one.release(&target), locking);
    released.unwrap();
    world.only_the_second_is_shut().await;
}

#[tokio::test]
async fn a_rule_that_went_back_meanwhile_is_moved_again_by_the_broker_that_needs_it_behind() {
    let world = crowded().await;
    world.lock(0).await;
    let [one, two] = two(&world).await;
    let (target, order) = (world.target(0), world.order(1, posterns_first()));
    // Its first read is out of date once it has made the writes that it planned.
    world.sim.fail("PUT", "/postern-deny-", 1, Fault::Slow(Duration::from_secs(4)));
    let releasing = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        one.release(&target).await.unwrap();
        world.moved("ssh", 100).await;
    };
    let (locked, ()) = tokio::join!(two.lockdown(&order), releasing);
    locked.unwrap();
    world.only_the_second_is_shut().await;
}

#[tokio::test]
async fn a_note_that_is_taken_away_too_late_or_too_early_is_written_again() {
    for (delete, go) in [(1500, 0), (800, 1500)] {
        let world = crowded().await;
        world.lock(0).await;
        let [one, two] = two(&world).await;
        let (target, order) = (world.target(0), world.order(1, posterns_first()));
        world.sim.fail("DELETE", "/postern-moved-", 1, Fault::Slow(Duration::from_millis(delete)));
        let locking = async {
            world.moved("ssh", 100).await;
            tokio::time::sleep(Duration::from_millis(300)).await;
            world.sim.fail("PUT", "/securityrules/ssh", 1, Fault::Slow(Duration::from_millis(go)));
            // The other broker finds the note, and uses it.
            two.lockdown(&order).await.unwrap();
        };
        let (released, ()) = tokio::join!(one.release(&target), locking);
        released.unwrap();
        world.only_the_second_is_shut().await;
    }
}

#[tokio::test]
async fn a_target_that_changes_hands_is_closed_by_the_broker_that_has_it() {
    let world = crowded().await;
    world.lock(0).await;
    world.lock(1).await;
    let [one, two] = two(&world).await;
    one.observe(&world.target(1)).await.unwrap();
    world.sim.settle(NSG, Duration::from_millis(30));
    let (early, late) = (world.window(0, 1, "tcp/22", ALICE), world.window(0, 2, "tcp/22", OUTSIDE));
    open(&one, &early).await.unwrap();
    // The target goes to the second broker, which opens another window, and comes back while the first is busy in that group.
    two.taken_over(&early.target);
    two.observe(&early.target).await.unwrap();
    close(&two, &early).await.unwrap();
    open(&two, &late).await.unwrap();
    let others = world.some(1, 8);
    let busy = join_all(others.iter().map(|window| open(&one, window)));
    let back = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        one.taken_over(&early.target);
        let seen = one.observe(&early.target).await.unwrap();
        assert_eq!(seen.windows, [late.clone()].into());
        close(&one, &late).await.unwrap();
        assert!(!world.admits(OUTSIDE, 0, 22), "it is said to be closed");
    };
    let (opened, ()) = tokio::join!(busy, back);
    assert!(opened.iter().all(Result::is_ok), "{opened:?}");
    assert_eq!(world.observe(0).await.windows, [].into());
}

#[tokio::test]
async fn i6_what_another_broker_released_is_not_shut_again_by_one_that_remembers_it() {
    let world = DoubleWorld::new().await;
    let before = (world.group_rules("nsg-subnet"), world.group_rules("nsg-nic"));
    world.lock(0).await;
    world.observe(0).await;
    let other = world.another();
    other.taken_over(&world.target(0));
    other.observe(&world.target(0)).await.unwrap();
    other.release(&world.target(0)).await.unwrap();
    world.azure.taken_over(&world.target(0));
    assert_eq!(world.observe(0).await.drift, []);
    let sweep = world.azure.sweep().await;
    assert!(sweep.sightings.iter().all(|sighting| sighting.target != world.target(0)), "{sweep:?}");
    world.azure.repair(&world.target(0)).await.unwrap();
    assert_eq!((world.group_rules("nsg-subnet"), world.group_rules("nsg-nic")), before);
}

#[tokio::test]
async fn i2_a_sweep_that_read_before_a_window_opened_does_not_keep_it_from_being_closed() {
    let world = DoubleWorld::new().await;
    world.lock(1).await;
    let window = world.window(1, 1, "tcp/22", ALICE);
    world.observe(1).await;
    // The sweep reads the groups at once and the rest late; the write is under way meanwhile.
    world.sim.fail("PUT", "/securityRules/", 1, Fault::Slow(Duration::from_millis(200)));
    world.sim.fail(
        "GET",
        "/providers/Microsoft.Network/networkInterfaces",
        1,
        Fault::Slow(Duration::from_millis(600)),
    );
    let opening = async {
        open(&world.azure, &window).await.unwrap();
    };
    let sweeping = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        world.azure.sweep().await
    };
    let ((), sweep) = tokio::join!(opening, sweeping);
    assert_eq!(sweep.unread, []);
    assert!(world.admits(ALICE, 1, 22));
    close(&world.azure, &window).await.unwrap();
    assert!(!world.admits(ALICE, 1, 22), "it is said to be closed");
}

#[tokio::test]
async fn i8_two_brokers_write_one_firewall_at_once_and_neither_loses_a_rule() {
    // Once as Azure documents it, and once as if it took any etag.
    for takes_any_etag in [false, true] {
        let world = behind_a_firewall().await;
        world.lock(0).await;
        world.lock(1).await;
        let [one, two] = two(&world).await;
        let before = world.customer_collections();
        world.sim.take_any_etag(takes_any_etag);
        world.sim.settle("Microsoft.Network/azureFirewalls", Duration::from_millis(150));
        world.sim.forget_calls();
        let (of_one, of_two) = (world.some(0, 5), world.some(1, 5));
        let opened = futures_util::future::join(
            join_all(of_one.iter().map(|window| open(&one, window))),
            join_all(of_two.iter().map(|window| open(&two, window))),
        )
        .await;
        assert!(opened.0.iter().chain(&opened.1).all(Result::is_ok), "{opened:?}");
        let met = world.answered(409) + world.answered(429) + world.answered(412);
        assert!(met > 0, "they never met");
        for (number, windows) in [(0, &of_one), (1, &of_two)] {
            assert_eq!(world.observe(number).await.windows, windows.iter().cloned().collect());
            let port = world.mapped(number, "tcp/22").await.unwrap();
            for window in windows {
                let from = window.source.to_string().replace("/32", "");
                assert!(world.gets_through(&from, port).is_some(), "{window:?}");
            }
        }
        assert_eq!(world.customer_collections(), before, "all else is as it was");
        let closed = futures_util::future::join(
            join_all(of_one.iter().map(|window| close(&one, window))),
            join_all(of_two.iter().map(|window| close(&two, window))),
        )
        .await;
        assert!(closed.0.iter().chain(&closed.1).all(Result::is_ok), "{closed:?}");
        for number in [0, 1] {
            let seen = world.observe(number).await;
            assert_eq!((seen.windows, seen.partial, seen.drift), ([].into(), [].into(), vec![]));
        }
        assert_eq!(world.customer_collections(), before);
    }
}

#[tokio::test]
async fn a_window_that_another_broker_began_in_the_firewall_is_open_once_the_firewall_has_settled() {
    let world = behind_a_firewall().await;
    world.lock(0).await;
    world.sim.settle("Microsoft.Network/azureFirewalls", Duration::from_secs(4));
    let window = world.window(0, 1, "tcp/22", ALICE);
    let [one, two] = two(&world).await;
    world.sim.forget_calls();
    // The first broker dies as soon as Azure accepts its write.
    tokio::select! {
        opened = open(&one, &window) => panic!("{opened:?}"),
        () = world.written("azureFirewalls") => {}
    }
    two.taken_over(&window.target);
    assert_eq!(two.observe(&window.target).await.unwrap().windows, [].into());
    open(&two, &window).await.unwrap();
    let port = world.mapped(0, "tcp/22").await.unwrap();
    assert!(world.gets_through(ALICE, port).is_some(), "it is said to be open");
}

#[tokio::test]
async fn i5_a_rule_whose_write_is_under_way_is_not_taken_for_open() {
    let world = DoubleWorld::new().await;
    world.lock(1).await;
    let window = world.window(1, 1, "tcp/22", ALICE);
    world.observe(1).await;
    world.sim.settle(NSG, Duration::from_millis(400));
    world.sim.fail("PUT", "/securityRules/", 1, Fault::Lost);
    assert!(open(&world.azure, &window).await.is_err());
    open(&world.azure, &window).await.unwrap();
    assert!(world.admits(ALICE, 1, 22), "it is said to be open");
}
