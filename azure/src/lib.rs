//! The cloud layer on Azure: network security groups and Azure Firewall.
//!
//! A lockdown writes rules that deny the protected ports of a virtual machine into every network security group on its way. A
//! window is a rule that allows, with a smaller priority, and behind an Azure Firewall a rule of the firewall as well.
//!
//! # The state is in the names
//!
//! Postern keeps no list of what it wrote. The name of each of its rules says which deployment wrote it, which target it is for,
//! which grant it serves and when the grant ends; a digest in the name says what the rule lets in. Azure does not let a principal
//! rename a rule. A broker with an empty store finds and closes every window from the names alone (I2), and a rule that another
//! principal edited no longer matches its name: it counts as drift, and never as a window. Priorities are state, too: they order
//! Postern's rules among the customer's, and a note in the group holds the old priority of each customer's rule that was moved
//! (I6). Each part of the crate rebuilds what it needs from a read.
//!
//! # Conditional writes
//!
//! Other brokers, administrators and tools write the same groups and firewalls. No write relies on an old read:
//!
//! - a rule of Postern's is a resource of its own; Azure refuses it if another rule has its priority, or if another write of the
//!   group is under way;
//! - a customer's rule and a firewall are written as they were read, byte for byte, under the etag of that read;
//! - after a conflict the process forgets what it knew of the group, reads it again and plans again;
//! - after any other error the outcome is unknown: the next call reads before it writes.
//!
//! # The modules
//!
//! - `reader`, `wire`, `network` and `machine` read the resources on the way to a machine; `snapshot` says what they hold.
//! - `open_close` opens and closes windows, group by group (`groups`) and in the firewall in front (`firewall`); `obstacle` finds the
//!   customer's rules that would shut one.
//! - `plan` decides the writes of a lockdown, a release and a repair; `lockdown` carries them out.
//! - `inventory` reads a whole subscription: the sweep and the assessment.
//! - `arm`, `transport` and `credential` make the calls; `caller` checks a caller's own token.
//! - `layer` holds the clients and the caches; `provider` offers them to the broker.

mod arm;
mod cache;
mod caller;
mod clock;
mod credential;
mod display;
mod error;
mod firewall;
mod groups;
mod id;
mod inventory;
mod json;
mod layer;
mod lockdown;
mod machine;
mod names;
mod network;
mod obstacle;
mod open_close;
mod plan;
mod provider;
mod reader;
mod rules;
mod settings;
mod snapshot;
mod transport;
mod wire;

pub use layer::Azure;
pub use settings::{
    Application, AzureSettings, Credential, Environment, FirewallSettings, Flush, Priorities, Rates,
};
