//! The cloud layer: one driver that takes each target from what its cloud holds to what it should hold, through the
//! provider of its cloud (`postern-provider` has the seam).

mod driver;
mod journal;
mod locking;
mod place;
mod sweep;
mod trace;

pub use driver::Clouds;
