//! The cloud layer: one provider per cloud, and one driver that takes each target from what its cloud holds to what
//! it should hold.

#[cfg(test)]
mod conformance;
mod driver;
#[cfg(test)]
pub mod fake;
mod provider;

pub use driver::Clouds;
pub use provider::{CloudError, Provider};
