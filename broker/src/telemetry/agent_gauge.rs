//! What is counted for as long as it lives.

use super::CONNECTED_AGENTS;

/// One agent's session, counted until it is dropped.
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
