//! Health that tells the truth: serving while the reconciler's loop goes round.

use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::clock::Clock;
use crate::reconcile::Pulse;

/// How long the loop may take for one round; it goes round at least every 5 s.
const ROUND: SignedDuration = SignedDuration::from_secs(30);

/// Reports whether the loop goes round, until the process ends.
///
/// # Errors
/// Never.
pub async fn watch_pulse(reporter: HealthReporter, pulse: Arc<Pulse>, clock: Clock) -> anyhow::Result<()> {
    loop {
        let alive = pulse.last().is_some_and(|last| clock.now().duration_since(last) < ROUND);
        let status = if alive { ServingStatus::Serving } else { ServingStatus::NotServing };
        reporter.set_service_status("", status).await;
        tokio::time::sleep(if alive { Duration::from_secs(5) } else { Duration::from_millis(50) }).await;
    }
}
