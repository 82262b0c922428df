//! Lockdown and release: the ports that they shut, the rules that they leave, and their reports.

use postern_azure::{Azure, AzureSettings, Flush, Priorities};
use postern_azure_sim::{AzureSim, Lab, refused};
use postern_provider::{Action, CloudChange, CloudError, ConcernKind, Consent, Health, Provider as _};
use std::sync::Arc;

use crate::world::{DoubleWorld, SUBSCRIPTION, posterns_first};

const OUTSIDE: &str = "203.0.113.9";

/// A machine behind one group with the rules that `fill` makes.
async fn behind(fill: impl FnOnce(&Lab)) -> DoubleWorld {
    let sim = AzureSim::new();
    let lab = Lab::new(&sim, SUBSCRIPTION, "web");
    lab.nsg("nsg");
    fill(&lab);
    lab.vnet("net", &["10.0.0.0/16"]);
    let subnet = lab.subnet("net", "web", "10.0.0.0/24", Some("nsg"), None);
    let vms = vec![lab.vm("vm-1", &subnet, &["10.0.0.4"], None)];
    DoubleWorld::around(sim, lab, vms).await
}

fn with(world: &DoubleWorld, change: impl FnOnce(&mut AzureSettings)) -> Arc<Azure> {
    let mut settings = world.settings.clone();
    change(&mut settings);
    Arc::new(Azure::connect(settings).unwrap())
}

fn words(changes: &[CloudChange]) -> Vec<(Action, String)> {
    changes.iter().map(|change| (change.action, format!("{} {}", change.resource, change.detail))).collect()
}

#[tokio::test]
async fn without_a_customers_rule_posterns_come_first_and_shut_what_the_defaults_let_in() {
    let world = behind(|_| {}).await;
    assert!(world.admits("10.0.0.9", 0, 22), "AllowVnetInBound");
    let done = world.azure.lockdown(&world.order(0, Consent::default())).await.unwrap();
    assert_eq!(done.concerns, []);
    assert!(!world.admits("10.0.0.9", 0, 22) && !world.admits(OUTSIDE, 0, 3389));
    assert!(world.admits("10.0.0.9", 0, 80), "what is not protected stays");
    let again = world.azure.lockdown(&world.order(0, Consent::default())).await.unwrap();
    assert_eq!(again.changes, []);
}

#[tokio::test]
async fn the_customers_rules_win_unless_the_administrator_says_otherwise() {
    let world = behind(|lab| lab.rule("nsg", "ssh", 1000, "Allow", "192.0.2.0/24", "*", "22")).await;
    let before = world.group_rules("nsg");
    let done = world.azure.lockdown(&world.order(0, Consent::default())).await.unwrap();
    let [concern] = &done.concerns[..] else { panic!("{:?}", done.concerns) };
    assert_eq!(concern.kind, ConcernKind::Precedence);
    for part in ["ssh", "1000", "nsg", "tcp/22", "192.0.2.0/24"] {
        assert!(concern.what.contains(part), "{part}: {}", concern.what);
    }
    assert!(world.admits("192.0.2.1", 0, 22), "the customer's rule wins, as in the reference");
    assert!(!world.admits("10.0.0.9", 0, 22), "what no customer's rule allows is shut");
    assert!(world.group_rules("nsg").contains(&before[0]), "the customer's rule is as it was");
    let drift = world.observe(0).await.drift;
    assert!(
        drift.iter().any(|it| !it.repairable && it.what.contains("not locked") && it.what.contains("ssh"))
    );
    let health = world.azure.assess(&["tcp/22".parse().unwrap()].into()).await.assessments.remove(0).health;
    assert!(matches!(&health, Health::Unhealthy { reasons } if reasons[0].contains("ssh")), "{health:?}");

    // Postern's rules first: there is room before the customer's rule, so that it need not move.
    let done = world.lock(0).await;
    assert!(done.changes.iter().all(|change| change.action != Action::Move), "{done:?}");
    assert!(!world.admits("192.0.2.1", 0, 22));
    assert!(world.group_rules("nsg").contains(&before[0]), "the customer's rule is still as it was");
    world.azure.release(&world.target(0)).await.unwrap();
    assert_eq!(world.group_rules("nsg"), before);
}

#[tokio::test]
async fn a_rule_that_leaves_no_room_is_moved_aside_and_goes_back_exactly() {
    let world = behind(|lab| {
        lab.rule("nsg", "ssh", 100, "Allow", "*", "*", "22");
        lab.rule("nsg", "web", 101, "Allow", "*", "*", "443");
    })
    .await;
    let before = world.group_rules("nsg");
    let order = world.order(0, posterns_first());
    let planned = world.azure.plan_lockdown(&order).await.unwrap();
    assert_eq!(world.group_rules("nsg"), before, "a plan changes nothing");
    let moves: Vec<_> =
        words(&planned.changes).into_iter().filter(|(action, _)| *action == Action::Move).collect();
    assert!(matches!(&moves[..], [(_, what)] if what.contains("ssh") && what.contains("100")), "{moves:?}");

    assert_eq!(world.azure.lockdown(&order).await.unwrap(), planned, "what was planned is what is done");
    assert!(!world.admits(OUTSIDE, 0, 22) && world.admits(OUTSIDE, 0, 443));
    let window = world.window(0, 1, "tcp/22", OUTSIDE);
    world.open(&window).await;
    assert!(world.admits(OUTSIDE, 0, 22) && !world.admits("198.51.100.1", 0, 22));
    world.close(&window).await;

    // A broker with an empty store finds the old priority.
    let released = world.another().release(&world.target(0)).await.unwrap();
    assert!(released.changes.iter().any(|change| change.action == Action::Move), "{released:?}");
    assert_eq!(world.group_rules("nsg"), before, "every field, and the priority");
}

#[tokio::test]
async fn what_a_move_would_turn_around_is_refused() {
    let world = behind(|lab| {
        lab.rule("nsg", "all", 100, "Allow", "*", "*", "*");
        lab.rule("nsg", "never", 101, "Deny", "*", "*", "8000-9000");
    })
    .await;
    let before = world.group_rules("nsg");
    let refused = world.azure.lockdown(&world.order(0, posterns_first())).await;
    let Err(CloudError::Refused { reason }) = refused else { panic!("{refused:?}") };
    assert!(reason.contains("all") && reason.contains("never"), "{reason}");
    assert_eq!(world.group_rules("nsg"), before, "nothing is half done");
}

#[tokio::test]
async fn a_rule_for_every_machine_of_a_subnet_is_not_shut_for_the_others() {
    let world = DoubleWorld::new().await;
    world.lock(0).await;
    assert!(!world.admits(OUTSIDE, 0, 22), "vm-1 is shut");
    assert!(world.admits(OUTSIDE, 1, 22), "vm-2 is not");
    world.lock(1).await;
    world.azure.release(&world.target(0)).await.unwrap();
    assert!(world.admits(OUTSIDE, 0, 22) && !world.admits(OUTSIDE, 1, 22), "and the other way round");
}

#[tokio::test]
async fn a_rule_that_two_machines_moved_goes_back_with_the_last_of_them() {
    let sim = AzureSim::new();
    let lab = Lab::new(&sim, SUBSCRIPTION, "web");
    lab.nsg("nsg");
    lab.rule("nsg", "ssh", 100, "Allow", "*", "*", "22");
    lab.vnet("net", &["10.0.0.0/16"]);
    let subnet = lab.subnet("net", "web", "10.0.0.0/24", Some("nsg"), None);
    let vms =
        vec![lab.vm("vm-1", &subnet, &["10.0.0.4"], None), lab.vm("vm-2", &subnet, &["10.0.0.5"], None)];
    let world = DoubleWorld::around(sim, lab, vms).await;
    let before = world.group_rules("nsg");
    world.lock(0).await;
    world.lock(1).await;
    assert!(!world.admits(OUTSIDE, 0, 22) && !world.admits(OUTSIDE, 1, 22));
    world.azure.release(&world.target(0)).await.unwrap();
    assert!(!world.admits(OUTSIDE, 1, 22), "the other machine stays shut");
    world.azure.release(&world.target(1)).await.unwrap();
    assert_eq!(world.group_rules("nsg"), before);
}

#[tokio::test]
async fn both_families_and_both_groups_are_shut() {
    let world = DoubleWorld::new().await;
    assert!(world.admits("2001:db8::9", 0, 22));
    world.lock(0).await;
    for from in [OUTSIDE, "10.0.0.5", "2001:db8::9", "fd00::5"] {
        for port in [22, 3389] {
            assert!(!world.admits(from, 0, port), "{from} {port}");
        }
    }
    assert!(world.admits(OUTSIDE, 0, 443));
    let names = [world.managed_rules("nsg-subnet"), world.managed_rules("nsg-nic")];
    assert!(
        names.iter().all(|names| names.iter().any(|name| name.starts_with("postern-deny-"))),
        "{names:?}"
    );
}

#[tokio::test]
async fn a_plan_prints_every_change_and_makes_none() {
    let world = DoubleWorld::new().await;
    let before = (world.group_rules("nsg-subnet"), world.group_rules("nsg-nic"));
    world.sim.forget_calls();
    let order = world.order(0, posterns_first());
    let planned = world.azure.plan_lockdown(&order).await.unwrap();
    assert!(world.sim.calls().iter().all(|call| !call.is_change()), "{:?}", world.sim.calls());
    assert_eq!((world.group_rules("nsg-subnet"), world.group_rules("nsg-nic")), before);
    let all = words(&planned.changes);
    assert!(all.iter().any(|(_, what)| what.contains("nsg-nic")), "{all:?}");
    assert!(all.iter().any(|(_, what)| what.contains("nsg-subnet")), "{all:?}");
    assert_eq!(world.azure.lockdown(&order).await.unwrap(), planned);
    let release = world.azure.plan_release(&world.target(0)).await.unwrap();
    assert_eq!(world.azure.release(&world.target(0)).await.unwrap(), release);
    assert_eq!((world.group_rules("nsg-subnet"), world.group_rules("nsg-nic")), before);
}

#[tokio::test]
async fn a_machine_without_a_group_cannot_be_locked_and_the_words_say_why() {
    let sim = AzureSim::new();
    let lab = Lab::new(&sim, SUBSCRIPTION, "web");
    lab.vnet("net", &["10.0.0.0/16"]);
    let subnet = lab.subnet("net", "web", "10.0.0.0/24", None, None);
    let vms = vec![lab.vm("vm-1", &subnet, &["10.0.0.4"], None)];
    let world = DoubleWorld::around(sim, lab, vms).await;
    let refused = world.azure.lockdown(&world.order(0, posterns_first())).await;
    let Err(CloudError::Refused { reason }) = refused else { panic!("{refused:?}") };
    assert!(reason.contains("no network security group"), "{reason}");
    let health = world.azure.assess(&["tcp/22".parse().unwrap()].into()).await.assessments.remove(0).health;
    assert!(matches!(health, Health::NotApplicable { .. }), "{health:?}");
}

#[tokio::test]
async fn a_dry_run_of_several_machines_is_the_exact_sum_of_what_is_done() {
    let world = DoubleWorld::new().await;
    // No priority is free before the rule that lets everyone in: it must move, for whichever machine comes first.
    world.lab.rule("nsg-subnet", "first", 100, "Allow", "*", "*", "22");
    let orders = [world.order(0, posterns_first()), world.order(1, posterns_first())];
    let planned = world.azure.plan_lockdowns(&orders).await;
    for (order, planned) in orders.iter().zip(planned) {
        let done = world.azure.lockdown(order).await.unwrap();
        assert_eq!(planned.unwrap(), done, "{}", order.target);
    }
    let alone = world.another().plan_lockdown(&orders[1]).await.unwrap();
    assert_eq!(alone.changes, [], "and nothing is left to do");

    let targets = [world.target(0), world.target(1)];
    let planned = world.azure.plan_releases(&targets).await;
    for (target, planned) in targets.iter().zip(planned) {
        let done = world.azure.release(target).await.unwrap();
        assert_eq!(planned.unwrap().changes, done.changes, "{target}");
    }
    assert_eq!(world.managed_rules("nsg-subnet"), [] as [&str; 0]);
}

#[tokio::test]
async fn i3_a_group_that_flushes_connections_is_refused_or_warned_of_as_configured() {
    let world = behind(|_| {}).await;
    world.sim.edit(&world.lab.nsg_id("nsg"), |nsg| {
        nsg["properties"]["flushConnection"] = true.into();
    });
    let refused = world.azure.lockdown(&world.order(0, posterns_first())).await;
    let Err(CloudError::Refused { reason }) = refused else { panic!("{refused:?}") };
    assert!(reason.contains("flushConnection") && reason.contains("nsg"), "{reason}");
    assert_eq!(world.managed_rules("nsg"), [] as [&str; 0]);

    let warned = with(&world, |settings| settings.flush_connection = Flush::Warn);
    let done = warned.lockdown(&world.order(0, Consent::default())).await.unwrap();
    let window = world.window(0, 1, "tcp/22", OUTSIDE);
    let [concern] = &done.concerns[..] else { panic!("{:?}", done.concerns) };
    assert!(concern.kind == ConcernKind::Cut && concern.what.contains("flushConnection"), "{concern:?}");
    assert_eq!(world.managed_rules("nsg"), [] as [&str; 0], "a concern that cuts holds it up");
    warned.lockdown(&world.order(0, Consent::all())).await.unwrap();
    warned.open(&window.target, &[window.clone()].into()).await.unwrap();
    let drift = warned.observe(&window.target).await.unwrap().drift;
    assert!(drift.iter().any(|it| !it.repairable && it.what.contains("flushConnection")), "{drift:?}");
    warned.close(&window.target, &[window.clone()].into()).await.unwrap();

    // If flushConnection is turned on later, no window opens.
    let refused = world.azure.open(&window.target, &[window.clone()].into()).await;
    assert!(matches!(&refused, Err(CloudError::Refused { reason }) if reason.contains("flushConnection")));
}

#[tokio::test]
async fn what_others_deny_before_any_window_is_said() {
    let world = behind(|lab| lab.rule("nsg", "block", 100, "Deny", "203.0.113.0/24", "*", "*")).await;
    world.lock(0).await;
    let window = world.window(0, 1, "tcp/22", OUTSIDE);
    let refused = world.azure.open(&window.target, &[window.clone()].into()).await;
    let Err(CloudError::Refused { reason }) = refused else { panic!("{refused:?}") };
    assert!(reason.contains("block") && reason.contains("100"), "{reason}");
    assert!(!world.admits(OUTSIDE, 0, 22));
    world.open(&world.window(0, 1, "tcp/22", "198.51.100.1")).await;
    assert!(world.admits("198.51.100.1", 0, 22), "others may be let in");
}

#[tokio::test]
async fn priorities_are_taken_from_the_band_and_never_from_others() {
    let world = behind(|lab| {
        lab.rule("nsg", "a", 100, "Allow", "*", "*", "80");
        lab.rule("nsg", "b", 102, "Allow", "*", "*", "81");
        lab.rule("nsg", "c", 400, "Allow", "*", "*", "82");
    })
    .await;
    let bands = Priorities { windows: 100..=109, denies: 400..=409 };
    let azure = with(&world, |settings| settings.priorities = bands.clone());
    azure.lockdown(&world.order(0, posterns_first())).await.unwrap();
    let windows: Vec<_> =
        (1..=9).map(|grant| world.window(0, grant, "tcp/22", &format!("203.0.113.{grant}"))).collect();
    for window in &windows[..8] {
        azure.open(&window.target, &[window.clone()].into()).await.unwrap();
    }
    let refused = azure.open(&windows[8].target, &[windows[8].clone()].into()).await;
    let Err(CloudError::Refused { reason }) = refused else { panic!("{refused:?}") };
    assert!(reason.contains("no free priority"), "{reason}");
    for rule in world.group_rules("nsg") {
        let (name, priority) =
            (rule["name"].as_str().unwrap(), rule["properties"]["priority"].as_u64().unwrap());
        let (name, priority) = (name, u16::try_from(priority).unwrap());
        let is_fine = match name {
            "a" => priority == 100,
            "b" => priority == 102,
            "c" => priority == 400,
            _ if name.starts_with("postern-allow-") => bands.windows.contains(&priority),
            _ => bands.denies.contains(&priority),
        };
        assert!(is_fine, "{name} at {priority}");
    }
}

#[tokio::test]
async fn a_grant_with_many_ports_and_sources_is_one_augmented_rule_that_says_what_it_is() {
    let world = DoubleWorld::new().await;
    world.lock(1).await;
    let sources = ["203.0.113.7", "198.51.100.0/24", "192.0.2.1"];
    let windows = ["tcp/22", "tcp/3389"]
        .iter()
        .flat_map(|port| sources.iter().map(|source| world.window(1, 7, port, source)))
        .collect();
    world.sim.forget_calls();
    world.azure.open(&world.target(1), &windows).await.unwrap();
    let changes: Vec<_> = world.sim.calls().into_iter().filter(|call| call.is_change()).collect();
    assert_eq!(changes.len(), 1, "{changes:?}");
    let rules = world.group_rules("nsg-subnet");
    let rule =
        rules.iter().find(|rule| rule["name"].as_str().unwrap().starts_with("postern-allow-")).unwrap();
    let (name, of) = (rule["name"].as_str().unwrap(), &rule["properties"]);
    let grant = windows.first().unwrap().grant.to_string().to_ascii_lowercase();
    assert!(name.to_ascii_lowercase().contains(&grant) && name.contains("20300101T000001Z"), "{name}");
    assert!(name.len() <= 80, "{name}");
    let description = of["description"].as_str().unwrap();
    assert!(description.chars().count() <= 140 && description.contains("vm-2"), "{description}");
    assert_eq!(of["sourceAddressPrefixes"].as_array().unwrap().len(), 3);
    assert_eq!(of["destinationPortRanges"].as_array().unwrap().len(), 2);
    assert_eq!(of["destinationAddressPrefixes"], serde_json::json!(["10.0.0.5/32"]));
    assert!(world.admits("198.51.100.77", 1, 3389) && !world.admits("198.51.101.1", 1, 3389));
}

#[tokio::test]
async fn ids_are_compared_without_case_and_names_that_cannot_be_sent_are_refused() {
    let world = DoubleWorld::new().await;
    let shouted = format!("azure:{}", world.vms[0].id.replace("Web", "WEB").replace("Vm-1", "VM-1"));
    let target: postern_core::TargetId = shouted.parse().unwrap();
    assert_eq!(target, world.target(0), "one machine is one target");
    world.lock(0).await;
    world.open(&world.window(0, 1, "tcp/22", OUTSIDE)).await;
    // The portal writes ids in any letter case.
    let shout = |value: &mut serde_json::Value| {
        *value = value.as_str().unwrap().to_ascii_uppercase().into();
    };
    world.sim.edit(&world.vms[0].interface, |nic| {
        shout(&mut nic["properties"]["networkSecurityGroup"]["id"]);
        for end in nic["properties"]["ipConfigurations"].as_array_mut().unwrap() {
            shout(&mut end["properties"]["subnet"]["id"]);
        }
    });
    world.sim.edit(&world.vms[0].id, |vm| {
        shout(&mut vm["properties"]["networkProfile"]["networkInterfaces"][0]["id"]);
    });
    let observed = world.another().observe(&world.target(0)).await.unwrap();
    assert_eq!((observed.windows.len(), observed.drift), (1, vec![]));

    world.sim.forget_calls();
    for name in ["..", "a/b", "a%2fb", "a?b", "a#b", "a\\b", ""] {
        let id = format!(
            "azure:/subscriptions/{SUBSCRIPTION}/resourceGroups/web/providers/Microsoft.Compute/virtualMachines/{name}"
        );
        assert!(id.parse::<postern_core::TargetId>().is_err(), "{name:?}");
    }
    // If Azure itself names such a resource, the broker sends nothing there.
    world.sim.edit(&world.vms[1].interface, |nic| {
        nic["properties"]["networkSecurityGroup"] = serde_json::json!({"id": world.lab.nsg_id("../../evil")});
    });
    let _ = world.another().observe(&world.target(1)).await;
    assert!(world.sim.calls().iter().all(|call| !call.path.contains("evil") && !call.path.contains("..")));
}

#[tokio::test]
async fn i7_a_subscription_that_is_not_configured_is_refused() {
    let world = DoubleWorld::new().await;
    let other = world.target(0).to_string().replace(SUBSCRIPTION, "00000000-0000-0000-0000-00000000000b");
    world.sim.forget_calls();
    let refused = world.azure.observe(&other.parse().unwrap()).await;
    assert!(
        matches!(&refused, Err(CloudError::Refused { reason }) if reason.contains("azure.subscriptions"))
    );
    assert!(world.sim.calls().is_empty());
}

#[tokio::test]
async fn i6_a_policy_that_forbids_a_move_is_named_with_its_rule_and_holds_no_close_or_release_up() {
    let world = behind(|lab| lab.rule("nsg", "ssh", 100, "Allow", "192.0.2.0/24", "*", "22")).await;
    let before = world.group_rules("nsg");
    let forbidden = refused(403, "RequestDisallowedByPolicy");
    world.sim.fail("PUT", "/securityRules/ssh", usize::MAX, forbidden);
    let failed = world.azure.lockdown(&world.order(0, posterns_first())).await;
    let Err(CloudError::Refused { reason }) = failed else { panic!("{failed:?}") };
    assert!(
        reason.contains("securityrules/ssh") && reason.contains("forbids the move of this rule"),
        "{reason}"
    );
    assert!(!reason.contains("begin with postern-"), "{reason}");
    let window = world.window(0, 1, "tcp/22", OUTSIDE);
    world.open(&window).await;
    assert!(world.azure.repair(&window.target).await.is_err(), "the move is still due");
    world.close(&window).await;
    assert!(!world.admits(OUTSIDE, 0, 22));
    world.azure.release(&window.target).await.unwrap();
    assert_eq!(world.group_rules("nsg"), before);
}
