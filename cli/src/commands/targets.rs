//! `targets`.

use postern_core::TargetId;
use postern_proto::v1;

use super::pages;
use crate::connect::BrokerClient;
use crate::error::Failure;
use crate::output::{Console, json, table};

/// Lists every target.
///
/// # Errors
/// The broker refuses or is away.
pub(super) async fn all(broker: &BrokerClient, console: &mut Console) -> Result<(), Failure> {
    let targets = pages::all(|page| async move {
        let request = v1::ListTargetsRequest { page: Some(page) };
        let answer = broker.call(broker.targets().list_targets(request)).await?;
        Ok((answer.targets, answer.next_page_token))
    })
    .await?;
    let targets = targets.into_iter().map(json::TargetJson::from).collect();
    let ids = console.ids();
    Ok(console.show(&json::TargetsJson { targets }, |it, now| table::targets(it, now, ids))?)
}

/// Shows one target.
///
/// # Errors
/// No such target exists.
pub(super) async fn one(
    broker: &BrokerClient,
    console: &mut Console,
    target: &TargetId,
) -> Result<(), Failure> {
    let request = v1::GetTargetRequest { id: target.to_string() };
    let answer = broker.call(broker.targets().get_target(request)).await?;
    let target =
        answer.target.ok_or_else(|| Failure::BadAnswer { what: "it contains no target".to_owned() })?;
    Ok(console.show(&target.into(), table::target)?)
}
