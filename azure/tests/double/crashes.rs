//! A broker that dies at any call: the next one reaches the wanted state from whatever it left behind.

use std::collections::BTreeSet;

use postern_azure_sim::{CrashPoint, When};
use postern_core::plan::LayerWindow;
use postern_provider::{CloudError, Provider as _};
use postern_testkit::clock::until;

use crate::firewall::behind_a_firewall;
use crate::world::DoubleWorld;

const ALICE: &str = "203.0.113.7";
const OUTSIDE: &str = "203.0.113.99";

/// Walks every crash point of `act`, one after the other: `act` is dropped there, as by SIGKILL, and `then` checks what a new
/// broker finds. Ends at the first point that is not reached.
async fn walk<T, F, G>(begin: impl AsyncFn() -> DoubleWorld, act: F, then: G) -> usize
where
    F: AsyncFn(&DoubleWorld) -> T,
    G: AsyncFn(&mut DoubleWorld, CrashPoint),
{
    let mut points = 0;
    for change in 1..100 {
        for when in [When::Before, When::After] {
            let mut world = begin().await;
            let point = CrashPoint { change, when };
            world.sim.halt_at(Some(point));
            tokio::select! {
                biased;
                _ = act(&world) => {
                    assert!(!world.sim.has_halted());
                    return points;
                }
                () = until("the point or the end", || world.sim.has_halted()) => {}
            }
            world.sim.halt_at(None);
            world.restart();
            then(&mut world, point).await;
            points += 1;
        }
    }
    panic!("it never ends");
}

async fn locked() -> DoubleWorld {
    let world = DoubleWorld::new().await;
    world.lock(0).await;
    world
}

fn windows(world: &DoubleWorld) -> BTreeSet<LayerWindow> {
    let of = |port, source| world.window(0, 1, port, source);
    [of("tcp/22", ALICE), of("tcp/3389", ALICE), of("udp/22", ALICE), of("tcp/22", "2001:db8::1")].into()
}

#[tokio::test]
async fn i8_open_from_any_point_ends_with_exactly_what_was_wanted() {
    let points = walk(
        locked,
        async |world| world.azure.open(&world.target(0), &windows(world)).await,
        async |world, point| {
            // The first reading of the new broker is the truth: what it calls open is open.
            let seen = world.observe(0).await;
            assert_eq!(seen.drift, [], "{point:?}");
            for window in seen.windows.iter().filter(|window| window.source.is_ipv4()) {
                if window.port.protocol == postern_core::Protocol::Tcp {
                    assert!(world.admits(ALICE, 0, window.port.port.get()), "{point:?} {window:?}");
                }
            }
            world.azure.open(&world.target(0), &windows(world)).await.unwrap();
            let now = world.observe(0).await;
            assert_eq!((now.windows, now.partial), (windows(world), [].into()), "{point:?}");
        },
    )
    .await;
    // Three rules in each of two groups.
    assert_eq!(points, 12);
}

#[tokio::test]
async fn i2_an_open_that_died_is_closed_from_what_azure_holds_alone() {
    walk(
        locked,
        async |world| world.azure.open(&world.target(0), &windows(world)).await,
        async |world, point| {
            let sweep = world.azure.sweep().await;
            for sighting in sweep.sightings {
                let held = sighting.held.unwrap();
                let all = &held.windows | &held.partial;
                world.azure.close(&sighting.target, &all).await.unwrap();
            }
            let now = world.observe(0).await;
            assert_eq!((now.windows, now.partial, now.drift), ([].into(), [].into(), vec![]), "{point:?}");
            assert!(!world.admits(ALICE, 0, 22) && !world.admits(ALICE, 0, 3389));
        },
    )
    .await;
}

#[tokio::test]
async fn i8_close_from_any_point_ends_with_nothing_open_and_the_others_untouched() {
    let points = walk(
        async || {
            let world = locked().await;
            world.azure.open(&world.target(0), &windows(&world)).await.unwrap();
            world.open(&world.window(0, 2, "tcp/22", ALICE)).await;
            world
        },
        async |world| world.azure.close(&world.target(0), &windows(world)).await,
        async |world, point| {
            assert!(world.admits(ALICE, 0, 22), "{point:?}: the other grant's window is never shut");
            world.azure.close(&world.target(0), &windows(world)).await.unwrap();
            let now = world.observe(0).await;
            let other = world.window(0, 2, "tcp/22", ALICE);
            assert_eq!((now.windows, now.partial), ([other].into(), [].into()), "{point:?}");
        },
    )
    .await;
    assert_eq!(points, 12);
}

#[tokio::test]
async fn i8_closing_a_part_from_any_point_never_shuts_the_rest() {
    walk(
        async || {
            let world = locked().await;
            world.azure.open(&world.target(0), &windows(&world)).await.unwrap();
            world
        },
        async |world| {
            let part = [world.window(0, 1, "tcp/3389", ALICE)].into();
            world.azure.close(&world.target(0), &part).await
        },
        async |world, point| {
            assert!(world.admits(ALICE, 0, 22), "{point:?}");
            let part = [world.window(0, 1, "tcp/3389", ALICE)].into();
            world.azure.close(&world.target(0), &part).await.unwrap();
            assert!(world.admits(ALICE, 0, 22) && !world.admits(ALICE, 0, 3389), "{point:?}");
            let now = world.observe(0).await;
            assert_eq!((now.windows, now.partial), (&windows(world) - &part, [].into()), "{point:?}");
        },
    )
    .await;
}

/// A locked world behind a firewall, in which a window of another grant is open.
async fn behind() -> DoubleWorld {
    let world = behind_a_firewall().await;
    world.lock(0).await;
    world.open(&world.window(0, 2, "tcp/22", OUTSIDE)).await;
    world
}

fn through(world: &DoubleWorld) -> BTreeSet<LayerWindow> {
    ["tcp/22", "tcp/3389"].iter().map(|port| world.window(0, 1, port, ALICE)).collect()
}

#[tokio::test]
async fn i8_open_behind_a_firewall_from_any_point_ends_with_exactly_what_was_wanted_or_with_nothing() {
    for wanted in [true, false] {
        let points = walk(
            behind,
            async |world| world.azure.open(&world.target(0), &through(world)).await,
            async |world, point| {
                let (customers, other) =
                    (world.customer_collections(), world.window(0, 2, "tcp/22", OUTSIDE));
                // As a broker with an empty store sees it.
                let sweep = world.azure.sweep().await;
                let held = sweep.sightings.into_iter().next().unwrap().held.unwrap();
                assert!(held.windows.contains(&other) && held.drift.is_empty(), "{point:?} {held:?}");
                let left = if wanted { through(world) } else { BTreeSet::new() };
                if wanted {
                    world.azure.open(&world.target(0), &left).await.unwrap();
                } else {
                    let mine = &(&held.windows | &held.partial) - &[other.clone()].into();
                    world.azure.close(&world.target(0), &mine).await.unwrap();
                }
                let now = world.observe(0).await;
                let all = &left | &[other].into();
                assert_eq!((now.windows, now.partial, now.drift), (all, [].into(), vec![]), "{point:?}");
                for port in ["tcp/22", "tcp/3389"] {
                    let mapped = world.mapped(0, port).await;
                    let gets_in = mapped.is_some_and(|at| world.gets_through(ALICE, at).is_some());
                    assert_eq!(gets_in, wanted, "{point:?} {port}");
                }
                assert_eq!(world.customer_collections(), customers, "{point:?}");
            },
        )
        .await;
        // The firewall, and a rule for each port in the group.
        assert_eq!(points, 6);
    }
}

#[tokio::test]
async fn i8_close_behind_a_firewall_from_any_point_ends_with_nothing_of_it() {
    let points = walk(
        async || {
            let world = behind().await;
            world.azure.open(&world.target(0), &through(&world)).await.unwrap();
            world
        },
        async |world| world.azure.close(&world.target(0), &through(world)).await,
        async |world, point| {
            let other = world.window(0, 2, "tcp/22", OUTSIDE);
            let at = world.mapped(0, "tcp/22").await.unwrap();
            assert!(world.gets_through(OUTSIDE, at).is_some(), "{point:?}: the other's is never shut");
            world.azure.close(&world.target(0), &through(world)).await.unwrap();
            let now = world.observe(0).await;
            assert_eq!(
                (now.windows, now.partial, now.drift),
                ([other].into(), [].into(), vec![]),
                "{point:?}"
            );
            assert!(world.gets_through(ALICE, at).is_none() && world.gets_through(OUTSIDE, at).is_some());
        },
    )
    .await;
    assert_eq!(points, 6);
}

/// A world whose rules leave no room before them: a lockdown moves them.
async fn crowded() -> DoubleWorld {
    let world = DoubleWorld::new().await;
    world.lab.rule("nsg-subnet", "ssh-first", 100, "Allow", "*", "*", "22");
    world.lab.rule("nsg-nic", "all-first", 101, "Allow", "*", "*", "*");
    world
}

async fn exposed() -> DoubleWorld {
    let world = crowded().await;
    world.lock(0).await;
    world
}

#[tokio::test]
async fn i8_a_lockdown_from_any_point_is_finished_by_doing_it_again_or_taken_back() {
    let before = {
        let world = crowded().await;
        (world.group_rules("nsg-subnet"), world.group_rules("nsg-nic"))
    };
    for again in [true, false] {
        let points = walk(
            crowded,
            async |world| world.lock(0).await,
            async |world, point| {
                if again {
                    world.lock(0).await;
                    assert!(!world.admits(OUTSIDE, 0, 22) && !world.admits(OUTSIDE, 0, 3389), "{point:?}");
                    assert!(world.admits(OUTSIDE, 0, 443), "{point:?}");
                    assert_eq!(world.observe(0).await.drift, [], "{point:?}");
                }
                world.azure.release(&world.target(0)).await.unwrap();
                let after = (world.group_rules("nsg-subnet"), world.group_rules("nsg-nic"));
                assert_eq!(after, before, "{point:?}");
            },
        )
        .await;
        assert!(points > 10, "{points}");
    }
}

#[tokio::test]
async fn i8_a_lockdown_that_died_is_finished_by_the_sweep_once_it_shuts_something() {
    walk(
        crowded,
        async |world| world.lock(0).await,
        async |world, point| {
            let sweep = world.azure.sweep().await;
            let seen = sweep.sightings.iter().any(|it| it.target == world.target(0));
            if seen {
                world.azure.repair(&world.target(0)).await.unwrap();
                let drift = world.observe(0).await.drift;
                assert!(drift.iter().all(|it| !it.repairable), "{point:?} {drift:?}");
            }
            // A new lockdown is always possible, and always complete.
            world.lock(0).await;
            assert!(!world.admits(OUTSIDE, 0, 22), "{point:?}");
        },
    )
    .await;
}

#[tokio::test]
async fn i6_a_release_from_any_point_is_finished_by_a_sweep_and_puts_back_exactly_what_was_there() {
    let before = {
        let world = crowded().await;
        (world.group_rules("nsg-subnet"), world.group_rules("nsg-nic"))
    };
    let points = walk(
        exposed,
        async |world| world.azure.release(&world.target(0)).await,
        async |world, point| {
            let open = world.window(0, 1, "tcp/22", ALICE);
            if world.observe(0).await.drift.iter().any(|it| it.what.contains("release")) {
                let refused = world.azure.open(&open.target, &[open.clone()].into()).await;
                assert!(matches!(refused, Err(CloudError::Refused { .. })), "{point:?}: {refused:?}");
            }
            let sweep = world.azure.sweep().await;
            let sighting = sweep.sightings.into_iter().find(|it| it.target == world.target(0));
            match sighting.and_then(|it| it.held) {
                Some(held) if held.drift.iter().any(|it| it.what.contains("release")) => {
                    world.azure.repair(&world.target(0)).await.unwrap();
                }
                // The release had not begun, or it was done.
                Some(_) => drop(world.azure.release(&world.target(0)).await.unwrap()),
                None => {}
            }
            let after = (world.group_rules("nsg-subnet"), world.group_rules("nsg-nic"));
            assert_eq!(after, before, "{point:?}");
        },
    )
    .await;
    assert!(points > 10, "{points}");
}
