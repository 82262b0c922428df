//! The gauge of connected agents.

use super::CONNECTED_AGENTS;

/// An agent's session, counted until it is dropped.
#[derive(Debug)]
pub struct AgentGauge(());

impl Default for AgentGauge {
    fn default() -> Self {
        metrics::gauge!(CONNECTED_AGENTS).increment(1);
        Self(())
    }
}

impl Drop for AgentGauge {
    fn drop(&mut self) {
        metrics::gauge!(CONNECTED_AGENTS).decrement(1);
    }
}
