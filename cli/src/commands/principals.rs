//! `principals list | revoke`.

use std::cell::RefCell;

use postern_proto::v1;
use postern_proto::v1::revoke_principal_request::Proof;

use super::pages;
use crate::args::{PrincipalsCommand, RevokePrincipalArgs};
use crate::connect::BrokerClient;
use crate::error::Failure;
use crate::output::{Console, json, table};

/// Runs one of these commands.
///
/// # Errors
/// The broker refuses or is away.
pub(super) async fn run(
    broker: &BrokerClient,
    console: &mut Console,
    command: PrincipalsCommand,
) -> Result<(), Failure> {
    match command {
        PrincipalsCommand::List => list(broker, console).await,
        PrincipalsCommand::Revoke(revoke) => self::revoke(broker, console, revoke).await,
    }
}

async fn list(broker: &BrokerClient, console: &mut Console) -> Result<(), Failure> {
    // They come after the principals.
    let alone = RefCell::new(Vec::new());
    let principals = pages::all(|page| {
        let alone = &alone;
        async move {
            let request = v1::ListPrincipalsRequest { page: Some(page) };
            let answer = broker.call(broker.principals().list_principals(request)).await?;
            alone.borrow_mut().extend(answer.revoked_certificates);
            Ok((answer.principals, answer.next_page_token))
        }
    })
    .await?;
    let list = json::PrincipalsJson {
        principals: principals.into_iter().map(json::KnownPrincipalJson::from).collect(),
        revoked_certificates: alone
            .into_inner()
            .into_iter()
            .map(json::RevokedCertificateJson::from)
            .collect(),
    };
    Ok(console.show(&list, table::principals)?)
}

async fn revoke(
    broker: &BrokerClient,
    console: &mut Console,
    asked: RevokePrincipalArgs,
) -> Result<(), Failure> {
    let RevokePrincipalArgs { name, serial, reason, keep_grants, allow_self } = asked;
    let principal = name.map(|name| Proof::Principal(name.to_text()));
    let proof = serial.map(|serial| Proof::Serial(serial.to_string())).or(principal);
    let reason = reason.map(String::from).unwrap_or_default();
    let request = v1::RevokePrincipalRequest { proof, reason, keep_grants, allow_self };
    let answer = broker.call(broker.principals().revoke_principal(request)).await?;
    let revoked = json::RevokedProofsJson::from(answer);
    if revoked.is_unknown() {
        console.note("the broker has no record of a certificate of it: check the spelling with `postern principals list`");
    }
    Ok(console.show(&revoked, table::revoked_proofs)?)
}
