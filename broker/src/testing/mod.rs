//! The helpers that tests share: an app over fakes, builders of grants and policies, and the captured log.

pub(crate) mod builders;
pub(crate) mod captured_log;
mod test_app;

pub(crate) use test_app::{TestApp, caller, observer_over};
