//! The parts that can keep a broker from its work, by the names that the metrics and `/readyz` use.

use std::collections::BTreeMap;

/// The store does not answer.
pub const STORE: &str = "store";
/// The reconciler does not go round.
pub const RECONCILER: &str = "reconciler";
/// The broker is no member of the brokers on its store.
pub const MEMBERSHIP: &str = "membership";
/// A certificate of the authority is not valid: no agent and no person can connect.
pub const AUTHORITY: &str = "authority";
/// The broker is shutting down.
pub const ENDING: &str = "ending";

/// The reason of each part that keeps the broker from its work, by the part's name.
pub type Reasons = BTreeMap<&'static str, String>;
