//! `doctor`: finds what keeps this host from being protected, and names the remedy.

use std::time::Duration;

use postern_core::checkpoint::Checkpoint;
use postern_pki::credentials::Credentials;
use postern_pki::renewal::GRACE;
use postern_pki::tls;
use postern_proto::client;
use postern_runtime::error_chain::error_chain;
pub use postern_runtime::findings::{Finding, Severity, write_text};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::checkpoint::{self, CheckpointAlarm, KeptCheckpoint};
use crate::clock::Moment;
use crate::config::AgentConfig;
use crate::enforcement::PhaseName;
use crate::enroll::target_of;
use crate::ledger::Ledger;
use crate::lock::StateDirLock;
use crate::receipt::{self, Receipt};
use crate::status::{self, EnforcementStatus, KEPT, clock_difference, is_clock_off};
use crate::status_chain::{is_past_grace, status_chain};

/// The longest wait for an answer of the broker.
const BROKER_TIMEOUT: Duration = Duration::from_secs(10);
/// The time left of a certificate below which its renewal must have been failing.
const RENEWAL_OVERDUE: Duration = Duration::from_secs(600);

/// Checks everything but the firewall.
pub async fn diagnose(config: &AgentConfig, now: &Moment) -> Vec<Finding> {
    let mut findings = vec![running(config)];
    let ahead = status::running(&config.state_dir).and_then(|running| running.clock_ahead_seconds);
    findings.extend(ahead.map(clock));
    findings.extend(ledger(config, now));
    findings.extend(enforcement(config, now));
    findings.extend(audit_log(config));
    let enroll = "enrol this host with `postern-agent enroll --token-file FILE`";
    match Credentials::load(&config.identity_dir()) {
        Err(_) if !Credentials::exist(&config.identity_dir()) => {
            findings.push(Finding::error("this host is not enrolled", enroll));
        }
        Err(error) => findings.push(Finding::error(error_chain(&error), enroll)),
        Ok(credentials) => {
            let receipt = Receipt::load(&config.identity_dir(), &credentials);
            findings.push(certificate(&credentials, receipt.as_ref(), now));
            findings.push(broker(config, &credentials).await);
        }
    }
    findings
}

fn running(config: &AgentConfig) -> Finding {
    let start = "start it with `systemctl start postern-agent`";
    match config.state_dir.join("lock").exists().then(|| StateDirLock::take(&config.state_dir)) {
        Some(Ok(None)) => Finding::good("the agent runs"),
        Some(Ok(Some(_))) | None => Finding::error(
            "the agent does not run: open windows still end on time, but no new window opens",
            start,
        ),
        Some(Err(error)) => {
            Finding::error(format!("cannot read {}: {error}", config.state_dir.display()), "run this as root")
        }
    }
}

fn ledger(config: &AgentConfig, now: &Moment) -> Vec<Finding> {
    let ledger = Ledger::in_dir(&config.state_dir);
    let accepted = ledger.load(now);
    let keeps = accepted.as_ref().is_ok_and(|accepted| accepted.as_ref().is_some_and(|it| it.keeps));
    let kept = keeps.then(|| {
        Finding::error(
            format!("this host keeps its ports shut: {KEPT}"),
            "see docs/operations.md, \"A store that went back\"",
        )
    });
    let mut findings = vec![match &accepted {
        Err(error) => Finding::error(
            error_chain(error),
            "the broker sends its content again once the agent is connected",
        ),
        Ok(Some(accepted)) if !accepted.is_bootstrap && accepted.generation == 0 => Finding::warning(
            format!(
                "this host has accepted no desired state yet; {} ports of one that it refused are protected",
                accepted.ports.len()
            ),
            "look at the agent's log for the bound that the state was past",
        ),
        Ok(Some(accepted)) if !accepted.is_bootstrap => Finding::good(format!(
            "the ledger holds generation {} with {} protected ports and {} open windows",
            accepted.generation,
            accepted.ports.len(),
            accepted.windows.len()
        )),
        Ok(_) => Finding::warning(
            "no broker has sent this host a desired state yet",
            "enrol it and start the agent",
        ),
    }];
    if let Ok(Some(written)) = ledger.written()
        && now.wall < written.wall
    {
        findings.push(Finding::error(
            format!("the clock shows {:.0}, but the ledger was written at {:.0}", now.wall, written.wall),
            "set the clock and keep it set (NTP): certificates depend on it",
        ));
    }
    findings.extend(kept);
    findings
}

/// Shows the way to enforcement, if the configuration has a trial.
fn enforcement(config: &AgentConfig, now: &Moment) -> Option<Finding> {
    config.confirm_within?;
    let mut unreadable = None;
    let found = EnforcementStatus::gather(config, now, &mut |error| unreadable = Some(error_chain(error)));
    if let Some(error) = unreadable {
        return Some(Finding::warning(error, "repair the disk, or run `postern-agent enforce --now`"));
    }
    Some(match found.phase {
        PhaseName::Untried => {
            Finding::good("this host closes its ports on trial when a policy enforces for the first time")
        }
        PhaseName::Confirmed => Finding::good("an operator has confirmed that this host enforces"),
        PhaseName::Trial => Finding::warning(
            format!(
                "this host enforces on trial, and goes back to monitoring in {} s",
                found.trial_seconds_left.unwrap_or_default()
            ),
            "log in over a protected port once more, and run `postern-agent confirm` there",
        ),
        PhaseName::Lapsed => Finding::error(
            "no operator confirmed the trial, so this host only monitors: its ports are open",
            "open a window, run `postern-agent enforce`, log in once more, and run `postern-agent confirm`",
        ),
    })
}

/// Shows the kept checkpoint of the brokers' audit log. A contradiction is no fault of this host, which is protected all the same.
fn audit_log(config: &AgentConfig) -> Option<Finding> {
    let KeptCheckpoint { newest, alarm } = match checkpoint::read(&config.state_dir) {
        Ok(kept) => kept,
        Err(error) => {
            return Some(Finding::warning(
                format!("{}; meanwhile this host keeps no checkpoint", error_chain(&error)),
                "repair the disk, or remove the file if it is damaged: the agent then keeps the next checkpoint that a broker sends",
            ));
        }
    };
    let Checkpoint { seq, at, .. } = newest?.checkpoint;
    Some(match alarm {
        None => {
            Finding::good(format!("this host keeps a checkpoint of the audit log: record {seq}, of {at}"))
        }
        Some(CheckpointAlarm { since, received }) => Finding::warning(
            format!(
                "the brokers' audit log went back or was rewritten: since {since:.0} a checkpoint of record {} contradicts the kept \
                 one of record {seq}, of {at}",
                received.checkpoint.seq
            ),
            "tell the operators of the broker: `postern audit verify`, and `postern-broker audit accept-head` if the log is right",
        ),
    })
}

/// Judges the difference from the broker's wall clock, in seconds.
fn clock(seconds_ahead: i64) -> Finding {
    let what = format!("the wall clock of this host: {}", clock_difference(seconds_ahead));
    if is_clock_off(seconds_ahead) {
        Finding::warning(
            what,
            "set the clock and keep it set (NTP): brokers and TLS judge certificates by it",
        )
    } else {
        Finding::good(what)
    }
}

/// Judges the certificate by its age; the clock of this host may be wrong.
fn certificate(credentials: &Credentials, receipt: Option<&Receipt>, now: &Moment) -> Finding {
    let (from, until) = (credentials.not_before(), credentials.not_after());
    let Some(target) = target_of(credentials) else {
        return Finding::error(
            "the certificate is not an agent's",
            "enrol this host again with a fresh token",
        );
    };
    if now.wall < from {
        let what = format!("the clock shows {:.0}, but the certificate begins at {from:.0}", now.wall);
        return Finding::error(what, "set the clock and keep it set (NTP)");
    }
    let (age, life) = (receipt::age(credentials, receipt, now), receipt::life(credentials));
    if age >= life {
        let what = format!("the certificate of {target} ended at {until:.0}");
        return if age - life <= GRACE {
            Finding::warning(
                what,
                "a running agent renews it as soon as it reaches the broker; check the clock as well",
            )
        } else {
            Finding::error(what, "check the clock; if it is right, enrol this host again with a fresh token")
        };
    }
    let what = format!("the certificate names {target} and is valid until {until:.0}");
    if life - age < RENEWAL_OVERDUE {
        return Finding::warning(what, "it should have been renewed by now; look at the agent's log");
    }
    Finding::good(what)
}

async fn broker(config: &AgentConfig, credentials: &Credentials) -> Finding {
    let address = &config.broker;
    let unreachable = |why: String| {
        let remedy = "check the address, that its port is open from here, and that this agent is not banned";
        Finding::error(format!("the broker {address} cannot be reached: {why}"), remedy)
    };
    let tls = match tls::client_config(credentials) {
        Ok(tls) => tls,
        Err(error) => return unreachable(error_chain(&error)),
    };
    let channel = match client::channel(address, tls) {
        Ok(channel) => channel,
        Err(error) => return unreachable(error_chain(&error)),
    };
    let mut health = HealthClient::new(channel);
    match tokio::time::timeout(BROKER_TIMEOUT, health.check(HealthCheckRequest::default())).await {
        Err(_) => unreachable(format!("no answer within {} s", BROKER_TIMEOUT.as_secs())),
        Ok(Err(status)) if is_past_grace(&status) => Finding::error(
            format!(
                "the broker {address} refuses the certificate: by the broker's clock it has ended, or has not begun"
            ),
            "compare the clocks of this host and of the broker; if both are right, enrol this host again with a fresh token",
        ),
        Ok(Err(status)) => unreachable(status_chain(&status)),
        Ok(Ok(_)) => Finding::good(format!("the broker {address} answers")),
    }
}
