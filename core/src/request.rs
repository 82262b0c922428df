//! Requests of principals, parsed but not yet authorized.

use std::time::Duration;

use crate::{Invalid, Justification, ProtectedPort, SourcePrefix, TargetId};

/// A request for access: targets x ports x sources, with a duration and a justification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessRequest {
    targets: Vec<TargetId>,
    ports: Vec<ProtectedPort>,
    sources: Vec<SourcePrefix>,
    duration: Duration,
    justification: Justification,
}

impl AccessRequest {
    /// The largest number of windows (targets x ports x sources) in one request.
    pub const MAX_WINDOWS: usize = 256;

    /// Makes a request. Duplicates are dropped; order does not matter.
    ///
    /// # Errors
    /// An empty list, a zero duration, a duration with a fraction of a second, more than
    /// [`Self::MAX_WINDOWS`] windows.
    pub fn new(
        targets: Vec<TargetId>,
        ports: Vec<ProtectedPort>,
        sources: Vec<SourcePrefix>,
        duration: Duration,
        justification: Justification,
    ) -> Result<Self, Invalid> {
        let (targets, ports, sources) = (distinct(targets), distinct(ports), distinct(sources));
        let empty = |field: &str| Err(Invalid::new(field, "is empty", "name at least one"));
        if targets.is_empty() {
            return empty("targets");
        }
        if ports.is_empty() {
            return empty("ports");
        }
        if sources.is_empty() {
            return empty("sources");
        }
        if duration < Duration::from_secs(1) {
            return Err(Invalid::new("duration", "is less than a second", "ask for 1s or more"));
        }
        let windows = targets.len() * ports.len() * sources.len();
        if windows > Self::MAX_WINDOWS {
            let problem = format!("targets x ports x sources makes {windows} windows");
            let remedy = format!("ask for at most {} in one request", Self::MAX_WINDOWS);
            return Err(Invalid::new("targets", problem, remedy));
        }
        Ok(Self { targets, ports, sources, duration, justification })
    }

    /// Returns the VMs.
    pub fn targets(&self) -> &[TargetId] {
        &self.targets
    }

    /// Returns the ports, the same on every target.
    pub fn ports(&self) -> &[ProtectedPort] {
        &self.ports
    }

    /// Returns the same request from one source alone.
    #[must_use]
    pub fn from_source(&self, source: SourcePrefix) -> Self {
        Self { sources: vec![source], ..self.clone() }
    }

    /// Returns the sources, the same for every port.
    pub fn sources(&self) -> &[SourcePrefix] {
        &self.sources
    }

    /// Returns the number of windows that the request has on each of its targets.
    pub fn windows_on_each_target(&self) -> usize {
        self.ports.len() * self.sources.len()
    }

    /// Returns the number of its windows.
    pub fn windows(&self) -> usize {
        self.targets.len() * self.windows_on_each_target()
    }

    /// Returns the duration, which counts from the moment at which opening begins.
    pub fn duration(&self) -> Duration {
        self.duration
    }

    /// Returns the justification.
    pub fn justification(&self) -> &Justification {
        &self.justification
    }
}

fn distinct<T: Ord>(mut items: Vec<T>) -> Vec<T> {
    items.sort();
    items.dedup();
    items
}
