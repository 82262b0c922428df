//! The table of Postern in the kernel.

/// The name of Postern's table.
pub const TABLE: &str = "postern";
