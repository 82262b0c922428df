//! Limits: a peer without a certificate, or with one that gives few rights, costs a broker little, and takes nothing from others (I10).
#![allow(clippy::print_stdout, reason = "what an attack cost is shown also where the test passes")]

mod each;
mod floods;

use std::path::PathBuf;
use std::time::Duration;

use postern_core::Role;
use postern_tests::attack::{Attack, memory_now, peak_memory};
use postern_tests::clock::{monotonic, wait_until};
use postern_tests::stranger::Stranger;
use postern_tests::{Broker, Host, HostWorld, Net, VM, a_policy, a_request, ask_for, further_addresses};
use tempfile::TempDir;

/// The most that a broker may have in memory under an attack, in MiB.
const MEMORY: u64 = 300;
/// The time within which all of an attack must be sent.
const SENT: Duration = Duration::from_secs(120);
/// The time for which an attack is held then, so that its remains are in memory.
const HELD: Duration = Duration::from_secs(2);
/// The time within which an administrator's revocation must be answered under an attack. The bench `limits` measures it; a
/// machine that runs other tests beside this one says nothing about a second.
const REVOKED: Duration = Duration::from_secs(10);

/// The time after an attack within which memory is back, and what may remain of it, in MiB: the allocator keeps pages.
const AFTER: Duration = Duration::from_secs(90);
const REMAINS: u64 = 100;

/// A broker with limits of its own, and no agent.
struct Limited {
    broker: Broker,
    net: Net,
    dir: TempDir,
}

impl Limited {
    fn with(limits: &str) -> Self {
        let (net, dir) = (Net::new(), TempDir::with_prefix("postern-").unwrap());
        let mut broker =
            Broker::init_with(&net.hub, &dir.path().join("broker"), &format!("[limits]\n{limits}"));
        broker.serve();
        Self { broker, net, dir }
    }

    fn stranger(&self) -> Stranger {
        Stranger::new(&self.broker, &self.net.mallory, &self.net.hub)
    }

    /// A peer that shows a principal's certificate.
    fn principal(&self, name: &str) -> Stranger {
        self.stranger().known_by(&self.broker.issue(name, Role::Reader))
    }

    /// A directory of this name that is not there yet.
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Waits until the log says that a limit was reached.
    fn wait_for_limit(&mut self, limit: &str) {
        self.broker.process().wait_for(&format!("limit=\"{limit}\""));
    }
}

/// Makes peers on a host with so many addresses besides its own.
fn from_addresses(broker: &Broker, host: &Host, at: &Host, count: u8) -> Vec<Stranger> {
    host.add_addresses(further_addresses(count));
    let stranger = Stranger::new(broker, host, at);
    further_addresses(count).map(|address| stranger.clone().from_address(address)).collect()
}

/// Has an administrator revoke a grant, by a command of its own, while an attack goes on.
fn withstands(attack: Attack, addresses: u8) {
    let mut world = HostWorld::new();
    let grant = world.alice.open(&ask_for(&world.net.alice));
    if attack == Attack::Watchers {
        open_many_windows(&world);
    }
    let before = memory_now(&mut world.broker);
    let stranger = || Stranger::new(&world.broker, &world.net.mallory, &world.net.hub);
    let strangers = match addresses {
        1 if attack.needs_certificate() => {
            vec![stranger().known_by(&world.broker.issue("mallory", Role::Reader))]
        }
        1 => vec![stranger()],
        more => from_addresses(&world.broker, &world.net.mallory, &world.net.hub, more),
    };
    let attacking = attack.start(&strangers);
    // Connections displace one another, so that some of many find room late; the first ones that do are as many as fit.
    let enough = if attack == Attack::Watches { attack.size() } else { attack.size() / 4 };
    wait_until(attack.words(), SENT, || {
        attacking.sent() >= enough || peak_memory(&mut world.broker) > MEMORY
    });
    if attack == Attack::Watchers {
        world.broker.process().wait_for("limit=\"calls_per_principal\"");
    }
    std::thread::sleep(HELD);
    revokes(&mut world, &grant.id, attack.words());
    drop(attacking);
    world.admin.wait_in_sync(VM);
    wait_until("memory to be back", AFTER, || memory_now(&mut world.broker) < before + REMAINS);
    println!("{}: {before} MiB before, {} MiB after", attack.words(), memory_now(&mut world.broker));
}

/// Has alice open 1,800 windows that a watcher of all grants receives.
fn open_many_windows(world: &HostWorld) {
    let policy = a_policy().named("filler").on("host:filler-*").port("tcp/22").waiting_for_agents();
    world.admin.put_policy(policy.wire()).unwrap();
    for number in 0..9 {
        let ask = a_request().on(&format!("host:filler-{number}")).port("tcp/22");
        let ask = (0..200).fold(ask, |ask, source| ask.from(format!("10.0.0.{source}")));
        world.alice.request(&ask).unwrap();
    }
}

/// Has the administrator revoke a grant on a connection of its own, and looks at what the broker has in memory.
fn revokes(world: &mut HostWorld, grant: &str, under: &str) {
    let asked = monotonic();
    let revoked = world.admin.cli().run(&["revoke", grant]);
    let (took, memory) = (asked.elapsed(), peak_memory(&mut world.broker));
    println!("{under}: {memory} MiB, revoked in {took:?}");
    assert!(revoked.succeeded(), "{under}: {}{}", revoked.out, revoked.err);
    assert!(memory < MEMORY, "{under}: {memory} MiB");
    assert!(took < REVOKED, "{under}: {took:?}");
}

#[test]
fn i10_watches_without_a_certificate_leave_room_to_revoke() {
    withstands(Attack::Watches, 1);
}

#[test]
fn i10_unfinished_enrolments_leave_room_to_revoke() {
    withstands(Attack::Bodies, 1);
}

#[test]
fn i10_silent_connections_leave_room_to_revoke() {
    withstands(Attack::Silent, 1);
}

#[test]
fn i10_idle_connections_without_a_certificate_leave_room_to_revoke() {
    withstands(Attack::Idle, 1);
}

#[test]
fn i10_handshakes_without_end_leave_room_to_revoke() {
    withstands(Attack::Handshakes, 1);
}

#[test]
fn i10_watches_of_a_reader_leave_room_to_revoke() {
    withstands(Attack::Watchers, 1);
}

#[test]
fn i10_verifications_of_a_reader_leave_room_to_revoke() {
    withstands(Attack::Verifications, 1);
}

#[test]
fn i10_the_attacks_from_many_addresses_leave_room_to_revoke() {
    for attack in [Attack::Bodies, Attack::SmallBodies, Attack::Silent, Attack::Idle] {
        withstands(attack, 100);
    }
}
