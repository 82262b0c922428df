//! A double of Azure Resource Manager for tests: it serves the calls that Postern makes, on the loopback or in a test's network.
//!
//! No emulator has the semantics of network security groups and Azure Firewall, on which Postern's invariants rest. The double plays
//! them, and a test can ask it which connections get in.
//!
//! # What it plays, and from which specification
//!
//! - **Resources** (`state`): create, read, replace, delete and list, with ids in any letter case, pages, etags and `If-Match`. From
//!   the REST specification of Microsoft.Network, API version 2024-03-01 (azure-rest-api-specs).
//! - **Asynchronous operations** (`state`, `http`): a write is accepted, takes the time that a test sets, and then succeeds or fails. A
//!   second write of the same resource is refused meanwhile. From Microsoft Learn, "Track asynchronous Azure operations". An answer
//!   links to its operation by `Azure-AsyncOperation`, by `Location` alone, or not at all (azure-resource-manager-rpc). A rule
//!   whose write failed stays in its group as `Failed`, and is not in force: Azure does not say that it undoes the write.
//! - **The rules for rules** (`rules`): names, priorities, descriptions, prefixes, ports and limits of a security rule, and those of a
//!   firewall's NAT rules, with the error codes of Microsoft.Network. From Microsoft Learn, "Network security groups".
//! - **Admission** (`oracle`): the connections that get in, by the rules in force: the subnet's group, then the interface's, the
//!   rule with the smallest priority first, the default rules last. It shares no code with the provider that it judges.
//! - **Identities** (`login`): tokens of Microsoft Entra for a secret, a signed assertion (RFC 7523) or a federated token; those of the
//!   instance metadata service, API version 2018-02-01; and the actions that each token allows.
//!
//! # Faults
//!
//! A test makes calls fail, lets answers get lost, slows or stops the double, lets tokens end, and halts the world before or after any
//! change (`faults`, and the fault plan of the testkit). Every call is recorded.
//!
//! # What it does not play
//!
//! Connections that are established, the data plane and its delays, role assignments beyond the list of allowed actions, and
//! admin rules of Azure Virtual Network Manager. `tests/semantics` proves each behaviour over HTTP. The double is part of no
//! product.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::missing_panics_doc,
    reason = "built for tests alone"
)]

mod answer;
mod faults;
mod http;
mod lab;
mod login;
mod oracle;
mod rules;
mod sim;
mod state;

pub use faults::{Call, Fault, Refusal, operation_failed, refused};
pub use lab::{Lab, Vm};
pub use oracle::Verdict;
pub use postern_testkit::{CrashPoint, When};
pub use sim::{AzureSim, SimServer};
pub use state::OperationLinks;
