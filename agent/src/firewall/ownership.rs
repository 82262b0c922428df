//! The ownership of the table: a table with an owner is out of reach of other programs.
//!
//! The problem: `nft flush ruleset` of another program removes every table, Postern's included, and the ports are open until the agent
//! has put it back. With the agent hung or stopped that takes long.
//!
//! Linux 6.9 and later has the remedy. A table can have a socket as its owner (NFT_TABLE_F_OWNER): only that socket changes it, and a flush
//! by another program leaves it out. With NFT_TABLE_F_PERSIST it outlives the socket: it stays in the kernel, without an owner.
//!
//! What the kernel allows, and so how a table is built:
//!
//! - `nft` cannot own a table, because its socket ends with it, and nft 1.0 cannot ask for the flags. The agent creates the empty table over
//!   netlink with the persist flag alone, `nft` fills it, and the agent adopts it: only a table that persists and has no owner can be
//!   adopted. The adoption is conditional on the number of the ruleset, so nothing of another program is adopted with it.
//! - Flags cannot be taken off, and `nft` cannot change an owned table. So a change of the layout builds the whole table again. Meanwhile a second
//!   table, [`GUARD`], has the same rules, and is owned before the first is removed: at each moment one of the two is complete and
//!   out of reach.
//! - Elements change over the owning socket.
//!
//! Ownership is the socket's, not the process's. The agent hands a duplicate of the descriptor to the service manager (`FDSTORE=1`,
//! sd_notify(3)) and receives it with the next start (sd_listen_fds(3)): the table stays owned while the agent hangs, is killed or is
//! restarted. When the unit is stopped, systemd closes the descriptor. Then the table stays without an owner, and can be removed.
//!
//! On an older kernel, or with `POSTERN_TABLE_OWNER=off`, the table has no owner, and the agent undoes what other programs change.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use netlink_bindings::nftables::TableFlags;
use rustix::io::Errno;
use sd_notify::NotifyState;

use super::FirewallError;
use super::kernel::{Kernel, RulesetId, TableInfo, begin_batch, inet, is, is_interference, refusal};
use super::table::{COMMENT, GUARD, TABLE};
use super::transactions::TransactionSocket;

/// The flag of a table that outlives its owner.
const PERSIST: u32 = TableFlags::Persist as u32;
/// The flags of an owned table.
const OWNED: u32 = TableFlags::Owner as u32 | PERSIST;
/// The name of the table that a dry run asks for; it never exists.
const DRY_RUN: &str = "postern_dry_run";
/// The name under which the service manager keeps the owning socket.
const STORED_NAME: &str = "postern-table";
/// The type of a comment in the user data of a table (NFTNL_UDATA_TABLE_COMMENT).
const UDATA_COMMENT: u8 = 0;

/// The ownership that an enforcer asks the kernel for.
#[derive(Debug)]
pub enum Ownership {
    /// The table has no owner.
    Shared,
    /// A socket owns the table where the kernel can do that: the stored one, or a new one.
    Owned {
        /// The socket of an earlier agent.
        stored: Option<OwnedFd>,
    },
}

/// Takes the owning socket that the service manager kept from an earlier agent. To be called once, at the start of the process: it takes
/// over the descriptors that the environment names.
pub fn take_stored_socket() -> Option<OwnedFd> {
    let received = sd_listen_fds::get().unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot read which descriptors the service manager passes");
        Vec::new()
    });
    let mut named = received.into_iter().filter(|(name, _)| name.as_deref() == Some(STORED_NAME));
    named.next().map(|(_, socket)| socket.into_std())
}

/// Asks the service manager to close the owning socket that it keeps.
pub fn forget_stored_socket() {
    tell(sd_notify::notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(STORED_NAME)]));
}

/// Hands a duplicate of the owning socket to the service manager, if there is one.
pub(super) fn store(socket: &TransactionSocket) {
    // Without FDPOLL=0 systemd drops a socket that reports an error, such as answers that were lost.
    let state = [NotifyState::FdStore, NotifyState::FdName(STORED_NAME), NotifyState::Custom("FDPOLL=0")];
    tell(sd_notify::notify_with_fds(&state, &[socket.as_fd()]));
}

fn tell(outcome: io::Result<()>) {
    if let Err(error) = outcome {
        tracing::warn!(%error, "cannot notify the service manager of the socket that owns the table");
    }
}

impl TableInfo {
    /// Reports whether the table outlives its owner.
    pub(super) fn persists(&self) -> bool {
        self.flags & PERSIST != 0
    }
}

impl Kernel {
    /// Reports whether the kernel knows tables whose owner can go and come back. A dry run: nothing changes.
    ///
    /// # Errors
    /// The kernel refused for another reason.
    pub(super) fn can_own_tables(&mut self) -> Result<bool, FirewallError> {
        let failed = refusal("try a table with an owner");
        let mut batch = begin_batch(None);
        let request = batch.request().set_create();
        request.op_newtable_do(&inet()).encode().push_name_bytes(DRY_RUN.as_bytes()).push_flags(OWNED);
        // Without its end, the kernel checks a batch and undoes it.
        let outcome = self.transactions().and_then(|socket| socket.send(batch.finalize().buf()));
        match outcome {
            Ok(()) => Ok(true),
            Err(error) if is(&error, Errno::OPNOTSUPP) || is(&error, Errno::INVAL) => Ok(false),
            Err(error) => Err(failed(error)),
        }
    }

    /// Replaces a table, whatever it holds, by an empty one that can be adopted, if the ruleset still has this number.
    ///
    /// # Errors
    /// [`FirewallError::Interfered`], [`FirewallError::Owned`], or the kernel refused. Nothing was changed.
    pub(super) fn begin_table(&mut self, name: &str, ruleset: RulesetId) -> Result<(), FirewallError> {
        let exists = self.changeable_table(name)?.is_some();
        let mut batch = begin_batch(Some(ruleset));
        if exists {
            batch.request().op_deltable_do(&inet()).encode().push_name_bytes(name.as_bytes());
        }
        let mut comment = vec![UDATA_COMMENT, u8::try_from(COMMENT.len() + 1).unwrap_or(u8::MAX)];
        comment.extend(COMMENT.bytes().chain([0]));
        let mut create = batch.request().set_create().op_newtable_do(&inet());
        create.encode().push_name_bytes(name.as_bytes()).push_flags(PERSIST).push_userdata(&comment);
        drop(create);
        self.commit(batch).map_err(or_interference(refusal("create a table")))
    }

    /// Makes this agent's socket the owner of a table that persists and has no owner, if the ruleset still has this number.
    ///
    /// # Errors
    /// As [`Self::begin_table`].
    pub(super) fn adopt(&mut self, name: &str, ruleset: RulesetId) -> Result<(), FirewallError> {
        let mut batch = begin_batch(Some(ruleset));
        batch.request().op_newtable_do(&inet()).encode().push_name_bytes(name.as_bytes()).push_flags(OWNED);
        self.commit(batch).map_err(or_interference(refusal("become the owner of the table")))
    }

    /// Deletes a table with everything in it. Returns whether there was one.
    ///
    /// # Errors
    /// As [`Self::begin_table`].
    pub(super) fn delete_table(&mut self, name: &str) -> Result<bool, FirewallError> {
        if self.changeable_table(name)?.is_none() {
            return Ok(false);
        }
        let mut batch = begin_batch(None);
        batch.request().op_deltable_do(&inet()).encode().push_name_bytes(name.as_bytes());
        match self.commit(batch) {
            Ok(()) => Ok(true),
            Err(error) if is(&error, Errno::NOENT) => Ok(false),
            Err(error) => Err(refusal("delete a table")(error)),
        }
    }

    /// Returns the description of a table.
    ///
    /// # Errors
    /// [`FirewallError::Owned`] where another socket owns it.
    pub(super) fn changeable_table(&mut self, name: &str) -> Result<Option<TableInfo>, FirewallError> {
        let Some(table) = self.table(name)? else { return Ok(None) };
        let own = self.transactions.as_ref().map(TransactionSocket::port);
        match table.owner {
            Some(owner) if Some(owner) != own => Err(FirewallError::Owned { table: name.to_owned(), owner }),
            Some(_) | None => Ok(Some(table)),
        }
    }
}

/// Returns the error of a batch on the condition of a ruleset number.
fn or_interference(failed: impl Fn(io::Error) -> FirewallError) -> impl Fn(io::Error) -> FirewallError {
    move |error| if is_interference(&error) { FirewallError::Interfered } else { failed(error) }
}

/// Removes Postern's tables, if they exist. Established connections are not cut, and each port is then as open as the other rules of the
/// host leave it.
///
/// # Errors
/// The kernel refused, or a running agent or the service manager holds the socket that owns the table.
pub fn remove_table() -> Result<(), FirewallError> {
    let mut kernel = Kernel::new();
    kernel.delete_table(TABLE)?;
    kernel.delete_table(GUARD).map(drop)
}
