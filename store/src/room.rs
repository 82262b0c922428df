//! The room that a database has left.

/// What a database has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// The kind of room.
    pub medium: Medium,
    /// Free bytes.
    pub free: u64,
    /// Bytes in all.
    pub size: u64,
}

/// A kind of room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Medium {
    /// Space of a file system.
    Disk,
    /// Memory of a server.
    Memory,
}

impl Medium {
    /// Returns the remedy for a lack of room, as an error ends with it.
    pub fn remedy(self) -> &'static str {
        match self {
            Self::Disk => "free disk space on the broker's data directory",
            Self::Memory => "raise Redis's maxmemory",
        }
    }
}
