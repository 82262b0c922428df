//! The principals that the broker knows: who was given a certificate, and whose proofs are revoked.
//!
//! **The problem.** A person's certificate lives for up to a year, and its private key is with the person. When the key is stolen
//! or the person leaves, no broker may admit it any more, at once and on every broker of the store.
//!
//! **The words.**
//!
//! - A *revocation* of a principal holds for each of its proofs that was issued up to then, in whatever role, and for each that the
//!   broker knows, whatever its date. A proof that is issued later admits again. A revocation of a certificate holds for one serial
//!   number.
//! - An *issuance* ([`Issuance`]) is what a proof says of its own origin: when it was issued, and its serial number.
//! - The *journal* ([`Journal`]) is how `postern-broker issue` reports a certificate: it needs no running broker, and the store may
//!   be locked by one. It leaves a file for each certificate in the broker's data directory. The broker takes up those files.
//!
//! **The rule.** [`Revocations`] holds every revocation in memory, so that the authorization of a call reads no store. It only
//! grows: neither a store that cannot be read nor one that lost records admits a revoked proof again while this broker runs. A grant
//! is committed on the condition that its principal's revocation is as this broker knows it, so that no request that another
//! broker's revocation overtakes leaves a grant behind (I7).
//!
//! **The course.** The broker that revokes knows it before it answers. The others learn it by the event of the commit, and the
//! [`PrincipalKeeper`] of each looks once a second besides, and reads the revocations if the audit log has moved. A broker reads them before it listens.
//!
//! **On failure.** While the store cannot be read, the revocations stay as they were known last, and the round of the keeper fails.
//! No revocation is made in that time either.

mod journal;
mod keeper;
mod revocations;

pub use journal::{IssuedEntry, Journal, PendingEntry};
pub(crate) use keeper::with_issued;
pub use keeper::{LOOK_INTERVAL, PrincipalKeeper};
pub use revocations::{Issuance, Revocations};
