//! Principals and their revocations, for people.

use jiff::Timestamp;

use super::super::json::{
    KnownPrincipalJson, PrincipalsJson, RevocationJson, RevokedCertificateJson, RevokedProofsJson,
};
use super::{dash, list, or_dash, table, when};

/// Draws a list of principals, and below it the certificates that were revoked alone.
pub(crate) fn principals(list: &PrincipalsJson, now: Timestamp) -> String {
    let header = ["PRINCIPAL", "ROLES", "STATUS", "GRANTS", "NEWEST SERIAL", "CERTIFICATE ENDS", "REVOKED"];
    let known = table(header, list.principals.iter().map(|known| row(known, now)));
    if list.revoked_certificates.is_empty() {
        return known;
    }
    let alone = list.revoked_certificates.iter().map(|alone| certificate(alone, now));
    format!("{known}\n\n{}", table(["CERTIFICATE", "REVOKED"], alone))
}

/// Draws a revocation.
pub(crate) fn revoked_proofs(revoked: &RevokedProofsJson, now: Timestamp) -> String {
    let mut facts = Vec::new();
    if let Some(known) = &revoked.principal {
        facts.push(("principal", known.name.clone()));
    }
    if let Some(serial) = &revoked.serial {
        facts.push(("certificate", serial.clone()));
    }
    facts.push(("revoked", revocation(revoked.revocation.as_ref(), now)));
    if revoked.serial.is_none() {
        facts.push(("closes", or_dash(&revoked.closed_grants.join(" "))));
    }
    list(facts)
}

fn row(known: &KnownPrincipalJson, now: Timestamp) -> [String; 7] {
    let newest = known.certificates.iter().max_by_key(|certificate| certificate.issued_at);
    [
        known.name.clone(),
        or_dash(&known.roles.join(" ")),
        if known.revoked { "revoked" } else { "valid" }.to_owned(),
        known.open_grants.to_string(),
        newest.map_or_else(dash, |newest| {
            if newest.revoked { format!("{} (revoked)", newest.serial) } else { newest.serial.clone() }
        }),
        newest.map_or_else(dash, |newest| when(newest.not_after, now)),
        known.revocation.as_ref().map_or_else(dash, |found| revocation(Some(found), now)),
    ]
}

fn certificate(alone: &RevokedCertificateJson, now: Timestamp) -> [String; 2] {
    [alone.serial.clone(), revocation(alone.revocation.as_ref(), now)]
}

fn revocation(revocation: Option<&RevocationJson>, now: Timestamp) -> String {
    let Some(RevocationJson { by, at, reason }) = revocation else { return dash() };
    let by = by.as_ref().map_or_else(dash, ToString::to_string);
    let reason = if reason.is_empty() { String::new() } else { format!(": {reason}") };
    format!("{} by {by}{reason}", when(*at, now))
}
