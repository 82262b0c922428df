//! `lockdown` and `release`.

use postern_proto::v1;

use crate::args::{Accept, LockdownArgs, ReleaseArgs};
use crate::connect::BrokerClient;
use crate::error::Failure;
use crate::output::{Console, json, table};

/// The number of VMs from which on a command says that it takes a while.
const MANY: usize = 5;

/// Locks VMs down, or lists the changes of a dry run.
///
/// # Errors
/// The broker refuses or is away, or a VM was not locked down.
pub(super) async fn lockdown(
    broker: &BrokerClient,
    console: &mut Console,
    asked: LockdownArgs,
) -> Result<(), Failure> {
    let request = v1::LockdownTargetsRequest {
        targets: asked.targets.iter().map(ToString::to_string).collect(),
        dry_run: asked.dry_run,
        accept: asked.accept.iter().map(|kind| v1::ConcernKind::from(*kind).into()).collect(),
    };
    announce(console, "locks", "down", request.targets.len(), asked.dry_run);
    let answer = broker.cloud_call(broker.targets().lockdown_targets(request)).await?;
    show(console, "locked down", asked.dry_run, answer.results)
}

/// Releases VMs from lockdown, or lists the changes of a dry run.
///
/// # Errors
/// The broker refuses or is away, or a VM was not released.
pub(super) async fn release(
    broker: &BrokerClient,
    console: &mut Console,
    asked: ReleaseArgs,
) -> Result<(), Failure> {
    let request = v1::ReleaseTargetsRequest {
        targets: asked.targets.iter().map(ToString::to_string).collect(),
        dry_run: asked.dry_run,
    };
    announce(console, "releases", "", request.targets.len(), asked.dry_run);
    let answer = broker.cloud_call(broker.targets().release_targets(request)).await?;
    show(console, "released", asked.dry_run, answer.results)
}

/// Notes that many VMs take a while, and where their progress is.
fn announce(console: &mut Console, verb: &str, particle: &str, count: usize, dry_run: bool) {
    if count < MANY || dry_run {
        return;
    }
    let particle = if particle.is_empty() { String::new() } else { format!(" {particle}") };
    console.note(&format!(
        "the broker {verb} {count} VMs{particle} one after the other, which may take minutes; `postern audit tail` shows each as it is done"
    ));
}

fn show(
    console: &mut Console,
    participle: &'static str,
    dry_run: bool,
    results: Vec<v1::LockdownResult>,
) -> Result<(), Failure> {
    let results = results.into_iter().map(json::LockdownResultJson::from).collect();
    let lockdowns = json::LockdownsJson { dry_run, results };
    console.show(&lockdowns, |lockdowns, _| table::lockdowns(lockdowns, participle))?;
    // A dry run succeeds by listing changes and concerns; only an error makes it fail.
    let failed = |result: &&json::LockdownResultJson| result.error.is_some() || !(result.done || dry_run);
    let count = lockdowns.results.iter().filter(failed).count();
    if count == 0 { Ok(()) } else { Err(Failure::NotDone { count, of: lockdowns.results.len(), participle }) }
}

impl From<Accept> for v1::ConcernKind {
    fn from(accept: Accept) -> Self {
        match accept {
            Accept::Shared => Self::Shared,
            Accept::Loss => Self::Loss,
            Accept::Cut => Self::Cut,
            Accept::Precedence => Self::Precedence,
        }
    }
}
