//! This broker as one of several: its membership, its leases, and what the others tell.
//!
//! [`leases`] knows what this broker may work on, [`member`] keeps the membership alive and takes over from members that
//! are gone, [`follower`] hears what the others changed, and [`views`] tells and reads how targets stand. A broker with a
//! store to itself holds every lease, and the rest has nothing to do.

mod follower;
mod leases;
mod member;
mod views;

use std::sync::Arc;

use crate::store::Members;
use crate::store::alone::Alone;
pub use follower::Follower;
pub use leases::{Held, Leases};
pub use member::Member;
pub use views::{Sights, View, Views};

/// What the rest of the broker sees of the others.
pub struct Replica {
    /// What this broker may work on.
    pub leases: Leases,
    /// How targets stand, for the others and from them.
    pub views: Views,
    /// Who else is there.
    pub members: Arc<dyn Members>,
}

impl Replica {
    /// One of these members.
    pub fn of(members: Arc<dyn Members>) -> Arc<Self> {
        let leases = Leases::new(Arc::clone(&members));
        let views = Views::new(Arc::clone(&members));
        Arc::new(Self { leases, views, members })
    }

    /// The only one.
    pub fn alone() -> Arc<Self> {
        Self::of(Arc::new(Alone::default()))
    }
}
