//! Many windows at once: the number of calls, and that none is lost.

use std::time::Duration;

use futures_util::future::join_all;
use postern_azure_sim::{AzureSim, Call, Lab, Vm};
use postern_provider::Provider as _;

use crate::world::{DoubleWorld, SUBSCRIPTION};

fn changes(calls: &[Call]) -> usize {
    calls.iter().filter(|call| call.is_change()).count()
}

#[tokio::test]
async fn a_grant_costs_one_write_for_each_group_to_open_and_one_to_close() {
    let world = DoubleWorld::new().await;
    world.lock(0).await;
    world.lock(1).await;
    for (number, groups) in [(0, 2), (1, 1)] {
        let window = world.window(number, 1, "tcp/22", "203.0.113.7");
        // The first use reads the way; then it is known.
        world.observe(number).await;
        for (what, count) in [("open", groups), ("open again", 0), ("close", groups), ("close again", 0)] {
            world.sim.forget_calls();
            if what.starts_with("open") {
                world.open(&window).await;
            } else {
                world.close(&window).await;
            }
            let calls = world.sim.calls();
            let others: Vec<&Call> =
                calls.iter().filter(|call| !call.is_change() && !call.is_poll()).collect();
            assert_eq!((changes(&calls), others), (count, vec![]), "{what}: {calls:?}");
        }
    }
}

#[tokio::test]
async fn writes_of_one_group_never_collide_and_no_call_is_refused() {
    let world = DoubleWorld::new().await;
    world.lock(1).await;
    world.sim.settle("Microsoft.Network/networkSecurityGroups", Duration::from_millis(20));
    world.observe(1).await;
    world.sim.forget_calls();
    let windows: Vec<_> =
        (1..=30).map(|grant| world.window(1, grant, "tcp/22", &format!("203.0.113.{grant}"))).collect();
    join_all(windows.iter().map(|window| world.open(window))).await;
    let calls = world.sim.calls();
    assert_eq!(changes(&calls), 30, "one write for each grant");
    assert!(calls.iter().all(|call| call.status.is_some_and(|status| status < 400)), "{calls:?}");
    assert_eq!(world.observe(1).await.windows, windows.into_iter().collect());
}

/// Builds machines, each behind its own interface, in a subnet with one group.
fn fleet(lab: &Lab, count: usize) -> Vec<Vm> {
    lab.vnet("net", &["10.0.0.0/8"]);
    lab.nsg("nsg");
    let subnet = lab.subnet("net", "web", "10.0.0.0/16", Some("nsg"), None);
    (0..count)
        .map(|at| {
            lab.vm(&format!("vm-{at}"), &subnet, &[&format!("10.0.{}.{}", at / 250, 4 + at % 250)], None)
        })
        .collect()
}

#[tokio::test]
async fn a_sweep_reads_pages_and_not_machines() {
    let sim = AzureSim::new();
    let lab = Lab::new(&sim, SUBSCRIPTION, "fleet");
    let vms = fleet(&lab, 250);
    let world = DoubleWorld::around(sim, lab, vms).await;
    for number in [0, 120, 249] {
        world.lock(number).await;
        world.open(&world.window(number, 1, "tcp/22", "203.0.113.7")).await;
    }
    world.sim.page_size(100);
    world.sim.forget_calls();
    let fresh = world.another();
    let sweep = fresh.sweep().await;
    assert_eq!(sweep.unread, []);
    let with_windows =
        sweep.sightings.iter().filter(|it| it.held.as_ref().is_some_and(|it| it.windows.len() == 1));
    assert_eq!(with_windows.count(), 3);
    // Groups, networks and firewalls have a page each, interfaces three; and a token is asked for.
    assert_eq!(world.sim.calls().len(), 7, "{:?}", world.sim.calls());
    world.sim.forget_calls();
    let survey = fresh.assess(&["tcp/22".parse().unwrap()].into()).await;
    assert_eq!((survey.assessments.len(), survey.unread.len()), (250, 0));
    assert_eq!(world.sim.calls().len(), 9, "three pages of machines besides");
}
