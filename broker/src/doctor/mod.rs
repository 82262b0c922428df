//! `doctor`: finds what keeps this broker from doing its work, and names the remedy.
//!
//! It changes nothing, with the broker running or not, except for a file of a few bytes in `data_dir` that shows how long a durable write
//! takes, which it removes. What it cannot know it says: no check stands for one that was not made.

mod clouds;
mod local;
mod reach;
mod store;

use std::path::Path;

use postern_runtime::findings::Finding;

use crate::config::BrokerConfig;

/// Checks everything, the nearest first.
pub async fn diagnose(config: &BrokerConfig, file: &Path) -> Vec<Finding> {
    let mut findings = local::files(config, file);
    findings.extend(local::authority(config));
    let (store, newest) = store::check(config).await;
    findings.extend(local::clock(newest));
    findings.extend(store);
    findings.extend(reach::check(config).await);
    findings.extend(clouds::check(config).await);
    findings
}
