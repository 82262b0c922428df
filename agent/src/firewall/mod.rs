//! The host layer: the kernel's rules. Postern owns one nftables table on this host, `inet postern`, and touches nothing
//! else (I6).
//!
//! The words:
//!
//! - The *policy* ([`policy`]) is the desired state of the layer: the mode, the protected ports, the open windows.
//! - The *layout* is the mode and the ports. It decides the chains and rules of the table ([`ruleset`]).
//! - The *elements* ([`elements`]) are the windows as members of the table's sets, each with its own timeout: the kernel
//!   ends a window by itself.
//! - The *established connections* ([`established`]) are those older than the table; sets of their own let them through
//!   (I3).
//! - The *ruleset number* counts every transaction of every process on this host ([`kernel`]).
//! - The *owner* of the table ([`ownership`]) is a socket of the agent: on Linux 6.9 and later no other program can change or flush the
//!   table, also while the agent hangs or is restarted. On older kernels the table has no owner.
//! - The *fingerprint* ([`fingerprint`]) shows whether another process changed the table.
//!
//! The rule: every change is one transaction, and the agent reads back what the kernel holds ([`enforcer`]). A change of
//! windows goes over netlink, on condition that the ruleset still has the number under which the table was last known; a
//! change of more than 512 elements goes through [`nft`] first, or, where the table is owned, replaces it. A change of the layout replaces
//! the whole table through [`nft`], and so does every start, and every damage that the agent cannot undo window by window.
//!
//! Why a table is replaced whole:
//!
//! - The transaction deletes and builds the table, so the kernel goes from the old rules to the new ones at once. An owned table takes
//!   several transactions, during which a second table has the same rules. A protected port is never open in between.
//! - The agent does not need to know what is there. The table of an older version, with other chains and sets, and a
//!   table that another process has edited are both removed with everything in them. Nothing has to be migrated, or
//!   repaired field by field, which would need a rule for every possible edit.
//! - Nothing is lost: the accepted state has every window with its end, and established connections are found from their
//!   sockets again.
//!
//! On trial ([`crate::enforcement`]) the table denies only while a set has its elements, whose timeout is the end of the trial; after that it
//! monitors. So the kernel ends a trial by itself.
//!
//! What happens on each failure: the kernel refuses a transaction whole, and holds what it held before. If another process
//! changed the ruleset meanwhile, the agent reads the table, repairs it, and tries again for 3 s before it reports an
//! error. If the agent stops, the table and its timeouts stay. [`watch`] reports when another process touches the table.

mod diagnose;
mod elements;
mod enforcer;
mod error;
mod established;
mod fingerprint;
mod kernel;
mod nft;
mod ownership;
pub mod policy;
mod ruleset;
mod table;
mod transactions;
pub mod watch;

pub use diagnose::diagnose;
pub use enforcer::Enforcer;
pub use error::FirewallError;
pub(crate) use established::tcp_entries;
pub use ownership::{Ownership, forget_stored_socket, remove_table, take_stored_socket};
pub use table::TABLE;
