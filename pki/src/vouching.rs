//! The roots that a party may take up, because a root that it trusts vouches for them.
//!
//! A *voucher* is a certificate of the next root's key that the old root signed. It has the name of its signer and a path length above 0:
//! no intermediate is one, so the holder of an intermediate's key vouches for nothing.

use jiff::Timestamp;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::{authority, identity};

/// Returns the roots (DER) that a client should trust after a handshake in which a broker showed these certificates besides its own,
/// and which led to one of its `trusted` roots; none if they are those. They are the trusted ones, and those that a trusted one
/// vouches for, without the ones that are older than each root that the broker shows.
pub(crate) fn next_roots<C: AsRef<[u8]>>(trusted: &[Vec<u8>], shown: &[C]) -> Option<Vec<Vec<u8>>> {
    let now = postern_runtime::clock::wall();
    let chain: Vec<Vec<u8>> = shown.iter().map(|der| der.as_ref().to_vec()).collect();
    let is_shown_root = |der: &&Vec<u8>| {
        authority::is_signed_by(der, der)
            && (trusted.contains(*der) || is_vouched_for(der, trusted, &chain, now))
    };
    let shown_roots: Vec<&Vec<u8>> = chain.iter().filter(is_shown_root).collect();
    let begin = |der: &Vec<u8>| identity::validity(der).map_or(Timestamp::MIN, |(not_before, _)| not_before);
    let oldest = shown_roots.iter().map(|der| begin(der)).min()?;
    let is_retired = |der: &&Vec<u8>| begin(der) < oldest && !shown_roots.contains(der);
    let mut next: Vec<Vec<u8>> = trusted.iter().filter(|der| !is_retired(der)).cloned().collect();
    for root in shown_roots {
        if !next.contains(root) {
            next.push(root.clone());
        }
    }
    (next != trusted).then_some(next)
}

/// Reports whether one of the trusted roots vouches for another one, by a certificate in the chain that is valid at `now`.
pub(crate) fn is_vouched_for(root: &[u8], trusted: &[Vec<u8>], chain: &[Vec<u8>], now: Timestamp) -> bool {
    let Ok((_, root)) = X509Certificate::from_der(root) else { return false };
    chain.iter().any(|der| {
        let Ok((_, voucher)) = X509Certificate::from_der(der) else { return false };
        let is_of_root = voucher.subject().as_raw() == root.subject().as_raw()
            && voucher.public_key().raw == root.public_key().raw;
        let ends_later = identity::not_after(der).is_ok_and(|end| now < end);
        is_of_root
            && ends_later
            && signs_intermediates(&voucher)
            && authority::is_self_issued(der)
            && trusted.iter().any(|trusted| authority::is_signed_by(der, trusted))
    })
}

/// Reports whether a certificate may sign intermediates. An intermediate may not: its path length is 0.
fn signs_intermediates(certificate: &X509Certificate<'_>) -> bool {
    let Ok(Some(constraints)) = certificate.basic_constraints() else { return false };
    constraints.value.ca && constraints.value.path_len_constraint.is_none_or(|length| length > 0)
}
