//! The cloud layer: one provider per cloud, and one driver that takes each target from what its cloud holds to what
//! it should hold.

mod driver;
pub mod fake;
mod provider;

pub use driver::Clouds;
pub use provider::{CloudError, Provider};

#[cfg(test)]
mod conformance;
