//! The cloud layer on Azure, whose Resource Manager is the double of the tests here: what a grant costs in calls and in
//! time, what a burst on one group does, and what a sweep reads.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use jiff::Timestamp;
use postern_azure::{
    Application, Azure, AzureSettings, Credential, Environment, FirewallSettings, Flush, Priorities, Rates,
};
use postern_azure_sim::{AzureSim, Call, Lab, SimServer};
use postern_core::plan::LayerWindow;
use postern_core::{GrantId, TargetId};
use postern_proto::v1::Layers;
use postern_provider::kit::Rate;
use postern_provider::{Consent, LockdownOrder, Provider as _};
use postern_tests::azure::{AzureWorld, SUBSCRIPTION};
use postern_tests::clock::monotonic;
use reqwest::Client;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::OnceCell;
use tokio::task::JoinSet;

use crate::lines::{Samples, line, note, percentiles};

/// The number of grants that are opened one after the other.
const GRANTS: usize = 40;
/// The number of grants that are opened at once.
const BURST: u8 = 100;
/// The time that a write of a group takes in the burst.
const WRITE: Duration = Duration::from_millis(100);
/// The number of machines of the fleet.
const FLEET: usize = 2000;
/// The number of groups that the fleet shares: one holds 1,000 rules at most.
const GROUPS: usize = 20;
/// The number of providers that lock the fleet down beside each other.
const HANDS: usize = 8;

/// Opens and closes grants in both layers, and makes the same change of Azure by hand in between.
pub(crate) fn grants() {
    let world = AzureWorld::new(Layers::Both);
    let arm = world.azure.arm.clone();
    // The broker has looked at the target for the first time.
    let warm = world.alice.open(&world.ask());
    world.alice.revoke(&warm.id).unwrap();

    let (mut to_active, mut to_closed, mut round_trip) =
        (Samples::default(), Samples::default(), Samples::default());
    let (mut opened, mut closed, mut polls) = (0, 0, 0);
    let count = |changes: &mut usize, polls: &mut usize| {
        // A sweep may fall between: changes, and what is asked of them, are what a grant costs.
        let calls = arm.calls();
        *changes += calls.iter().filter(|call| call.is_change()).count();
        *polls += calls.iter().filter(|call| call.is_poll()).count();
        arm.forget_calls();
    };
    let bare = Bare::new(world.net.hub.netns().run(async { Client::default() }));
    let group = world.azure.lab.nsg_id("nsg-bare");
    world.azure.lab.nsg("nsg-bare");
    for number in 0..GRANTS {
        arm.forget_calls();
        let start = monotonic();
        let grant = world.alice.open(&world.ask());
        to_active.add(start.elapsed());
        count(&mut opened, &mut polls);
        let start = monotonic();
        world.alice.revoke(&grant.id).unwrap();
        to_closed.add(start.elapsed());
        count(&mut closed, &mut polls);

        let (bare, id) = (bare.clone(), format!("{group}/securityRules/r-{number}"));
        let priority = 100 + u16::try_from(number).unwrap();
        let start = monotonic();
        world.net.hub.netns().run(async move { bare.put(BROKERS_DOUBLE, &id, &rule(priority)).await });
        round_trip.add(start.elapsed());
    }
    let each =
        |calls: usize| f64::from(u32::try_from(calls).unwrap()) / f64::from(u32::try_from(GRANTS).unwrap());
    // One rule in each of two groups.
    line("azure-changes-per-grant-opened", each(opened), "fewest", 2.0, "calls");
    line("azure-changes-per-grant-closed", each(closed), "fewest", 2.0, "calls");
    line("azure-polls-per-grant", each(polls), "fewest", 4.0, "calls");
    percentiles(
        "azure-request-to-active-both-layers",
        &to_active,
        "one-rule-written-and-polled",
        &round_trip,
    );
    percentiles("azure-revoke-to-closed-both-layers", &to_closed, "one-rule-written-and-polled", &round_trip);
}

/// A hundred grants on one group at once, beside as many single rules written one after the other.
pub(crate) fn burst() {
    run(async {
        let field = Field::new().await;
        let lab = Lab::new(&field.arm, SUBSCRIPTION, "burst");
        lab.vnet("net", &["10.0.0.0/16"]);
        lab.nsg("nsg");
        lab.nsg("bare");
        let subnet = lab.subnet("net", "web", "10.0.0.0/24", Some("nsg"), None);
        let vm = lab.vm("vm", &subnet, &["10.0.0.4"], None);
        let target: TargetId = format!("azure:{}", vm.id).parse().unwrap();
        let azure = field.provider(Rates::default());
        azure.lockdown(&order(&target)).await.unwrap();
        azure.observe(&target).await.unwrap();
        field.arm.settle("Microsoft.Network/networkSecurityGroups", WRITE);
        field.arm.forget_calls();

        let start = monotonic();
        let windows: Vec<_> = (0..BURST).map(|number| [window(&target, number)].into()).collect();
        let opened = join_all(windows.iter().map(|one| azure.open(&target, one))).await;
        let took = start.elapsed();
        assert!(opened.iter().all(Result::is_ok), "{opened:?}");
        let calls = field.arm.calls();
        field.arm.forget_calls();

        let (bare, origin) = (Bare::new(Client::default()), field.server.origin());
        let start = monotonic();
        for number in 0..BURST {
            let id = format!("{}/securityRules/r-{number}", lab.nsg_id("bare"));
            bare.put(&origin, &id, &rule(100 + u16::from(number))).await;
        }
        let serial = start.elapsed();
        let of = |calls: &[Call], what: &dyn Fn(&Call) -> bool| {
            f64::from(u32::try_from(calls.iter().filter(|call| what(call)).count()).unwrap())
        };
        let changes = of(&calls, &Call::is_change);
        let retries = of(&calls, &|call| call.status.is_none_or(|status| status >= 400));
        note(&format!(
            "{retries} of {} calls were throttled, {} were polls",
            calls.len(),
            of(&calls, &Call::is_poll)
        ));
        line("azure-burst-of-100-changes", changes, "serial-single-rules", f64::from(BURST), "calls");
        line("azure-burst-of-100", took.as_secs_f64(), "serial-single-rules", serial.as_secs_f64(), "s");
    });
}

/// Sweeps a fleet under lockdown, each machine with one window.
pub(crate) fn sweep() {
    run(async {
        let field = Field::new().await;
        let lab = Lab::new(&field.arm, SUBSCRIPTION, "fleet");
        lab.vnet("net", &["10.0.0.0/8"]);
        let subnets: Vec<String> = (0..GROUPS)
            .map(|at| {
                lab.nsg(&format!("nsg-{at}"));
                lab.subnet(
                    "net",
                    &format!("web-{at}"),
                    &format!("10.{at}.0.0/16"),
                    Some(&format!("nsg-{at}")),
                    None,
                )
            })
            .collect();
        let targets: Vec<TargetId> = (0..FLEET)
            .map(|at| {
                let (group, number) = (at % GROUPS, at / GROUPS);
                let vm = lab.vm(
                    &format!("vm-{at}"),
                    &subnets[group],
                    &[&format!("10.{group}.0.{}", 4 + number)],
                    None,
                );
                format!("azure:{}", vm.id).parse().unwrap()
            })
            .collect();
        let start = monotonic();
        let fast = Rate { at_once: 100_000, per_second: 100_000 };
        let many = Rates { reads: fast, writes: fast, network_writes: fast };
        // Each hand has groups of its own.
        let mut hands = JoinSet::new();
        for hand in 0..HANDS {
            let azure = field.provider(many);
            let mine: Vec<TargetId> = targets
                .iter()
                .enumerate()
                .filter(|(at, _)| at % GROUPS % HANDS == hand)
                .map(|(_, it)| it.clone())
                .collect();
            hands.spawn(async move {
                for target in mine {
                    azure.lockdown(&order(&target)).await.unwrap();
                    azure.open(&target, &[window(&target, 7)].into()).await.unwrap();
                }
            });
        }
        hands.join_all().await;
        note(&format!(
            "{FLEET} machines were locked down, with a window each, in {:.0} s",
            start.elapsed().as_secs_f64()
        ));

        let azure = field.provider(Rates::default());
        field.arm.forget_calls();
        let start = monotonic();
        let swept = azure.sweep().await;
        let took = start.elapsed();
        assert_eq!(swept.unread, []);
        let held = || swept.sightings.iter().map(|sighting| sighting.held.as_ref().unwrap());
        let windows: usize = held().map(|held| held.windows.len()).sum();
        assert_eq!((swept.sightings.len(), windows), (FLEET, FLEET));
        assert!(held().all(|held| held.drift.is_empty()));
        let calls = field.arm.calls();
        let reads = u32::try_from(calls.iter().filter(|call| !call.is_login()).count()).unwrap();
        // Interfaces in pages of a hundred; groups, networks and firewalls in one each.
        let fewest = u32::try_from(FLEET / 100 + 3).unwrap();
        line("azure-calls-per-sweep-of-2000", reads.into(), "fewest", fewest.into(), "calls");
        line("azure-sweep-of-2000", took.as_secs_f64(), "time-between-sweeps", 600.0, "s");
    });
}

fn run(work: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(work);
}

/// The address of a world's double, on the broker's host.
const BROKERS_DOUBLE: &str = "http://127.0.0.1:5002";

/// A double, and what a provider needs to use it.
struct Field {
    arm: AzureSim,
    server: SimServer,
    dir: TempDir,
}

impl Field {
    async fn new() -> Self {
        let arm = AzureSim::new();
        arm.client("tenant", "broker", "a secret");
        let server = arm.listen("127.0.0.1:0").await;
        let dir = TempDir::with_prefix("postern-").unwrap();
        std::fs::write(dir.path().join("secret"), "a secret").unwrap();
        Self { arm, server, dir }
    }

    fn provider(&self, rates: Rates) -> Arc<Azure> {
        let settings = AzureSettings {
            deployment: "postern".into(),
            environment: Environment {
                resource_manager: self.server.origin(),
                authority: self.server.origin(),
                metadata: self.server.origin(),
            },
            credential: Credential::ClientSecret {
                application: Application { tenant: "tenant".into(), client_id: "broker".into() },
                secret_file: self.dir.path().join("secret"),
            },
            subscriptions: [SUBSCRIPTION.to_owned()].into(),
            priorities: Priorities::default(),
            flush_connection: Flush::Refuse,
            firewall: FirewallSettings::default(),
            authorize_callers: false,
            rates,
        };
        Arc::new(Azure::connect(settings).unwrap())
    }
}

/// Writes single rules, and waits for each: no less can be done.
#[derive(Clone)]
struct Bare {
    client: Client,
    token: Arc<OnceCell<String>>,
}

impl Bare {
    fn new(client: Client) -> Self {
        Self { client, token: Arc::default() }
    }

    async fn put(&self, origin: &str, id: &str, rule: &Value) {
        let token = self.token.get_or_init(|| self.login(origin)).await;
        let url = format!("{origin}{id}?api-version=2024-03-01");
        let answer = self.client.put(url).bearer_auth(token).json(rule).send().await.unwrap();
        assert!(answer.status().is_success(), "{answer:?}");
        let place = answer.headers()["azure-asyncoperation"].to_str().unwrap().to_owned();
        loop {
            let answer = self.client.get(&place).bearer_auth(token).send().await.unwrap();
            if answer.json::<Value>().await.unwrap()["status"] == "Succeeded" {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn login(&self, origin: &str) -> String {
        let form = [
            ("grant_type", "client_credentials"),
            ("client_id", "broker"),
            ("client_secret", "a secret"),
            ("scope", "x/.default"),
        ];
        let answer =
            self.client.post(format!("{origin}/tenant/oauth2/v2.0/token")).form(&form).send().await.unwrap();
        answer.json::<Value>().await.unwrap()["access_token"].as_str().unwrap().to_owned()
    }
}

fn order(target: &TargetId) -> LockdownOrder {
    let (target, ports) = (target.clone(), ["tcp/22".parse().unwrap()].into());
    LockdownOrder { target, ports, consent: Consent::default(), together: [].into() }
}

fn window(target: &TargetId, number: u8) -> LayerWindow {
    LayerWindow {
        target: target.clone(),
        grant: GrantId::from_parts(Timestamp::UNIX_EPOCH, u128::from(number)),
        port: "tcp/22".parse().unwrap(),
        source: format!("203.0.113.{number}").parse().unwrap(),
        not_after: "2100-01-01T00:00:00Z".parse().unwrap(),
    }
}

fn rule(priority: u16) -> Value {
    json!({"properties": {
        "protocol": "Tcp", "access": "Allow", "direction": "Inbound", "priority": priority, "sourcePortRange": "*",
        "sourceAddressPrefix": "192.0.2.7", "destinationAddressPrefix": "10.0.0.4", "destinationPortRange": "22"
    }})
}
