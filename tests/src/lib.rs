//! The harness of Postern's scenarios: real processes in network namespaces, driven through real connections.
//!
//! A [`HostWorld`] is the usual beginning: a broker on one host, an agent and listeners on another, and two clients. Every
//! scenario has a world of its own, so that they run beside each other, and nothing of it outlives the scenario. The worlds with
//! a cloud are [`ec2::AwsWorld`] and [`azure::AzureWorld`]. What other crates' tests need as well is in `postern-testkit`. A
//! harness fails its test by a panic; that is what the lints that forbid panics are lifted for here.
#![allow(clippy::expect_used, clippy::panic, reason = "the harness fails like a test")]

mod agent;
pub mod attack;
pub mod azure;
mod balancer;
mod binaries;
mod broker;
mod builders;
mod cli;
mod client;
pub mod ec2;
mod fake_agent;
mod fake_broker;
mod fake_time;
mod listen;
pub mod low_space;
mod net;
mod netns;
mod probe;
mod process;
pub mod redis;
mod replicas;
mod service_manager;
pub mod stranger;
mod watch;
mod world;

pub use agent::Agent;
pub use balancer::Balancer;
pub use binaries::binary;
pub use broker::Broker;
pub use builders::{PolicyBuilder, RequestBuilder, a_policy, a_request, end_of};
pub use cli::{Cli, Outcome};
pub use client::{Client, Refusal};
pub use fake_agent::{FakeAgent, FakeSession};
pub use fake_broker::{AgentSession, FakeBroker};
pub use fake_time::FakeTime;
pub use net::{Endpoint, Host, Net};
pub use netns::{Netns, Running, tied};
pub use postern_testkit::clock::{self, STEP_TIMEOUT};
pub use postern_testkit::{Line, Relay, RelayTarget};
pub use probe::{Connection, Reach};
pub use process::Process;
pub use replicas::{Replica, ReplicaOptions, Replicas};
pub use service_manager::ServiceManager;
pub use watch::{Timeline, Watch};
pub use world::{FREE, HIGH_QUOTAS, HostWorld, TCP, UDP, VM, ask_for, further_addresses, usual_policy};
