//! `backup` and `restore`: a verified copy of what a broker must not lose, and a data directory made of such a copy.
//!
//! **The problem.** A backup that was never read is no backup. And a store that is put back is older than the world: it knows grants
//! that were revoked since, policies that were narrowed since, and join tokens that were used since.
//!
//! **What a backup holds.** The store as one SQLite database, whatever the broker's own store is; the authority in `ca`, with the keys that
//! a running broker needs (`intermediate.key`, `records.key`), and without those that are kept offline unless `--offline-keys` is given; the
//! trusted checkpoint, the generation of the policies that the broker has seen, and the journal of issued certificates; the
//! configuration; and a [`Manifest`] with the hash of each file. It holds no identity of a person, no file with a secret that the
//! configuration names, and no segment of the audit log.
//!
//! **The rules.**
//!
//! - A backup appears whole or not at all: it is written beside its name, read back and verified, and then renamed.
//! - The files are copied before the store. So the store has every record that the checkpoint names and every policy that the broker has seen.
//! - A restore writes into an empty place alone, and verifies before anything counts: every hash, the chain of the audit log, the
//!   checkpoint, and the numbers of records.
//! - A restored store opens nothing (I2, I4, I7): each grant that is not over is revoked, each join token is removed, and the
//!   policies count as older than those that the broker has seen ([`crate::policies_seen`]), so that requests are refused until an
//!   administrator applies a policy. The audit log has all of it (I9). Windows of grants that the backup does not know are closed as
//!   unknown windows always are.
//!
//! **On failure.** `backup` leaves nothing. `restore` leaves nothing in `data_dir`; a restore that is killed leaves a data directory without
//! `ca`, on which no broker starts, as `ca` is moved in last.

mod check;
mod files;
mod make;
mod manifest;
pub mod report;
mod restore;

pub use make::{BackupCommand, backup};
pub use manifest::{Manifest, ManifestFile};
pub use restore::{RestoreCommand, Restored, restore};

/// The file with the manifest.
const MANIFEST: &str = "manifest.json";
/// The file with the store.
const STORE: &str = "postern.db";
/// The file with the configuration.
const CONFIG: &str = "broker.toml";
/// The directory with the authority.
const AUTHORITY: &str = "ca";
