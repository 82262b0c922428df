//! A host layer in memory.

use std::sync::{Arc, Mutex};

use postern_agent::clock::BootTime;
use postern_agent::firewall::policy::HostPolicy;
use postern_agent::host_reconciler::HostLayer;

/// The policy that a host holds.
#[derive(Debug, Clone, Default)]
pub(crate) struct MemoryHost(Arc<Mutex<Option<HostPolicy>>>);

impl MemoryHost {
    /// Returns the deadlines of the windows that the host holds.
    pub(crate) fn deadlines(&self) -> Vec<BootTime> {
        self.0
            .lock()
            .unwrap()
            .iter()
            .flat_map(|held| held.windows.iter().map(|window| window.deadline))
            .collect()
    }
}

impl HostLayer for MemoryHost {
    type Error = std::convert::Infallible;

    fn ensure(&mut self, policy: &HostPolicy, _now: BootTime) -> Result<(), Self::Error> {
        *self.0.lock().unwrap() = Some(policy.clone());
        Ok(())
    }

    fn is_loaded(&mut self) -> Result<bool, Self::Error> {
        Ok(self.0.lock().unwrap().is_some())
    }

    fn damage(&mut self) -> Option<String> {
        None
    }
}
