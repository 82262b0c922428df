//! The broker: authorizes each request, keeps the grants, and drives both layers.
//!
//! A grant's way through this crate: [`api`] parses the call, [`app`] decides and persists the intent, [`reconcile`]
//! compares what is desired with what is observed and takes the next step, [`hub`] holds the agents' sessions (the
//! host layer) and [`cloud`] drives the cloud layer. Request handlers never touch a layer themselves.

pub mod api;
pub mod app;
pub mod authority;
pub mod clock;
pub mod cloud;
pub mod config;
pub mod ending;
pub mod hub;
pub mod layer;
pub mod limits;
#[cfg(test)]
mod logged;
pub mod measure;
pub mod migrate;
pub mod readiness;
pub mod reconcile;
pub mod replica;
pub mod run;
#[cfg(test)]
mod samples;
pub mod setup;
pub mod store;
pub mod tasks;
pub mod traces;
pub mod watchers;
