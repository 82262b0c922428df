//! The cloud layer: one driver that takes each target from what its cloud holds to what it should hold, through the
//! provider of its cloud (`postern-cloud` has the seam).

mod driver;
mod journal;
mod locking;
mod place;
mod sweep;

pub use driver::Clouds;

/// Lets every metric of the cloud layer begin at zero: a rate over one that is not there misses its first count.
pub fn begin_metrics() {
    for (name, what) in [
        ("postern_cloud_failures_total", "Rounds on a target that failed"),
        ("postern_cloud_drift_total", "What somebody changed in a cloud"),
        ("postern_cloud_unknown_windows_total", "Windows closed because no grant was known for them"),
    ] {
        metrics::describe_counter!(name, what);
        metrics::counter!(name).increment(0);
    }
    for (name, what) in [
        ("postern_cloud_stuck_targets", "Targets whose cloud has failed three times in a row or more"),
        ("postern_cloud_unread_places", "Accounts and Regions that the last sweep could not read"),
    ] {
        metrics::describe_gauge!(name, what);
        metrics::gauge!(name).set(0);
    }
}
