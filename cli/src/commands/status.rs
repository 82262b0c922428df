//! `status`.

use postern_proto::v1;

use crate::connect::BrokerClient;
use crate::error::Failure;
use crate::output::{Console, json, table};

/// Shows the state of the brokers.
///
/// # Errors
/// The broker refuses or is away; with `--check`, also problems that need attention.
pub(super) async fn status(broker: &BrokerClient, console: &mut Console, check: bool) -> Result<(), Failure> {
    let answer = broker.call(broker.status().get_status(v1::GetStatusRequest {})).await?;
    let status = json::StatusJson::from(answer);
    console.show(&status, table::status)?;
    match status.attention.len() {
        count if check && count > 0 => Err(Failure::Attention { count }),
        _ => Ok(()),
    }
}
