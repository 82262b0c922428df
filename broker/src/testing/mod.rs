//! The helpers that tests share: an app over fakes, builders of grants and policies, and the captured log.

pub(crate) mod authority;
pub(crate) mod captured_log;
pub(crate) mod counted;
mod test_app;

use std::sync::Arc;
use std::time::Duration;

pub(crate) use postern_store::testing::builders;

use crate::signals::rounds::{RoundReporter, Rounds, Task};

pub(crate) use test_app::{TestApp, caller, observer_over};

/// The reporter of a task whose rounds no test reads.
pub(crate) fn reporter(task: Task) -> RoundReporter {
    Arc::new(Rounds::default()).reporter(task, None, Duration::ZERO)
}
