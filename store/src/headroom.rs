//! The low-water mark: room that the store keeps for revocations, bans and closes (I10).
//!
//! **The problem.** A store without room takes no commit, also none that closes. A caller that may only add records could fill
//! it, and then nothing can be revoked.
//!
//! **The words.** The *room* ([`Room`]) is what a database has left: space of its file system, or memory below the server's
//! `maxmemory`. The *reserve* is the part of it that is kept. A transaction *gives way*
//! ([`Transaction::giving_way`](crate::Transaction::giving_way)) if it may be refused for the reserve: a new grant, or the
//! record of a refusal.
//!
//! **The rule.** [`Store::commit`](crate::Store::commit) refuses a transaction that gives way while the room is within the
//! reserve ([`StoreError::LowOnSpace`]). All others go on. The room is looked at when a second has passed, or when a quarter of
//! the reserve has been written since the last look.
//!
//! **On failure.** A database that does not tell its room (no `maxmemory`, or a user that may not ask) has no reserve: then only
//! [`StoreError::Full`] ends its growth. If a look fails in any other way, what the last one found holds until the next one.

use std::fmt;
use std::time::Duration;

use postern_runtime::clock::monotonic;
use tokio::sync::Mutex;

use crate::backend::Backend;
use crate::error::StoreError;
use crate::room::{Medium, Room};

/// The age at which a look at the room is repeated.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// The room that is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reserve {
    /// Bytes of the file system.
    pub disk: u64,
    /// Hundredths of a server's `maxmemory`; at least [`Self::LEAST_MEMORY`], unless it is 0.
    pub memory_percent: u64,
}

impl Default for Reserve {
    fn default() -> Self {
        Self { disk: 64 << 20, memory_percent: 5 }
    }
}

impl Reserve {
    /// The least memory that is kept, in bytes.
    pub const LEAST_MEMORY: u64 = 8 << 20;

    /// Returns the bytes that are kept of a room.
    fn of(&self, room: &Room) -> u64 {
        match room.medium {
            Medium::Disk => self.disk,
            Medium::Memory if self.memory_percent == 0 => 0,
            Medium::Memory => (room.size / 100).saturating_mul(self.memory_percent).max(Self::LEAST_MEMORY),
        }
    }
}

/// The room of a store beside its reserve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoomStatus {
    /// The room.
    pub room: Room,
    /// The bytes that are kept.
    pub reserve: u64,
}

impl RoomStatus {
    /// Reports whether the room is within the reserve.
    pub fn is_low(&self) -> bool {
        self.room.free < self.reserve
    }
}

impl fmt::Display for RoomStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.room.medium {
            Medium::Disk => "on the disk of the data directory",
            Medium::Memory => "below Redis's maxmemory",
        };
        let (reserve, remedy) = (self.reserve >> 20, self.room.medium.remedy());
        write!(
            f,
            "less than {reserve} MiB are left {what}, which are kept to revoke, ban and close; {remedy}"
        )
    }
}

/// The reserve of a store, with the last look at its room.
#[derive(Debug)]
pub(crate) struct Headroom {
    reserve: Reserve,
    last: Mutex<Option<Look>>,
}

#[derive(Debug)]
struct Look {
    at: Duration,
    status: Option<RoomStatus>,
    /// Bytes that transactions which give way have brought since.
    brought: u64,
}

impl Headroom {
    pub(crate) fn new(reserve: Reserve) -> Self {
        Self { reserve, last: Mutex::new(None) }
    }

    /// Returns the room beside the reserve; none if the database does not tell it.
    pub(crate) async fn status(&self, backend: &dyn Backend) -> Option<RoomStatus> {
        self.look(backend, 0).await
    }

    /// Admits a transaction of so many bytes that gives way.
    ///
    /// # Errors
    /// The room is within the reserve.
    pub(crate) async fn admit(&self, backend: &dyn Backend, bytes: u64) -> Result<(), StoreError> {
        match self.look(backend, bytes).await.filter(RoomStatus::is_low) {
            Some(status) => Err(StoreError::LowOnSpace { what: status.to_string() }),
            None => Ok(()),
        }
    }

    async fn look(&self, backend: &dyn Backend, bytes: u64) -> Option<RoomStatus> {
        let now = monotonic();
        // Callers that come meanwhile wait for the one look.
        let mut last = self.last.lock().await;
        if let Some(look) = last.as_mut() {
            look.brought = look.brought.saturating_add(bytes);
            let is_much = look.status.is_some_and(|status| look.brought > status.reserve / 4);
            if now.saturating_sub(look.at) < LOOK_INTERVAL && !is_much {
                return look.status;
            }
        }
        let status = match backend.room().await {
            Ok(room) => room.map(|room| RoomStatus { room, reserve: self.reserve.of(&room) }),
            Err(error) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "cannot look at the store's room");
                // The bytes since then still count, so that the next caller looks again if they are many.
                let look = last.as_mut()?;
                look.at = now;
                return look.status;
            }
        };
        last.insert(Look { at: now, status, brought: 0 }).status
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use postern_core::audit::AuditEvent;

    use super::*;
    use crate::Transaction;
    use crate::testing::memory::Memory;

    fn event() -> Transaction {
        Transaction::default().audit(AuditEvent::done(Timestamp::UNIX_EPOCH, "broker", "test"))
    }

    #[test]
    fn the_reserve_of_memory_is_a_share_and_never_little() {
        let of = |size, memory_percent| {
            Reserve { disk: 1, memory_percent }.of(&Room { medium: Medium::Memory, free: 0, size })
        };
        assert_eq!([of(64 << 20, 5), of(1_000 << 20, 5), of(64 << 20, 0)], [8 << 20, 50 << 20, 0]);
    }

    #[tokio::test]
    async fn i10_within_the_reserve_only_what_gives_way_is_refused() {
        let memory = Memory::default();
        let room = |free| Some(Room { medium: Medium::Disk, free, size: 1_000 });
        let store = |free| {
            memory.set_room(room(free));
            memory.store().keeping(Reserve { disk: 100, memory_percent: 5 })
        };
        let low = store(99);
        let refused = low.commit(event().giving_way()).await.unwrap_err();
        assert!(matches!(&refused, StoreError::LowOnSpace { what } if what.contains("free disk space")));
        low.commit(event()).await.unwrap();
        assert!(low.room().await.unwrap().is_low());
        store(100).commit(event().giving_way()).await.unwrap();
        memory.set_room(None);
        let unknown = memory.store().keeping(Reserve::default());
        unknown.commit(event().giving_way()).await.unwrap();
    }

    #[tokio::test]
    async fn i10_a_look_that_fails_keeps_what_the_last_one_found() {
        let memory = Memory::default();
        let store = || memory.store().keeping(Reserve { disk: 4, memory_percent: 5 });
        memory.fail_room();
        let blind = store();
        assert!(blind.room().await.is_none() && blind.commit(event().giving_way()).await.is_ok());
        memory.set_room(Some(Room { medium: Medium::Disk, free: 3, size: 1_000 }));
        assert!(blind.room().await.is_some_and(|room| room.is_low()), "a first look that failed is repeated");
        memory.fail_room();
        // Each transaction brings more than a quarter of the reserve, so that each looks.
        for _ in 0..3 {
            let refused = blind.commit(event().giving_way()).await.unwrap_err();
            assert!(matches!(refused, StoreError::LowOnSpace { .. }));
        }
    }

    #[tokio::test]
    async fn i10_much_that_is_written_within_a_second_is_looked_at() {
        let memory = Memory::default();
        memory.set_room(Some(Room { medium: Medium::Disk, free: 8_000, size: 10_000 }));
        let store = memory.store().keeping(Reserve { disk: 8_000, memory_percent: 5 });
        store.commit(event().giving_way()).await.unwrap();
        memory.set_room(Some(Room { medium: Medium::Disk, free: 7_999, size: 10_000 }));
        let refused = async || store.commit(event().giving_way()).await.is_err();
        assert!(refused().await || refused().await || refused().await, "after a quarter of the reserve");
    }
}
