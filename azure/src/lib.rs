//! The cloud layer on Azure: network security groups and Azure Firewall.
//!
//! Lockdown writes rules that deny the protected ports of a virtual machine into every network security group on its way;
//! a window is a rule before them, and behind an Azure Firewall one of the firewall as well. The names of our rules say
//! whose they are and when they end: a broker with an empty store finds and closes them (I2). What is a customer's is
//! moved only where that was asked for, with a note in the group itself, and never rewritten otherwise (I6).
//!
//! The way of a window: [`Azure`] finds the machine of its target (`reader`, `machine`), `windows` writes the rules, one
//! group after another's turn (`groups`, `firewall`), and `view` says what Azure holds. The way of a lockdown: `locking`
//! carries out what `plan` decides. The whole of a subscription is `fleet`'s: the sweep and the assessment.

mod arm;
mod cache;
mod caller;
mod credential;
mod display;
mod error;
mod firewall;
mod groups;
mod id;
mod inventory;
mod layer;
mod lockdown;
mod machine;
mod names;
mod network;
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
    Application, Credential, Environment, FirewallSettings, Flush, Priorities, Rates, Settings,
};
