//! The broker: authorizes each request, keeps the grants, and drives both layers.
//!
//! A grant takes this way through the crate: [`api`] parses the call, [`app`] decides and persists the intent, and [`reconcile`]
//! compares what is desired with what is observed and takes the next step in the two [`layers`]: the agents' sessions, and the
//! driver of the clouds. Request handlers never touch a layer themselves. Several brokers on one store are a [`cluster`].
//!
//! The modules stand on floors, and import downwards only: [`clock`] and [`signals`] at the bottom; [`telemetry`],
//! which measures the store's calls, and the [`limits`] of peers, which it counts; [`readiness`], the [`authority`], the
//! [`checkpoints`] of the audit log and the [`principals`]; the leases, the layers and the rest of the cluster; the reconciler and the use cases; the transport; and [`run`],
//! which puts them together.

pub mod api;
pub mod app;
pub mod authority;
pub mod backup;
pub mod checkpoints;
pub mod clock;
pub mod cluster;
pub mod config;
pub mod configure;
pub mod doctor;
pub mod forgeries;
pub mod layers;
pub mod limits;
pub mod migrate;
pub mod monitoring;
pub mod policies_seen;
pub mod principals;
pub mod readiness;
pub mod reconcile;
pub mod records_key;
pub mod retention;
pub mod run;
pub mod setup;
pub mod signals;
pub mod telemetry;
#[cfg(test)]
mod testing;
pub mod traces;
