//! The testkit: what the tests of several crates need, once.
//!
//! - [`FakeBroker`]: a broker behind real TLS that follows a test's [`Script`], records the calls, and hands each agent's session to
//!   the test.
//! - [`FaultPlan`]: the calls of a service that go wrong, each with its [`Fault`], and the [`CrashPoint`] at which the service halts.
//!   The fake broker, the proxy before EC2 and the double of Azure Resource Manager play it.
//! - [`StaleReads`]: answers that do not show the last changes yet.
//! - [`Relay`]: a TCP line that a test cuts, hangs, slows, or leaves open in one direction.
//! - [`clock`]: the clocks, and the waiting for a condition with a bound.
//!
//! The kit is part of no program. It depends on no cloud, no agent and no broker, so that the tests of each may use it; the unit tests
//! of a crate that the kit depends on may not. A kit fails its test by a panic; that is why the lints that forbid panics are lifted here.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::missing_panics_doc,
    reason = "built for tests alone"
)]

pub mod clock;
mod connections;
mod fake_broker;
mod faults;
mod relay;
mod stale_reads;

pub use connections::serve_each;
pub use fake_broker::{AgentSession, FakeBroker, RpcCall, Script, TARGET, a_grant};
pub use faults::{Call, CrashPoint, Fault, FaultPlan, Handling, When};
pub use relay::{Line, Relay, RelayTarget, join};
pub use stale_reads::StaleReads;
