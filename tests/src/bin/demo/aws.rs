//! The chapter with a cloud: an EC2 instance, with both layers. A moto server stands in for EC2.

use std::time::Duration;

use postern_proto::v1::Layers;
use postern_tests::clock::{monotonic, wait_until};
use postern_tests::ec2::{AwsWorld, RuleSpec};
use postern_tests::{Reach, STEP_TIMEOUT, TCP};

use crate::story::Story;

pub(super) fn tell(story: &mut Story) {
    story.tell("The same in a cloud: an EC2 instance whose group lets the world in on port 22. EC2 is a moto server here.");
    let Some(mut world) =
        story.step("EC2, a broker with an account of it, and an agent on the instance start", || {
            let world = AwsWorld::unlocked(Layers::Both);
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
}

fn lock(story: &mut Story, world: &AwsWorld) {
    story.check("postern assess: the instance is unhealthy, and which rule makes it so", || {
        let assessed = &world.admin.cli().json(&["assess"])[0];
        let text = assessed.to_string();
        assert!(text.contains("unhealthy") && text.contains("anyone (0.0.0.0/0)"), "{text}");
        world.admin.cli().run(&["assess"]).out.lines().nth(1).unwrap_or_default().trim().to_owned()
    });
    story.check("postern lockdown --dry-run: every change in words, and what it asks first", || {
        let planned = world.admin.cli().run(&["lockdown", &world.target(), "--dry-run"]);
        assert!(world.cloud.groups_of_postern().is_empty(), "nothing was touched");
        planned.out.trim().to_owned()
    });
    story.check(
        "postern lockdown --accept cut: the rule is parked, and the port is shut in the cloud too",
        || {
            let locked = world.admin.cli().run(&["lockdown", &world.target(), "--accept", "cut"]);
            assert!(locked.succeeded(), "{locked:?}");
            assert!(world.cloud.rules(&world.group).is_empty() && world.open_sources().is_empty());
            let groups: Vec<String> = world.cloud.groups_of_postern().into_iter().collect();
            groups.join(", ")
        },
    );
}

fn open_and_close(story: &mut Story, world: &AwsWorld) {
    let port = world.net.vm.tcp(TCP);
    let mut grant = String::new();
    story.check("alice asks: active once host and cloud are both open", || {
        world.ec2.forget_calls();
        let start = monotonic();
        let answer = &world.alice.cli().json(&[
            "request",
            &world.target(),
            "--port",
            "22",
            "--for",
            "1h",
            "--reason",
            "deploy",
        ])[0];
        let took = start.elapsed().as_millis();
        assert_eq!(answer["grant"]["state"], "active", "{answer}");
        answer["grant"]["id"].as_str().unwrap_or_default().clone_into(&mut grant);
        assert_eq!(
            (world.net.alice.reach(port), world.net.mallory.reach(port)),
            (Reach::Open, Reach::Filtered)
        );
        assert_eq!(world.open_sources(), [format!("{}/32", world.net.alice.v4())]);
        let changes: Vec<String> =
            world.ec2.calls().into_iter().filter(|call| call.is_change()).map(|call| call.action).collect();
        format!("{took} ms for the whole command; changes in EC2: {}", changes.join(", "))
    });
    story.check(
        "someone opens the instance's own group to the world, and takes it off the machine: undone, and audited",
        || {
            let own = world.cloud.own_group(&world.instance).unwrap_or_default();
            world.cloud.allow(&own, &RuleSpec::tcp(0, 65535, "0.0.0.0/0"));
            let interface = world.cloud.interfaces(&world.instance).into_keys().next().unwrap_or_default();
            world.cloud.set_groups(&interface, &[&world.group]);
            let well = || {
                world.open_sources().len() == 1
                    && world.cloud.interfaces(&world.instance).values().all(|groups| groups.contains(&own))
            };
            let took = wait_until("the sweep to put it right", STEP_TIMEOUT, well);
            wait_until("the drift to be audited", STEP_TIMEOUT, || world.admin.audited("cloud.drift").len() >= 2);
            format!("after {:.1} s; a sweep happens every 2 s here", took.as_secs_f64())
        },
    );
    story.check("alice revokes: shut in both layers, and her connection stays", || {
        let connection = world.net.alice.connect(port);
        world.alice.cli().json(&["revoke", &grant]);
        assert_eq!((world.net.alice.reach(port), world.open_sources().len()), (Reach::Filtered, 0));
        assert!(connection.echoes());
        String::new()
    });
}

fn resist(story: &mut Story, world: &mut AwsWorld) {
    story.check(
        "the broker is killed and its store is lost: a new one closes the window it finds, by its tags alone",
        || {
            let request = ["request", &world.target(), "--port", "22", "--for", "1h", "--reason", "deploy"];
            world.alice.cli().json(&request);
            assert_eq!(world.open_sources().len(), 1);
            world.broker.process().kill9();
            world.broker.empty_store();
            world.broker.serve();
            let took = wait_until("the window to close", STEP_TIMEOUT, || world.open_sources().is_empty());
            wait_until("the drift to be audited", STEP_TIMEOUT, || {
                !world.admin.audited("cloud.unknown_window_closed").is_empty()
            });
            format!("{} ms after its start", took.as_millis())
        },
    );
}

fn release(story: &mut Story, world: &AwsWorld) {
    story.check(
        "postern release: the rule is back as it was, and nothing of Postern's is left in EC2",
        || {
            let released = world.admin.cli().run(&["release", &world.target()]);
            assert!(released.succeeded(), "{released:?}");
            let before = RuleSpec::tcp(22, 22, "0.0.0.0/0").described("ssh");
            assert_eq!(world.cloud.rules(&world.group), [before].into());
            wait_until("the last of Postern's groups to go", Duration::from_secs(5), || {
                world.cloud.groups_of_postern().is_empty()
            });
            "tcp/22 from 0.0.0.0/0 (ssh)".to_owned()
        },
    );
}
