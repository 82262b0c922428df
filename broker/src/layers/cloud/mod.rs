//! The cloud layer: the driver that takes each target from what its cloud holds to what it must hold.
//!
//! The problem: windows in a cloud are rules behind an API that is slow, throttled and shared. A call may take effect and its
//! answer be lost; another principal may edit the rules; another broker may have worked on the same target a moment ago. A
//! window must end at its end all the same (I2), and must never count as closed while it may be open (I6).
//!
//! The words:
//! - A *target state* is what the driver knows of one target: the *desired* windows (what the reconciler wants), the *known*
//!   windows (those of every grant that is not over), the *observed* windows (what the cloud holds), and what is amiss.
//! - A *round* is one visit to one target: look if need be, close, repair, open. At most one round at a time works on a target.
//! - A *look* reads one target from its cloud. A *sweep* reads every target that Postern manages, from time to time, and finds
//!   what the store does not know of.
//! - *Drift* is a change that another principal made. A *stray* is a rule among Postern's own that is no window.
//! - An *exclusive* round belongs to a lockdown or a release: no other round, here or on another broker, runs beside it.
//!
//! The rules that are kept:
//! - Closes come before everything else in a round, each grant for itself: no refusal of one step keeps another window open.
//! - An end needs no word from the store. What has ended is closed by every broker that sees it, with or without the lease;
//!   everything else needs the lease ([`crate::cluster::leases`]).
//! - A window is open once the cloud said so, and closed once a look or the answer to a close said so. Only the provider's
//!   typed not-found means that a target is gone.
//!
//! On a failure:
//! - A call fails or is not answered: the observed windows are forgotten, and the next round begins with a look, after a pause
//!   that grows to 15 s and, by chance, up to twice that. The third failure in a row is an alarm. A close is retried without
//!   end.
//! - The store is away: what has ended is closed, nothing is opened, and records wait in the audit outbox.
//! - The lease is lost during a round: nothing more is opened, the target is forgotten when the round ends, and the broker that
//!   holds the lease is asked to look again.
//! - The target was taken over from another broker: it is looked at now and once more ten seconds later, because the other's
//!   last call may land late. Until then nothing there counts as closed.

mod audit_outbox;
mod driver;
mod layer;
mod lockdown;
mod log;
mod sweep;
mod target_state;

pub use layer::CloudLayer;
