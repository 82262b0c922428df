//! `assess`.

use postern_core::Protocol;
use postern_proto::{convert, v1};

use crate::args::{AssessArgs, FailOn};
use crate::connect::BrokerClient;
use crate::error::Failure;
use crate::output::{Console, json, table};

/// Assesses the VMs for exposed management ports.
///
/// # Errors
/// The broker refuses or is away, or could not read every place; with `--fail-on`, also an unhealthy VM.
pub(super) async fn assess(
    broker: &BrokerClient,
    console: &mut Console,
    asked: AssessArgs,
) -> Result<(), Failure> {
    let ports = asked.ports.iter().map(|port| convert::port_to_wire(port.with(Protocol::Tcp)));
    let request = v1::AssessTargetsRequest {
        targets: asked.targets.iter().map(ToString::to_string).collect(),
        management_ports: ports.collect(),
    };
    let answer = broker.cloud_call(broker.targets().assess_targets(request)).await?;
    let report = json::AssessmentReportJson::from(answer);
    let ids = console.ids();
    console.show(&report, |it, now| table::assessment_report(it, now, ids))?;
    check(&report, asked.fail_on)
}

/// Fails on an unhealthy VM if that is asked for, and on a place that could not be read: a VM there may be unhealthy.
fn check(report: &json::AssessmentReportJson, fail_on: Option<FailOn>) -> Result<(), Failure> {
    let unhealthy = report.assessments.iter().filter(|one| one.verdict == json::UNHEALTHY).count();
    match fail_on {
        Some(FailOn::Unhealthy) if unhealthy > 0 => return Err(Failure::Unhealthy { count: unhealthy }),
        Some(FailOn::Unhealthy) | None => {}
    }
    if report.unread.is_empty() { Ok(()) } else { Err(Failure::Unread { places: report.unread.len() }) }
}
