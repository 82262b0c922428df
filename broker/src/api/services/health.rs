//! The gRPC health service: it answers SERVING while the broker is ready.

use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::clock::boottime;
use crate::readiness::Readiness;
use crate::signals::rounds::RoundReporter;

/// Keeps the health service at the broker's readiness until the process ends.
///
/// # Errors
/// Never.
pub async fn report_health(
    reporter: HealthReporter,
    readiness: Readiness,
    rounds: RoundReporter,
) -> anyhow::Result<()> {
    let mut changes = readiness.watch();
    loop {
        let ready = changes.borrow_and_update().is_empty();
        let status = if ready { ServingStatus::Serving } else { ServingStatus::NotServing };
        reporter.set_service_status("", status).await;
        rounds.succeeded(boottime());
        if changes.changed().await.is_err() {
            return Ok(());
        }
    }
}
