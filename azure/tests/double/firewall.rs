//! An Azure Firewall in front: its NAT rules, its few and careful writes, and the right source at each hop.

use std::cell::Cell;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use postern_azure::{Azure, FirewallSettings};
use postern_azure_sim::{AzureSim, Fault, Lab, refused};
use postern_core::ProtectedPort;
use postern_core::plan::LayerWindow;
use postern_provider::{CloudError, Health, Provider as _};
use postern_testkit::clock::until;
use serde_json::json;
use tokio::task::JoinHandle;

use crate::world::{DoubleWorld, SUBSCRIPTION};

const ALICE: &str = "203.0.113.7";
const BOB: &str = "203.0.113.8";
const PUBLIC: &str = "198.51.100.1";
/// An address of the firewall's subnet: the source that machines see for connections through the firewall.
const INSIDE: &str = "10.1.0.68";

/// Two machines behind a group and a firewall.
pub(crate) async fn behind_a_firewall() -> DoubleWorld {
    behind(|lab, subnet| lab.firewall("fw", "10.1.0.4", PUBLIC, subnet)).await
}

async fn behind(firewall: impl FnOnce(&Lab, &str) -> String) -> DoubleWorld {
    let sim = AzureSim::new();
    let lab = Lab::new(&sim, SUBSCRIPTION, "web");
    lab.nsg("nsg");
    lab.vnet("net", &["10.0.0.0/16", "10.1.0.0/24"]);
    let of_firewall = lab.subnet("net", "AzureFirewallSubnet", "10.1.0.64/26", None, None);
    firewall(&lab, &of_firewall);
    lab.route_table("out", "10.1.0.4");
    let subnet = lab.subnet("net", "web", "10.0.0.0/24", Some("nsg"), Some("out"));
    let vms =
        vec![lab.vm("vm-1", &subnet, &["10.0.0.4"], None), lab.vm("vm-2", &subnet, &["10.0.0.5"], None)];
    DoubleWorld::around(sim, lab, vms).await
}

impl DoubleWorld {
    pub(crate) fn firewall(&self) -> serde_json::Value {
        self.sim.get(&self.lab.id("azureFirewalls", "fw")).unwrap()
    }

    /// The firewall without Postern's rules, and without the fields that every write changes.
    pub(crate) fn customer_collections(&self) -> serde_json::Value {
        let mut firewall = self.firewall();
        firewall.as_object_mut().unwrap().remove("etag");
        firewall["properties"].as_object_mut().unwrap().remove("provisioningState");
        let collections = firewall["properties"]["natRuleCollections"].as_array_mut().unwrap();
        collections.retain(|collection| !collection["name"].as_str().unwrap().starts_with("postern"));
        firewall
    }

    fn writes(&self) -> usize {
        self.sim
            .calls()
            .iter()
            .filter(|call| call.is_change() && call.path.to_ascii_lowercase().contains("/azurefirewalls/"))
            .count()
    }

    /// Returns the machine's end of a connection to the firewall's public address, if it gets through.
    pub(crate) fn gets_through(&self, from: &str, port: u16) -> Option<(IpAddr, u16)> {
        let (from, public) = (from.parse().unwrap(), PUBLIC.parse().unwrap());
        let firewall = self.lab.id("azureFirewalls", "fw");
        let (ip, port) = self.sim.through_firewall(from, &firewall, public, "TCP", port)?;
        let number = if ip.to_string() == "10.0.0.4" { 0 } else { 1 };
        self.admits(INSIDE, number, port).then_some((ip, port))
    }

    pub(crate) async fn mapped(&self, number: usize, port: &str) -> Option<u16> {
        let port: ProtectedPort = port.parse().unwrap();
        self.observe(number).await.reach.endpoints.get(&port).map(std::net::SocketAddr::port)
    }
}

#[tokio::test]
async fn a_window_leads_through_the_firewall_and_says_where_to_connect() {
    let world = behind_a_firewall().await;
    let before = world.customer_collections();
    world.lock(0).await;
    assert_eq!(
        world.customer_collections(),
        before,
        "a lockdown changes nothing of it: nothing is denied there"
    );
    let window = world.window(0, 1, "tcp/22", ALICE);
    let reach = world.azure.open(&window.target, &[window.clone()].into()).await.unwrap();
    let endpoint = reach.endpoints[&window.port];
    assert_eq!(endpoint.ip().to_string(), PUBLIC);
    assert_eq!(world.gets_through(ALICE, endpoint.port()), Some(("10.0.0.4".parse().unwrap(), 22)));
    assert_eq!(world.gets_through(BOB, endpoint.port()), None);
    // The machine sees the firewall: its group admits that address, and not the requester's own.
    assert!(world.admits(INSIDE, 0, 22) && !world.admits(ALICE, 0, 22));
    let translation = reach.translation.unwrap();
    let source = |text: &str| text.parse().unwrap();
    assert_eq!(translation.of(source(ALICE)), [source("10.1.0.64/26")]);
    assert_eq!(translation.of(source("10.9.0.1")), [source("10.9.0.1")]);
    let observed = world.observe(0).await;
    assert_eq!((observed.windows, observed.drift), ([window.clone()].into(), vec![]));
    assert_eq!(world.customer_collections(), before, "all else is as it was");

    world.close(&window).await;
    assert_eq!(world.gets_through(ALICE, endpoint.port()), None);
    assert!(!world.admits(INSIDE, 0, 22));
    assert_eq!(world.customer_collections(), before);
    let left = world.firewall()["properties"]["natRuleCollections"].as_array().unwrap().len();
    assert_eq!(left, 1, "our collection went with its last rule");
}

#[tokio::test]
async fn the_port_of_a_machine_stays_the_same_and_is_shared_by_its_windows() {
    let world = behind_a_firewall().await;
    world.lock(0).await;
    world.lock(1).await;
    let (alice, bob) = (world.window(0, 1, "tcp/22", ALICE), world.window(0, 2, "tcp/22", BOB));
    world.open(&alice).await;
    let first = world.mapped(0, "tcp/22").await.unwrap();
    world.open(&bob).await;
    world.open(&world.window(1, 3, "tcp/22", ALICE)).await;
    assert_eq!(world.mapped(0, "tcp/22").await, Some(first));
    assert_ne!(world.mapped(1, "tcp/22").await, Some(first));
    world.close(&alice).await;
    assert_eq!(world.gets_through(ALICE, first), None, "the firewall tells sources apart");
    assert!(world.gets_through(BOB, first).is_some());
    world.close(&bob).await;
    world.open(&alice).await;
    assert_eq!(world.mapped(0, "tcp/22").await, Some(first), "a bookmark stays good");
}

#[tokio::test]
async fn changes_that_come_while_one_is_under_way_are_made_together() {
    let world = behind_a_firewall().await;
    world.lock(0).await;
    world.lock(1).await;
    // Long enough for all of them to be requested, on a busy machine.
    world.sim.settle("Microsoft.Network/azureFirewalls", Duration::from_millis(1500));
    world.sim.forget_calls();
    let windows: Vec<_> = (1..=12)
        .map(|grant| world.window(usize::from(grant > 6), grant, "tcp/22", &format!("203.0.113.{grant}")))
        .collect();
    let each: Vec<_> = windows.iter().map(|window| [window.clone()].into()).collect();
    let opened =
        join_all(windows.iter().zip(&each).map(|(window, one)| world.azure.open(&window.target, one))).await;
    assert!(opened.iter().all(Result::is_ok), "{opened:?}");
    assert!((1..=3).contains(&world.writes()), "{} writes for 12 windows", world.writes());
    for (at, window) in windows.iter().enumerate() {
        let port = world.mapped(usize::from(at >= 6), "tcp/22").await.unwrap();
        assert!(world.gets_through(&format!("203.0.113.{}", at + 1), port).is_some(), "{window:?}");
    }
    world.sim.forget_calls();
    join_all(windows.iter().zip(&each).map(|(window, one)| world.azure.close(&window.target, one))).await;
    assert!((1..=3).contains(&world.writes()), "{} writes to close 12 windows", world.writes());
    assert_eq!(world.observe(0).await.windows, [].into());
}

#[tokio::test]
async fn a_slow_write_opens_nothing_before_it_is_done_and_the_groups_close_at_once() {
    let world = behind_a_firewall().await;
    world.lock(0).await;
    world.sim.settle("Microsoft.Network/azureFirewalls", Duration::from_secs(4));
    world.sim.forget_calls();
    let window = world.window(0, 1, "tcp/22", ALICE);
    let opening = async { world.azure.open(&window.target, &[window.clone()].into()).await.unwrap() };
    let watching = async {
        world.written("azureFirewalls").await;
        let observed = world.another().observe(&window.target).await.unwrap();
        assert_eq!(observed.windows, [].into(), "not before the firewall has it");
        assert!(!world.admits(INSIDE, 0, 22), "the group comes last");
    };
    tokio::join!(opening, watching);
    let port = world.mapped(0, "tcp/22").await.unwrap();
    assert!(world.gets_through(ALICE, port).is_some());
    let is_closed = Cell::new(false);
    let closing = async {
        world.close(&window).await;
        is_closed.set(true);
    };
    let watching = async {
        until("the group to shut", || world.gets_through(ALICE, port).is_none()).await;
        assert!(!is_closed.get(), "shut in the group long before the firewall has settled");
    };
    tokio::join!(closing, watching);
}

impl DoubleWorld {
    /// Begins to open a window in a task that a test can end.
    fn opening(&self, window: &LayerWindow) -> JoinHandle<Result<(), CloudError>> {
        let (azure, window) = (Arc::clone(&self.azure), window.clone());
        tokio::spawn(async move { azure.open(&window.target, &[window.clone()].into()).await.map(drop) })
    }

    /// Reports whether the firewall has a rule of the window's grant.
    fn in_firewall(&self, window: &LayerWindow) -> bool {
        let grant = window.grant.to_string().to_ascii_lowercase();
        self.firewall()["properties"]["natRuleCollections"].to_string().to_ascii_lowercase().contains(&grant)
    }
}

#[tokio::test]
async fn i5_an_opening_that_is_given_up_stops_no_other_change_in_the_same_write() {
    let world = behind_a_firewall().await;
    world.lock(0).await;
    world.lock(1).await;
    world.sim.settle("Microsoft.Network/azureFirewalls", Duration::from_millis(1500));
    world.sim.forget_calls();
    let [first, given_up, other] =
        [(0, 1), (0, 2), (1, 3)].map(|(vm, grant)| world.window(vm, grant, "tcp/22", ALICE));
    let one = world.opening(&first);
    world.written("azureFirewalls").await;
    // Both wait for the write under way, and are made together in the next one.
    let (two, three) = (world.opening(&given_up), world.opening(&other));
    one.await.unwrap().unwrap();
    until("the write of both", || world.in_firewall(&given_up) && world.in_firewall(&other)).await;
    two.abort();
    three.await.unwrap().unwrap();
    let observed = world.observe(0).await;
    assert_eq!((observed.windows, observed.partial), ([first.clone()].into(), [given_up.clone()].into()));
    world.close(&given_up).await;
    assert!(!world.in_firewall(&given_up) && world.in_firewall(&first) && world.in_firewall(&other));
}

#[tokio::test]
async fn i2_an_opening_that_is_given_up_is_open_in_part_while_its_write_is_under_way_and_goes_with_a_close() {
    let world = behind_a_firewall().await;
    world.lock(0).await;
    world.sim.fail("PUT", "azureFirewalls", 1, Fault::Slow(Duration::from_secs(3)));
    world.sim.forget_calls();
    let window = world.window(0, 1, "tcp/22", ALICE);
    let opening = world.opening(&window);
    // The write reads the firewall itself first, by its id.
    let id = world.lab.id("azureFirewalls", "fw").to_ascii_lowercase();
    let is_read = || world.sim.calls().iter().any(|call| call.path.to_ascii_lowercase() == id);
    until("the write to begin", is_read).await;
    opening.abort();
    assert!(opening.await.unwrap_err().is_cancelled());
    let observed = world.observe(0).await;
    assert_eq!((observed.windows, observed.partial), ([].into(), [window.clone()].into()));
    assert!(
        matches!(world.azure.release(&window.target).await, Err(CloudError::Refused { .. })),
        "a release would strand the rule"
    );
    world.close(&window).await;
    assert!(!world.in_firewall(&window));
    assert_eq!(world.observe(0).await.partial, [].into());
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(!world.in_firewall(&window), "nothing writes it later");
}

#[tokio::test]
async fn an_opening_that_is_given_up_before_its_write_begins_is_not_written() {
    let world = behind_a_firewall().await;
    world.lock(0).await;
    world.lock(1).await;
    world.sim.settle("Microsoft.Network/azureFirewalls", Duration::from_millis(1500));
    world.sim.forget_calls();
    let (first, given_up) = (world.window(0, 1, "tcp/22", ALICE), world.window(1, 2, "tcp/22", BOB));
    let one = world.opening(&first);
    world.written("azureFirewalls").await;
    let two = world.opening(&given_up);
    tokio::time::sleep(Duration::from_millis(300)).await;
    two.abort();
    assert!(two.await.unwrap_err().is_cancelled(), "it waited for the write under way");
    one.await.unwrap().unwrap();
    world.close(&first).await;
    assert!(!world.in_firewall(&given_up));
}

#[tokio::test]
async fn another_principals_change_meanwhile_is_kept() {
    let world = behind_a_firewall().await;
    world.lock(0).await;
    world.sim.fail("PUT", "azureFirewalls", 2, refused(412, "PreconditionFailed"));
    let window = world.window(0, 1, "tcp/22", ALICE);
    world.sim.edit(&world.lab.id("azureFirewalls", "fw"), |firewall| {
        firewall["properties"]["networkRuleCollections"] = json!([{"name": "new", "properties": {"priority": 300,
            "action": {"type": "Allow"}, "rules": []}}]);
    });
    let before = world.customer_collections();
    world.open(&window).await;
    assert_eq!(world.customer_collections(), before);
    assert_eq!(world.observe(0).await.windows, [window].into());
}

#[tokio::test]
async fn a_firewall_with_a_policy_is_refused_by_name() {
    let world = behind(|lab, subnet| lab.policy_firewall("fw", "10.1.0.4", PUBLIC, subnet)).await;
    let refused = world.azure.lockdown(&world.order(0, crate::world::posterns_first())).await;
    let Err(CloudError::Refused { reason }) = refused else { panic!("{refused:?}") };
    assert!(reason.contains("/azurefirewalls/fw") || reason.to_ascii_lowercase().contains("fw"), "{reason}");
    assert!(reason.contains("firewallPolicies/central") && reason.contains("classic"), "{reason}");
    let health = world.azure.assess(&["tcp/22".parse().unwrap()].into()).await.assessments.remove(0).health;
    assert!(matches!(&health, Health::NotApplicable { reason } if reason.contains("central")), "{health:?}");
    assert_eq!(world.managed_rules("nsg"), [] as [&str; 0]);
}

#[tokio::test]
async fn a_firewall_that_gets_a_policy_later_opens_no_window() {
    let world = behind_a_firewall().await;
    world.lock(0).await;
    let policy = world.lab.id("firewallPolicies", "central");
    world.sim.edit(&world.lab.id("azureFirewalls", "fw"), |firewall| {
        firewall["properties"]["firewallPolicy"] = json!({"id": policy});
    });
    let window = world.window(0, 1, "tcp/22", ALICE);
    let refused = world.azure.open(&window.target, &[window.clone()].into()).await;
    let Err(CloudError::Refused { reason }) = refused else { panic!("{refused:?}") };
    assert!(reason.contains("central"), "{reason}");
    assert!(!world.admits(INSIDE, 0, 22), "nothing is half open");
}

#[tokio::test]
async fn a_source_in_a_private_network_goes_straight() {
    let world = behind_a_firewall().await;
    world.lock(0).await;
    world.sim.forget_calls();
    let window = world.window(0, 1, "tcp/22", "10.0.0.9");
    world.open(&window).await;
    assert_eq!(world.writes(), 0);
    assert!(world.admits("10.0.0.9", 0, 22) && !world.admits(INSIDE, 0, 22));
    assert_eq!(world.observe(0).await.windows, [window].into());
}

#[tokio::test]
async fn a_rule_of_posterns_in_the_firewall_that_is_edited_or_deleted_by_hand_is_repaired() {
    for edit in [
        (|rule: &mut serde_json::Value| rule["sourceAddresses"] = json!(["*"])) as fn(&mut serde_json::Value),
        |rule| rule["translatedPort"] = json!("3389"),
        |rule| rule["name"] = json!("gone"),
    ] {
        let world = behind_a_firewall().await;
        world.lock(0).await;
        let window = world.window(0, 1, "tcp/22", ALICE);
        world.open(&window).await;
        world.sim.edit(&world.lab.id("azureFirewalls", "fw"), |firewall| {
            let collections = firewall["properties"]["natRuleCollections"].as_array_mut().unwrap();
            let managed = collections
                .iter_mut()
                .find(|it| it["name"].as_str().unwrap().starts_with("postern"))
                .unwrap();
            edit(&mut managed["properties"]["rules"][0]);
        });
        assert_eq!(world.observe(0).await.windows, [].into());
        world.azure.repair(&world.target(0)).await.unwrap();
        world.open(&window).await;
        let now = world.observe(0).await;
        assert_eq!((now.windows, now.partial), ([window.clone()].into(), [].into()));
        let port = world.mapped(0, "tcp/22").await.unwrap();
        assert!(world.gets_through(ALICE, port).is_some() && world.gets_through(BOB, port).is_none());
    }
}

#[tokio::test]
async fn i2_a_window_in_a_firewall_is_found_and_closed_by_a_broker_that_knows_nothing() {
    let mut world = behind_a_firewall().await;
    world.lock(0).await;
    let window = world.window(0, 1, "tcp/22", ALICE);
    world.open(&window).await;
    world.restart();
    let sweep = world.azure.sweep().await;
    let held = sweep.sightings.into_iter().find(|it| it.target == window.target).unwrap().held.unwrap();
    assert_eq!(held.windows, [window.clone()].into());
    world.close(&window).await;
    let collections = world.firewall()["properties"]["natRuleCollections"].clone();
    assert_eq!(collections.as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_band_of_ports_that_is_used_up_refuses_in_words() {
    let world = behind_a_firewall().await;
    world.lock(0).await;
    world.lock(1).await;
    let mut settings = world.settings.clone();
    settings.firewall = FirewallSettings { ports: 50_000..=50_000, ..settings.firewall };
    let azure = Azure::connect(settings).unwrap();
    let (one, two) = (world.window(0, 1, "tcp/22", ALICE), world.window(1, 2, "tcp/22", ALICE));
    azure.open(&one.target, &[one.clone()].into()).await.unwrap();
    let refused = azure.open(&two.target, &[two.clone()].into()).await;
    let Err(CloudError::Refused { reason }) = refused else { panic!("{refused:?}") };
    assert!(reason.contains("azure.firewall.ports"), "{reason}");
    assert_eq!(azure.observe(&one.target).await.unwrap().windows, [one].into());
}

#[tokio::test]
async fn i2_a_deleted_machine_strands_no_rule_in_a_firewall() {
    let mut world = behind_a_firewall().await;
    let before = world.customer_collections();
    world.lock(0).await;
    world.lock(1).await;
    let (window, other) = (world.window(0, 1, "tcp/22", ALICE), world.window(1, 2, "tcp/22", BOB));
    world.open(&window).await;
    world.open(&other).await;
    world.sim.remove(&world.vms[0].id);
    world.sim.remove(&world.vms[0].interface);
    world.restart();
    let sweep = world.azure.sweep().await;
    let gone = sweep.sightings.iter().find(|sighting| sighting.target == window.target).unwrap();
    assert_eq!(gone.held, None);
    world.azure.repair(&window.target).await.unwrap();
    let sweep = world.azure.sweep().await;
    assert!(sweep.sightings.iter().all(|sighting| sighting.target != window.target), "{sweep:?}");
    assert_eq!(world.customer_collections(), before);
    assert_eq!(world.observe(1).await.windows, [other].into(), "the other machine's stays");
}

/// A machine in one subscription, and its firewall in that of a hub.
async fn behind_a_hub() -> (DoubleWorld, Lab) {
    const HUB: &str = "00000000-0000-0000-0000-00000000000b";
    let sim = AzureSim::new();
    let hub = Lab::new(&sim, HUB, "hub");
    hub.vnet("hub", &["10.1.0.0/24"]);
    let subnet = hub.subnet("hub", "AzureFirewallSubnet", "10.1.0.64/26", None, None);
    hub.firewall("fw", "10.1.0.4", PUBLIC, &subnet);
    let lab = Lab::new(&sim, SUBSCRIPTION, "web");
    lab.nsg("nsg");
    lab.vnet("net", &["10.0.0.0/16"]);
    lab.route_table("out", "10.1.0.4");
    let subnet = lab.subnet("net", "web", "10.0.0.0/24", Some("nsg"), Some("out"));
    let vms = vec![lab.vm("vm-1", &subnet, &["10.0.0.4"], None)];
    let mut world = DoubleWorld::around(sim, lab, vms).await;
    world.settings.subscriptions.insert(HUB.into());
    world.restart();
    (world, hub)
}

#[tokio::test]
async fn a_hubs_firewall_in_another_subscription_is_one_in_front() {
    let (mut world, hub) = behind_a_hub().await;
    world.lock(0).await;
    let window = world.window(0, 1, "tcp/22", ALICE);
    let reach = world.azure.open(&window.target, &[window.clone()].into()).await.unwrap();
    assert_eq!(reach.endpoints[&window.port].ip().to_string(), PUBLIC);
    let of_hub = || world.sim.get(&hub.id("azureFirewalls", "fw")).unwrap();
    let managed = |firewall: serde_json::Value| {
        let collections = firewall["properties"]["natRuleCollections"].as_array().unwrap().clone();
        collections.into_iter().any(|it| it["name"].as_str().unwrap().starts_with("postern"))
    };
    assert!(managed(of_hub()));
    let sweep = world.another().sweep().await;
    let [seen] = &sweep.sightings[..] else { panic!("one machine is seen once: {sweep:?}") };
    let held = seen.held.as_ref().unwrap();
    assert_eq!((&held.windows, &held.drift), (&[window.clone()].into(), &vec![]));

    // If one of the two subscriptions cannot be read, no machine counts as gone.
    let of_vms = format!("/subscriptions/{SUBSCRIPTION}/providers/Microsoft.Network/networkInterfaces");
    world.sim.fail("GET", &of_vms, 1, refused(403, "AuthorizationFailed"));
    let blind = world.another().sweep().await;
    assert_eq!((blind.unread.len(), blind.sightings), (1, vec![]));

    world.sim.remove(&world.vms[0].id);
    world.sim.remove(&world.vms[0].interface);
    let of_group = world.lab.nsg_id("nsg");
    world.sim.edit(&of_group, |nsg| nsg["properties"]["securityRules"] = json!([]));
    let gone = world.another().sweep().await.sightings;
    assert!(matches!(&gone[..], [only] if only.target == window.target && only.held.is_none()), "{gone:?}");
    world.another().repair(&window.target).await.unwrap();
    assert!(!managed(world.sim.get(&hub.id("azureFirewalls", "fw")).unwrap()), "the hub is clean");
    world.restart();
    assert_eq!(world.azure.sweep().await.sightings, []);
}

#[tokio::test]
async fn a_public_address_of_the_machine_is_where_to_connect() {
    let world = DoubleWorld::new().await;
    let public = world.lab.public_ip("vm-2-ip", "198.51.100.9");
    world.sim.edit(&world.vms[1].interface, |nic| {
        nic["properties"]["ipConfigurations"][0]["properties"]["publicIPAddress"] = json!({"id": public});
    });
    world.lock(1).await;
    let window = world.window(1, 1, "tcp/22", ALICE);
    let reach = world.azure.open(&window.target, &[window.clone()].into()).await.unwrap();
    assert_eq!(reach.endpoints[&window.port].to_string(), "198.51.100.9:22");
    assert_eq!(reach.translation, None, "the source stays");
    assert_eq!(world.observe(1).await.reach, reach);
    let sweep = world.another().sweep().await;
    let seen = sweep.sightings.iter().find(|sighting| sighting.target == window.target).unwrap();
    assert_eq!(seen.held.as_ref().unwrap().reach, reach, "a sweep sees the same");
    // A load balancer that leads to the same port comes first: an administrator set it up for that.
    world.lab.load_balancer("lb", "198.51.100.3", 2222, 22, &world.vms[1]);
    assert_eq!(world.observe(1).await.reach.endpoints[&window.port].to_string(), "198.51.100.3:2222");
}

#[tokio::test]
async fn a_load_balancers_port_is_where_to_connect_and_the_source_stays() {
    let world = DoubleWorld::new().await;
    world.lab.load_balancer("lb", "198.51.100.3", 2222, 22, &world.vms[0]);
    world.lock(0).await;
    let window = world.window(0, 1, "tcp/22", ALICE);
    let reach = world.azure.open(&window.target, &[window.clone()].into()).await.unwrap();
    assert_eq!(reach.endpoints[&window.port].to_string(), "198.51.100.3:2222");
    assert_eq!(reach.translation, None);
    // The group sees the client's own address, at the machine's own port.
    assert!(world.admits(ALICE, 0, 22));
}
