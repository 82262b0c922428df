//! The table of Postern in the kernel.

/// The name of Postern's table.
pub const TABLE: &str = "postern";
/// The name of the table that holds the same rules while [`TABLE`] is replaced; it exists for some milliseconds.
pub(super) const GUARD: &str = "postern_guard";
/// The comment on each table.
pub(super) const COMMENT: &str = "kept by postern-agent; changes are undone";
