//! A broker with both layers: one state covers the host and Azure.

use std::time::Duration;

use postern_azure_sim::{Fault, refused};
use postern_proto::v1::{GrantState, Layer, LayerStatus, Layers};
use postern_tests::azure::{AzureOptions, AzureWorld};
use postern_tests::clock::{sleep_until, wait_until};
use postern_tests::{Reach, STEP_TIMEOUT, TCP, a_request, end_of};
use serde_json::json;

/// The time within which a window must close in the cloud, on a machine that is busy.
const CLOSED_WITHIN: Duration = Duration::from_secs(5);

/// A world that is not under lockdown yet.
fn unlocked() -> AzureWorld {
    AzureWorld::with(AzureOptions {
        layers: Layers::Cloud,
        firewall: false,
        locked: false,
        more: "",
        sections: "",
    })
}

#[test]
fn i5_a_grant_is_active_once_both_layers_are_open_and_closed_once_both_are_shut() {
    let world = AzureWorld::new(Layers::Both);
    let port = world.net.vm.tcp(TCP);
    assert_eq!((world.net.alice.reach(port), world.is_open()), (Reach::Filtered, false));
    let grant = world.alice.open(&world.ask());
    assert_eq!((world.net.alice.reach(port), world.is_open()), (Reach::Open, true));
    assert!(!world.admits(world.net.mallory.v4()));
    let shown = world.alice.cli().run(&["show", &grant.id]);
    assert!(shown.out.contains("open  open"), "each layer says how it stands: {}", shown.out);
    let (name, end) = (&world.rules("nsg-subnet", "postern-allow-")[0], end_of(&grant));
    assert!(name.to_uppercase().contains(&grant.id.to_uppercase()), "{name} {end}");

    let connection = world.net.alice.connect(port);
    let closed = world.alice.revoke(&grant.id).unwrap();
    assert_eq!(closed.state(), GrantState::Closed);
    assert_eq!((world.net.alice.reach(port), world.is_open()), (Reach::Filtered, false));
    assert!(connection.echoes(), "I3");
}

#[test]
fn i5_what_the_cloud_refuses_is_rolled_back_in_the_host_too() {
    let world = AzureWorld::new(Layers::Both);
    let put = "nsg-nic/securityRules/postern-allow";
    world.azure.arm.fail("PUT", put, 1, refused(403, "RequestDisallowedByPolicy"));
    let answer = world.alice.request(&world.ask().waiting(STEP_TIMEOUT)).unwrap();
    let grant = world.alice.wait_for_state(&answer.grant.unwrap().id, GrantState::Failed);
    assert!(
        grant.reason.contains("ask an operator") && !grant.reason.contains("a policy of Azure forbids"),
        "{grant:?}"
    );
    let grant = world.admin.grant(&grant.id).unwrap();
    assert!(grant.reason.contains("a policy of Azure forbids"), "{grant:?}");
    assert_eq!(world.net.alice.reach(world.net.vm.tcp(TCP)), Reach::Filtered);
    assert!(!world.is_open());
    for group in ["nsg-subnet", "nsg-nic"] {
        assert!(world.rules(group, "postern-allow-").is_empty(), "nothing of it is left in {group}");
    }
}

#[test]
fn a_target_that_is_not_under_lockdown_refuses_with_the_remedy() {
    let world = unlocked();
    let answer = world.alice.request(&world.ask().waiting(STEP_TIMEOUT)).unwrap();
    let grant = world.alice.wait_for_state(&answer.grant.unwrap().id, GrantState::Failed);
    assert!(
        grant.reason.contains("ask an operator") && !grant.reason.contains("`postern lockdown"),
        "{grant:?}"
    );
    let grant = world.admin.grant(&grant.id).unwrap();
    assert!(grant.reason.contains("`postern lockdown"), "{grant:?}");
}

#[test]
fn i8_twenty_grants_at_once_on_one_group_all_open_and_all_close_through_a_storm() {
    let world = AzureWorld::new(Layers::Cloud);
    let arm = &world.azure.arm;
    arm.settle("Microsoft.Network/networkSecurityGroups", Duration::from_millis(5));
    let storm = |method| {
        arm.fail(
            method,
            "/securityRules/postern-allow",
            5,
            refused(429, "RetryableErrorDueToAnotherOperation"),
        );
        arm.fail(method, "/securityRules/postern-allow", 5, refused(409, "AnotherOperationInProgress"));
        arm.fail(method, "/securityRules/postern-allow", 2, refused(412, "PreconditionFailed"));
        arm.fail(method, "/securityRules/postern-allow", 2, Fault::Lost);
    };
    storm("PUT");
    let source = |number: u8| std::net::IpAddr::from([198, 51, 100, number]);
    let requests: Vec<_> = (1..=20)
        .map(|number| {
            let ask = a_request().on(&world.target()).port("tcp/22").from(source(number));
            world.alice.start_request(&ask.waiting(STEP_TIMEOUT))
        })
        .collect();
    let grants: Vec<_> = requests.into_iter().map(|request| request.join().unwrap().grant.unwrap()).collect();
    for grant in &grants {
        world.alice.wait_for_state(&grant.id, GrantState::Active);
    }
    assert!((1..=20).all(|number| world.admits(source(number))));
    storm("DELETE");
    for grant in &grants {
        world.alice.revoke(&grant.id).unwrap();
    }
    wait_until("every window to close", STEP_TIMEOUT * 2, || {
        world.rules("nsg-subnet", "postern-allow-").is_empty()
            && world.rules("nsg-nic", "postern-allow-").is_empty()
    });
    for grant in &grants {
        world.alice.wait_for_state(&grant.id, GrantState::Closed);
    }
}

#[test]
fn i2_a_window_closes_soon_after_its_end() {
    let world = AzureWorld::new(Layers::Cloud);
    let grant = world.alice.open(&world.ask().seconds(2));
    sleep_until(end_of(&grant));
    wait_until("the window to close", CLOSED_WITHIN, || !world.is_open());
    world.alice.wait_for_state(&grant.id, GrantState::Closed);
}

#[test]
fn i2_an_outage_across_the_end_delays_the_cloud_alone_and_alarms() {
    let world = AzureWorld::new(Layers::Both);
    let watch = world.net.alice.watch(world.net.vm.tcp(TCP));
    let grant = world.alice.open(&world.ask().seconds(4));
    world.azure.arm.outage(true);
    sleep_until(end_of(&grant) + Duration::from_millis(1500));
    watch.stop().assert_closed_at(end_of(&grant));
    wait_until("the alarm", STEP_TIMEOUT, || !world.admin.audited("cloud.alarm").is_empty());
    let standing = world.alice.grant(&grant.id).unwrap();
    assert_eq!((standing.state(), world.is_open()), (GrantState::Closing, true));
    let layer = world.admin.layer(&world.target(), Layer::Cloud).unwrap();
    assert!(layer.status() == LayerStatus::Unreachable && !layer.detail.is_empty(), "{layer:?}");
    assert!(!world.broker.log().contains("a secret"), "no secret is logged");

    world.azure.arm.outage(false);
    world.alice.wait_for_state(&grant.id, GrantState::Closed);
    assert!(!world.is_open());
}

#[test]
fn i2_a_broker_with_an_empty_store_closes_what_it_finds_and_says_so() {
    let mut world = AzureWorld::new(Layers::Cloud);
    let grant = world.alice.open(&world.ask());
    assert!(world.is_open());
    world.broker.process().kill9();
    world.broker.empty_store();
    world.broker.serve();
    wait_until("the window to close", STEP_TIMEOUT, || !world.is_open());
    wait_until("a line in the log", STEP_TIMEOUT, || {
        !world.admin.audited("cloud.unknown_window_closed").is_empty()
    });
    assert!(world.admin.audited("cloud.unknown_window_closed")[0].contains(&grant.id));
    // And what was locked down before its time can be released.
    let released = world.admin.cli().run(&["release", &world.target()]);
    assert!(released.succeeded(), "{released:?}");
    assert!(
        world.rules("nsg-subnet", "postern-").is_empty() && world.rules("nsg-nic", "postern-").is_empty()
    );
    assert!(world.is_open(), "everyone is let in again");
}

#[test]
fn changes_by_others_to_posterns_rules_are_undone_and_audited() {
    let world = AzureWorld::new(Layers::Cloud);
    let grant = world.alice.open(&world.ask());
    let (arm, nsg) = (&world.azure.arm, world.azure.lab.nsg_id("nsg-subnet"));
    let change = |act: &dyn Fn(&mut Vec<serde_json::Value>)| {
        arm.edit(&nsg, |nsg| act(nsg["properties"]["securityRules"].as_array_mut().unwrap()));
    };
    let named = |rule: &serde_json::Value, begins: &str| rule["name"].as_str().unwrap().starts_with(begins);
    let reported = || world.admin.audited("cloud.drift");
    let everyone_else = world.net.mallory.v4();

    change(&|rules| rules.retain(|rule| !named(rule, "postern-allow-")));
    wait_until("the window to come back", STEP_TIMEOUT, || world.is_open());
    change(&|rules| {
        for rule in rules.iter_mut().filter(|rule| named(rule, "postern-allow-")) {
            rule["properties"]["sourceAddressPrefixes"] = json!([]);
            rule["properties"]["sourceAddressPrefix"] = json!("*");
        }
    });
    let narrow = || world.is_open() && world.rules("nsg-subnet", "postern-allow-").len() == 1;
    wait_until("the widened window to be narrow again", STEP_TIMEOUT, || {
        let rules = arm.get(&nsg).unwrap()["properties"]["securityRules"].clone();
        narrow()
            && rules
                .as_array()
                .unwrap()
                .iter()
                .filter(|rule| named(rule, "postern-allow-"))
                .all(|rule| rule["properties"]["sourceAddressPrefix"] != "*")
    });
    // `terraform apply` with inline rules takes all of Postern's rules.
    for group in ["nsg-subnet", "nsg-nic"] {
        arm.edit(&world.azure.lab.nsg_id(group), |nsg| {
            nsg["properties"]["securityRules"]
                .as_array_mut()
                .unwrap()
                .retain(|rule| !named(rule, "postern-"));
        });
    }
    assert!(world.admits(everyone_else));
    wait_until("all of it to come back", STEP_TIMEOUT, || world.is_open() && !world.admits(everyone_else));
    wait_until("it to be reported", STEP_TIMEOUT, || reported().len() >= 3);

    // Another principal lets everyone in before Postern's rules, in both groups: reported, and not touched.
    for group in ["nsg-subnet", "nsg-nic"] {
        world.azure.lab.rule(group, "break-glass", 105, "Allow", "*", "*", "22");
    }
    let detail = || world.admin.layer(&world.target(), Layer::Cloud).unwrap().detail;
    wait_until("the target to say so", STEP_TIMEOUT, || {
        detail().contains("not locked: rule break-glass (priority 105)")
    });
    // The log has it a moment later than the answer to a call.
    wait_until("that to be reported", STEP_TIMEOUT, || {
        reported().iter().any(|line| line.contains("break-glass"))
    });
    let lines = reported().len();
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(reported().len(), lines, "what lasts is reported once: {:?}", reported());
    for group in ["nsg-subnet", "nsg-nic"] {
        arm.edit(&world.azure.lab.nsg_id(group), |nsg| {
            let rules = nsg["properties"]["securityRules"].as_array_mut().unwrap();
            rules.retain(|rule| rule["name"] != "break-glass");
        });
    }
    wait_until("the target to be well again", STEP_TIMEOUT, || detail().is_empty());
    assert_eq!(world.alice.grant(&grant.id).unwrap().state(), GrantState::Active);
}

#[test]
fn a_machine_that_is_deleted_while_a_window_is_open_ends_the_grant_and_strands_no_rule() {
    let world = AzureWorld::new(Layers::Cloud);
    let grant = world.alice.open(&world.ask().seconds(4));
    world.azure.arm.remove(&world.vm.id);
    world.azure.arm.remove(&world.vm.interface);
    world.alice.wait_for_state(&grant.id, GrantState::Closed);
    wait_until("Postern's rules to go", STEP_TIMEOUT, || {
        world.rules("nsg-subnet", "postern-").is_empty() && world.rules("nsg-nic", "postern-").is_empty()
    });
}

#[test]
fn the_command_assesses_locks_down_and_releases() {
    let world = unlocked();
    let (cli, target) = (world.admin.cli(), world.target());
    let nsg = || ["nsg-subnet", "nsg-nic"].map(|group| world.azure.arm.rules(&world.azure.lab.nsg_id(group)));
    let before = nsg();
    let assessed = cli.run(&["assess"]);
    assert!(assessed.out.contains("unhealthy") && assessed.out.contains("ssh"), "{assessed:?}");

    let dry = cli.run(&["lockdown", &target, "--dry-run"]);
    assert!(dry.succeeded() && dry.out.contains("nsg-nic") && dry.out.contains("not locked"), "{dry:?}");
    assert_eq!(nsg(), before);
    let customers_win = cli.run(&["lockdown", &target]);
    assert!(customers_win.succeeded(), "as in the reference: {customers_win:?}");
    let says = customers_win.out + &customers_win.err;
    assert!(says.contains("not locked: rule ssh (priority 1000)") && says.contains("precedence"), "{says}");
    assert!(world.is_open());
    assert!(cli.run(&["assess"]).out.contains("unhealthy"));

    let posterns_win = cli.run(&["lockdown", &target, "--accept", "precedence"]);
    assert!(posterns_win.succeeded() && !world.is_open(), "{posterns_win:?}");
    let status = || world.admin.layer(&target, Layer::Cloud).map(|layer| layer.status());
    wait_until("the cloud layer to be in sync", STEP_TIMEOUT, || status() == Some(LayerStatus::InSync));
    assert!(!cli.run(&["assess"]).out.contains("unhealthy"));

    let grant = world.alice.open(&world.ask());
    let refused = cli.run(&["release", &target]);
    assert!(!refused.succeeded() && (refused.out + &refused.err).contains(&grant.id));
    world.alice.revoke(&grant.id).unwrap();
    assert!(cli.run(&["release", &target]).succeeded());
    assert_eq!(nsg(), before);
    for action in ["target.lockdown.requested", "target.lockdown.done", "target.release.done"] {
        assert!(!world.admin.audited(action).is_empty(), "{action}");
    }
}
