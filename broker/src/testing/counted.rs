//! The count of limits that were reached during a test.

use std::collections::BTreeMap;

use metrics::LocalRecorderGuard;
use metrics_exporter_prometheus::PrometheusHandle;

use crate::limits::Limit;
use crate::telemetry;

/// The metrics of this thread, from now until it is dropped.
pub(crate) struct Counted {
    handle: PrometheusHandle,
    _guard: LocalRecorderGuard<'static>,
}

impl Counted {
    /// Counts what this thread does. A test's runtime with one thread does everything on it.
    pub(crate) fn here() -> Self {
        // A test is over soon, and the guard borrows the recorder until then.
        let recorder = Box::leak(Box::new(telemetry::recorder().unwrap()));
        let handle = recorder.handle();
        let guard = metrics::set_default_local_recorder(recorder);
        telemetry::begin();
        Self { handle, _guard: guard }
    }

    /// Returns how often a limit was reached.
    pub(crate) fn of(&self, limit: Limit) -> u64 {
        self.all().remove(limit.word()).unwrap_or_else(|| panic!("{} is no label", limit.word()))
    }

    /// Returns how often each limit was reached, by its label.
    pub(crate) fn all(&self) -> BTreeMap<String, u64> {
        let scrape = self.handle.render();
        let lines = scrape.lines().filter_map(|line| line.strip_prefix("postern_limited_total{limit=\""));
        lines
            .map(|line| {
                let (label, count) = line.split_once("\"} ").unwrap();
                (label.to_owned(), count.parse().unwrap())
            })
            .collect()
    }
}
