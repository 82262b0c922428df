//! A store that is low on space: it refuses requests, and closes what is open (I10).

use postern_proto::v1;
use postern_proto::v1::GrantState;
use tonic::Code;

use crate::builders::{a_policy, a_request};
use crate::client::Refusal;
use crate::clock::{STEP_TIMEOUT, wait_until};
use crate::probe::Reach;
use crate::world::{HostWorld, TCP, VM};

/// The requests after which a store of a test must be full.
const MAX_REQUESTS: usize = 2_000;

/// Has alice ask, on targets without an agent, until the store is low on space.
///
/// # Panics
/// The store is refused for another reason, or never.
pub fn fill(world: &HostWorld) {
    let policy = a_policy().named("filler").on("host:filler-*").port("tcp/22").waiting_for_agents();
    world.admin.put_policy(policy.wire()).expect("the policy is good");
    let ask = |number: usize| {
        let ask = a_request().on(&format!("host:filler-{number}")).port("tcp/22");
        (0..200).fold(ask, |ask, source| ask.from(format!("10.0.0.{source}")))
    };
    let refused = (0..MAX_REQUESTS).find_map(|number| world.alice.request(&ask(number)).err());
    let refused = Refusal::from(refused.expect("the store has a bound"));
    assert_eq!(
        (refused.code, refused.reason.as_str()),
        (Code::ResourceExhausted, "STORE_LOW_ON_SPACE"),
        "{refused:?}"
    );
}

/// Has an administrator revoke this grant and ban its agent, and looks at the log and the status.
///
/// # Panics
/// A call is refused, or the window stays open.
pub fn closes(world: &HostWorld, grant: &v1::Grant) {
    let port = world.net.vm.tcp(TCP);
    assert_eq!(world.net.alice.reach(port), Reach::Open);
    world.admin.revoke(&grant.id).expect("there is room to revoke");
    world.admin.wait_for_state(&grant.id, GrantState::Closed);
    assert_ne!(world.net.alice.reach(port), Reach::Open);
    world.admin.ban(VM).expect("there is room to ban");
    wait_until("the status to name the shortage", STEP_TIMEOUT, || {
        let shown = world.admin.cli().run(&["status", "--check"]);
        format!("{}{}", shown.out, shown.err).contains("which are kept to revoke, ban and close")
    });
    let audit = world.admin.verify_audit();
    assert!(audit.sound, "{}", audit.problem);
}
