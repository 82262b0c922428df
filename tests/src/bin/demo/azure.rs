//! The chapter with Azure: a virtual machine behind two network security groups, and one behind an Azure Firewall. Azure
//! Resource Manager is the double of the tests here.

use postern_proto::v1::Layers;
use postern_tests::azure::{AzureOptions, AzureWorld};
use postern_tests::clock::{monotonic, wait_until};
use postern_tests::{Reach, STEP_TIMEOUT, TCP};

use crate::story::Story;

pub(super) fn tell(story: &mut Story) {
    story.tell(
        "The same on Azure: a VM whose groups let the world in on port 22. Azure Resource Manager is a double here, made for tests.",
    );
    let options =
        AzureOptions { layers: Layers::Both, firewall: false, locked: false, more: "", sections: "" };
    let Some(mut world) =
        story.step("the double, a broker with a subscription in it, and an agent on the VM start", || {
            let world = AzureWorld::with(options);
            let target = world.target();
            (world, target)
        })
    else {
        return;
    };
    lock(story, &world);
    open_and_close(story, &world);
    resist(story, &mut world);
    release(story, &world);
    drop(world);
    behind_a_firewall(story);
}

fn lock(story: &mut Story, world: &AzureWorld) {
    story.check("postern assess: the VM is unhealthy, and which rules of which groups make it so", || {
        let assessed = world.admin.cli().json(&["assess"])[0].to_string();
        assert!(assessed.contains("unhealthy") && assessed.contains("nsg-subnet"), "{assessed}");
        world.admin.cli().run(&["assess"]).out.lines().nth(1).unwrap_or_default().trim().to_owned()
    });
    story.check(
        "postern lockdown --dry-run: every change in words; rules that are there win, and that is said",
        || {
            let planned = world.admin.cli().run(&["lockdown", &world.target(), "--dry-run"]);
            assert!(world.rules("nsg-nic", "postern-").is_empty(), "nothing was touched");
            assert!(planned.out.contains("not locked: rule ssh (priority 1000)"), "{planned:?}");
            planned.out.trim().to_owned()
        },
    );
    story.check("postern lockdown --accept precedence: Postern's rules come first, and the customer's stay as they are", || {
        let locked = world.admin.cli().run(&["lockdown", &world.target(), "--accept", "precedence"]);
        assert!(locked.succeeded() && !world.is_open(), "{locked:?}");
        world.rules("nsg-nic", "postern-").join(", ")
    });
}

fn open_and_close(story: &mut Story, world: &AzureWorld) {
    let port = world.net.vm.tcp(TCP);
    let mut grant = String::new();
    story.check("alice asks: active once the host and both groups are open", || {
        world.azure.arm.forget_calls();
        let start = monotonic();
        let answer = request(world);
        let took = start.elapsed().as_millis();
        assert_eq!(answer["grant"]["state"], "active", "{answer}");
        answer["grant"]["id"].as_str().unwrap_or_default().clone_into(&mut grant);
        assert_eq!(
            (world.net.alice.reach(port), world.net.mallory.reach(port)),
            (Reach::Open, Reach::Filtered)
        );
        assert!(world.is_open() && !world.admits(world.net.mallory.v4()));
        let changes = world.azure.arm.calls().iter().filter(|call| call.is_change()).count();
        let name = world.rules("nsg-nic", "postern-allow-").join(", ");
        format!("{took} ms for the whole command; {changes} changes in Azure, each a rule {name}")
    });
    story.check("someone deletes the rule and runs terraform over one group: undone, and audited", || {
        for group in ["nsg-subnet", "nsg-nic"] {
            world.azure.arm.edit(&world.azure.lab.nsg_id(group), |nsg| {
                let rules = nsg["properties"]["securityRules"].as_array_mut();
                let prefix = if group == "nsg-nic" { "postern-allow-" } else { "postern-" };
                rules.into_iter().for_each(|rules| {
                    rules.retain(|rule| !rule["name"].as_str().is_some_and(|it| it.starts_with(prefix)))
                });
            });
        }
        let well = || world.is_open() && !world.rules("nsg-subnet", "postern-deny-").is_empty();
        let took = wait_until("the sweep to put it right", STEP_TIMEOUT, well);
        wait_until("the drift to be audited", STEP_TIMEOUT, || world.admin.audited("cloud.drift").len() >= 2);
        format!("after {:.1} s; a sweep happens every 2 s here", took.as_secs_f64())
    });
    story.check("alice revokes: shut in both layers, and her connection stays", || {
        let connection = world.net.alice.connect(port);
        world.alice.cli().json(&["revoke", &grant]);
        assert_eq!((world.net.alice.reach(port), world.is_open()), (Reach::Filtered, false));
        assert!(connection.echoes());
        String::new()
    });
}

fn request(world: &AzureWorld) -> serde_json::Value {
    let target = world.target();
    world
        .alice
        .cli()
        .json(&["request", &target, "--port", "22", "--for", "1h", "--reason", "deploy"])
        .remove(0)
}

fn resist(story: &mut Story, world: &mut AzureWorld) {
    story.check(
        "the broker is killed and its store is lost: a new one closes the window it finds, by its rules' names alone",
        || {
            request(world);
            assert!(world.is_open());
            world.broker.process().kill9();
            world.broker.empty_store();
            world.broker.serve();
            let took = wait_until("the window to close", STEP_TIMEOUT, || !world.is_open());
            wait_until("the drift to be audited", STEP_TIMEOUT, || {
                !world.admin.audited("cloud.unknown_window_closed").is_empty()
            });
            format!("{} ms after its start", took.as_millis())
        },
    );
}

fn release(story: &mut Story, world: &AzureWorld) {
    story.check(
        "postern release: nothing of Postern's is left in either group, and the customer's rules are as they were",
        || {
            let released = world.admin.cli().run(&["release", &world.target()]);
            assert!(released.succeeded() && world.is_open(), "{released:?}");
            let rules = |group: &str| world.azure.arm.rules(&world.azure.lab.nsg_id(group)).join(", ");
            assert_eq!((rules("nsg-subnet").as_str(), rules("nsg-nic").as_str()), ("ssh", "all"));
            "ssh, all".to_owned()
        },
    );
}

fn behind_a_firewall(story: &mut Story) {
    story.tell("A VM behind an Azure Firewall with classic rules: it sees the firewall, and not the caller.");
    let options = AzureOptions { layers: Layers::Both, firewall: true, locked: true, more: "", sections: "" };
    let Some(world) = story.step("the same with a firewall in front; the VM is under lockdown", || {
        (AzureWorld::with(options), "the host mallory stands where the firewall does".to_owned())
    }) else {
        return;
    };
    let port = world.net.vm.tcp(TCP);
    story.check(
        "alice asks, and the answer names where to connect: a port of the firewall, for her alone",
        || {
            assert_eq!(world.net.mallory.reach(port), Reach::Filtered);
            let answer = request(&world);
            assert_eq!(answer["grant"]["state"], "active", "{answer}");
            let connect_to =
                answer["grant"]["windows"][0]["connect_to"].as_str().unwrap_or_default().to_owned();
            assert!(!connect_to.is_empty(), "{answer}");
            // The groups and the host let in the source that they see: the firewall.
            assert!(world.admits(world.net.mallory.v4()) && !world.admits(world.net.alice.v4()));
            assert_eq!(world.net.mallory.reach(port), Reach::Open);
            connect_to
        },
    );
}
