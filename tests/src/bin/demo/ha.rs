//! The story of several brokers: each is lost in another way while a window is open, and so is Redis.

mod world;

use std::error::Error as _;
use std::time::Duration;

use jiff::SignedDuration;
use postern_proto::v1::GrantState;
use postern_tests::clock::{monotonic, sleep_until, wait_until, wall};
use postern_tests::{Cli, Connection, Reach, Refusal, Replica, STEP_TIMEOUT, TCP, VM, a_request};
use serde_json::Value;
use tonic::Code;

use crate::end_of;
use crate::story::Story;
use world::{HaWorld, all_open, described};

/// The duration of the window whose broker is killed.
const SHORT: &str = "15s";
/// The time for which a broker is stopped: longer than the 6 s that its membership lasts.
const STOPPED: Duration = Duration::from_secs(8);
/// The time for which the membership of a killed broker lasts.
const BELIEVED: Duration = Duration::from_secs(6);
/// The time for which the demo looks for late events.
const AFTERWARDS: Duration = Duration::from_secs(2);
/// The time that a killed Redis is away at least. A Redis that is back at once may be made the primary again, with the data
/// it had.
const REBOOT: Duration = Duration::from_secs(3);
/// The log line of a broker that was away for longer than its membership lasts.
const JOINED_AGAIN: &str = "joined the other brokers again";

/// Plays the story.
pub(crate) fn tell(story: &mut Story) {
    story.tell(
        "Three brokers behind a load balancer (TCP, it asks /readyz), on one Redis: a primary, a replica that confirms \
         each change before it is answered (replicas = 1), and a sentinel.",
    );
    let begun =
        story.step("they start under one authority; a VM's agent connects through the load balancer", || {
            let mut world = HaWorld::new();
            let before = world.visits();
            world.protect();
            assert_eq!(world.net.alice.reach(world.net.vm.tcp(TCP)), Reach::Filtered);
            let at = world.came_to(&before).expect("it came to one of them");
            ((world, at), format!("its session is with broker-{}; port 22 is closed", at + 1))
        });
    let Some((mut world, at)) = begun else { return };
    let at = kill(story, &mut world, at);
    let long = story.step(&request_command("22", "10m"), || {
        world.request("22", "10m");
        let connection = world.net.alice.connect(world.net.vm.tcp(TCP));
        (connection, "open, and alice works over a connection until the end of this story".to_owned())
    });
    if let (Some(at), Some(connection)) = (at, long) {
        let at = stop(story, &mut world, &connection, at);
        if let Some(at) = at {
            drain(story, &mut world, &connection, at);
        }
        lose_redis(story, &mut world, &connection);
    }
    audit(story, &world);
    let dir = world.dir().to_owned();
    drop(world);
    story.check("nothing is left behind", || {
        assert!(!dir.exists(), "{} is still there", dir.display());
        String::new()
    });
}

/// A broker is killed while a window is open. Returns where the agent is then.
fn kill(story: &mut Story, world: &mut HaWorld, at: usize) -> Option<usize> {
    story.tell("A broker is killed while a window is open.");
    let (grant, connection) = story.step(&request_command("22", SHORT), || {
        let grant = world.request("22", SHORT);
        let connection = world.net.alice.connect(world.net.vm.tcp(TCP));
        ((grant, connection), "open, and alice works over a connection".to_owned())
    })?;
    let watch = world.watch();
    let before = world.visits();
    let killed = monotonic();
    let title =
        format!("kill -9 of broker-{}, which has the agent's session: the agent finds another", at + 1);
    let now_at = story.step(&title, || {
        world.replicas.replica(at).kill9();
        wait_until("the agent to find another broker", STEP_TIMEOUT, || world.came_to(&before).is_some());
        let now_at = world.came_to(&before).expect("a moment ago it had");
        (now_at, format!("with broker-{} after {} ms", now_at + 1, killed.elapsed().as_millis()))
    });
    story.check(
        "at once alice asks for a second port: postern request host:vm-1 --port udp/161 --for 10m",
        || {
            let asked = killed.elapsed();
            world.request("udp/161", "10m");
            assert!(asked < BELIEVED, "asked {asked:?} after the kill: its membership is over by then");
            let (asked, open) = (asked.as_millis(), killed.elapsed().as_millis());
            assert_eq!(world.net.alice.reach(world.net.vm.udp(161)), Reach::Open);
            format!("asked {asked} ms after the kill, open {open} ms after it")
        },
    );
    story.check(
        "the first window ends on time, with no gap before; the connection from before stays",
        || {
            sleep_until(end_of(&grant) + Duration::from_millis(1200));
            let timeline = watch.stop();
            let late = timeline.assert_closed_at(end_of(&grant)).as_millis();
            assert!(connection.echoes());
            format!("{}\nthe last one {late} ms from the end", described(&timeline))
        },
    );
    world.replicas.replica(at).serve();
    now_at
}

/// The agent's broker hangs for longer than its membership lasts, and goes on. Returns where the agent is then.
fn stop(story: &mut Story, world: &mut HaWorld, connection: &Connection, at: usize) -> Option<usize> {
    story.tell("A broker hangs, and wakes up as one that others have replaced.");
    let before = world.visits();
    let watch = world.watch();
    let stopped = monotonic();
    let title =
        format!("broker-{} is stopped (SIGSTOP), with the agent's session: the agent finds another", at + 1);
    let now_at = story.step(&title, || {
        world.replicas.replica(at).freeze();
        let longer = STEP_TIMEOUT * 2;
        wait_until("the agent to find another broker", longer, || world.came_to(&before).is_some());
        let now_at = world.came_to(&before).expect("a moment ago it had");
        assert_ne!(now_at, at);
        let described = format!(
            "with broker-{} after {:.1} s: that long a silence may be the network's",
            now_at + 1,
            stopped.elapsed().as_secs_f64()
        );
        (now_at, described)
    });
    let title = format!(
        "broker-{} goes on: its membership is over, so it joins again, and takes nothing back",
        at + 1
    );
    story.check(&title, || {
        std::thread::sleep(STOPPED.saturating_sub(stopped.elapsed()));
        let visits = world.visits();
        let returns = || world.replicas.replica(at).broker().log().matches(JOINED_AGAIN).count();
        let before = returns();
        let hung = world.caller_at(at).start_request(&request(world, "tcp/22"));
        world.replicas.replica(at).thaw();
        let answer = hung.join().map_err(Refusal::from);
        wait_until("it to join the others again", STEP_TIMEOUT, || returns() > before);
        std::thread::sleep(AFTERWARDS);
        assert_eq!(world.visits(), visits, "the agent moved");
        let asked = match answer {
            Ok(answer) => {
                world.acknowledged.push(answer.grant.expect("an answer has a grant").id);
                "answered, after it had joined".to_owned()
            }
            Err(refusal) => {
                assert_eq!(refusal.code, Code::Unavailable, "{refusal:?}");
                "refused: UNAVAILABLE".to_owned()
            }
        };
        format!("what it was asked while it hung was {asked}")
    });
    story.check("nothing flapped, and alice's connection goes on", || {
        let described = all_open(&watch.stop());
        assert!(connection.echoes());
        described
    });
    now_at
}

/// The agent's broker is asked to end.
fn drain(story: &mut Story, world: &mut HaWorld, connection: &Connection, at: usize) {
    story.tell("A broker is taken out of service.");
    let watch = world.watch();
    let before = world.visits();
    let title = format!("SIGTERM for broker-{}: it hands the agent over, and ends", at + 1);
    story.check(&title, || {
        let start = monotonic();
        world.replicas.replica(at).terminate();
        wait_until("the agent to find another broker", STEP_TIMEOUT, || world.came_to(&before).is_some());
        let moved = start.elapsed().as_millis();
        let now_at = world.came_to(&before).expect("a moment ago it had");
        wait_until("the broker to end", STEP_TIMEOUT, || !world.replicas.replica(at).broker().is_running());
        let ended = start.elapsed().as_millis();
        std::thread::sleep(AFTERWARDS);
        format!(
            "the agent is with broker-{} after {moved} ms; the process has ended after {ended} ms",
            now_at + 1
        )
    });
    story.check("nothing flapped, and alice's connection goes on", || {
        let described = all_open(&watch.stop());
        assert!(connection.echoes());
        described
    });
    world.replicas.replica(at).serve();
}

/// The primary of Redis is killed, its replica takes over, and it comes back.
fn lose_redis(story: &mut Story, world: &mut HaWorld, connection: &Connection) {
    story.tell("Redis is killed: the primary.");
    let watch = world.watch();
    let killed = monotonic();
    story.check("kill -9: requests are refused, with UNAVAILABLE", || {
        world.group.kill9(0);
        let answer = world.caller().request(&request(world, "tcp/22"));
        let refusal = Refusal::from(answer.expect_err("nothing can be kept now"));
        assert_eq!(refusal.code, Code::Unavailable, "{refusal:?}");
        format!("after {} ms", killed.elapsed().as_millis())
    });
    story.check("the sentinel makes the replica the primary; the killed one is started again", || {
        world.group.wait_for_primary(1);
        let failed_over = killed.elapsed().as_secs_f64();
        std::thread::sleep(REBOOT);
        world.group.restart(0);
        format!(
            "failed over after {failed_over:.1} s; nothing confirms a change before the other is its replica"
        )
    });
    story.check("requests are served again, without an administrator's doing anything", || {
        let (mut refused, mut broken, mut restarted) = (0, 0, 0);
        let grant = loop {
            let asked = wall();
            // A broker that ends by itself is what a service manager is for.
            restarted += world.replicas.all().iter().filter(|replica| replica.tend()).count();
            let key = format!("after-the-failover-{refused}-{broken}");
            match world.caller().request(&request(world, "udp/161").key(&key).waiting(STEP_TIMEOUT)) {
                Ok(answer) => break answer.grant.expect("an answer has a grant"),
                // Not a broker's answer: it was lost on the way.
                Err(status) if status.source().is_some() => broken += 1,
                Err(status) => {
                    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
                    refused += 1;
                }
            }
            assert!(killed.elapsed() < STEP_TIMEOUT * 3, "no request is served");
            sleep_until(asked + SignedDuration::from_millis(200));
        };
        assert_eq!(grant.state(), GrantState::Active, "{grant:?}");
        let served = killed.elapsed().as_secs_f64();
        world.acknowledged.push(grant.id);
        format!(
            "{served:.1} s after the kill; {refused} were refused meanwhile, each with UNAVAILABLE{}{}",
            some(broken, " got no answer"),
            some(restarted, " brokers ended by themselves and were started again, as a service manager does"),
        )
    });
    story.check("nothing flapped, and alice's connection goes on", || {
        let described = all_open(&watch.stop());
        assert!(connection.echoes());
        described
    });
    story.check("the failover has kept every grant that the broker acknowledged to alice", || {
        let kept = world.admin.grants();
        let lost = world.acknowledged.iter().filter(|id| kept.iter().all(|grant| grant.id != **id)).count();
        assert_eq!(lost, 0, "{lost} of {:?} are lost", world.acknowledged);
        format!("{} of {}", world.acknowledged.len(), world.acknowledged.len())
    });
}

/// Verifies that every broker shows the same log, and that it is whole.
fn audit(story: &mut Story, world: &HaWorld) {
    story.tell("Everything is in one audit log.");
    story.check("postern audit verify, at each broker", || {
        wait_until("every broker to listen", STEP_TIMEOUT, || {
            world.replicas.all().iter().all(Replica::is_ready)
        });
        let verified = world.replicas.all().iter().map(|replica| {
            let cli = Cli::new(&world.net.mallory, replica.url(), world.admin.identity());
            let verified = cli.json(&["audit", "verify"]).swap_remove(0);
            assert_eq!(verified["sound"], Value::Bool(true), "{verified}");
            verified["records"].to_string()
        });
        let records: Vec<_> = verified.collect();
        format!("sound at all three: {} records", records.join(", "))
    });
}

/// Returns the count with its words, or nothing for none.
fn some(count: usize, what: &str) -> String {
    if count == 0 { String::new() } else { format!("\n{count}{what}") }
}

fn request_command(port: &str, duration: &str) -> String {
    format!(
        "alice: postern request {VM} --port {port} --source 192.0.2.20 --for {duration} --reason \"fix the disk\""
    )
}

/// Builds the same request for a call that does not try again by itself.
fn request(world: &HaWorld, port: &str) -> postern_tests::RequestBuilder {
    a_request().on(VM).port(port).from(world.net.alice.v4()).seconds(600)
}
