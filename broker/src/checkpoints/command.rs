//! `postern-broker audit`: an operator's commands for the trusted checkpoint, with the broker running or not.

use anyhow::Context as _;
use postern_core::Justification;
use postern_core::audit::Hash;

use super::alarm::in_words;
use super::memory::{Acceptance, Memory, MemoryFile};
use crate::config::BrokerConfig;

/// Describes the trusted checkpoint and the alarm, and returns the description with whether there is an alarm.
///
/// # Errors
/// The file cannot be read.
pub fn status(config: &BrokerConfig) -> anyhow::Result<(String, bool)> {
    let Memory { trusted, alarm, .. } = MemoryFile::of(&config.data_dir).read()?;
    let mut text = match &trusted {
        None => "checkpoint: none yet\n".to_owned(),
        Some(trusted) => {
            let checkpoint = &trusted.checkpoint;
            let signer = trusted.signer().map(|signer| signer.serial).unwrap_or_default();
            let accepted = checkpoint
                .accepted
                .map(|at| format!("accepted: a log was accepted by an operator at {at}\n"));
            format!(
                "checkpoint: record {}, hash {}, signed at {} by the intermediate {signer}\n{}line: {trusted}\n",
                checkpoint.seq,
                checkpoint.hash,
                checkpoint.at,
                accepted.unwrap_or_default()
            )
        }
    };
    if let Some(alarm) = &alarm {
        text += &format!("alarm: {}\n", in_words(alarm, None));
    }
    Ok((text, alarm.is_some()))
}

/// Leaves an operator's acceptance of a head for the broker, which takes it up within seconds.
///
/// # Errors
/// There is no alarm, or a file cannot be read or written.
pub fn accept_head(
    config: &BrokerConfig,
    seq: u64,
    hash: Hash,
    reason: &Justification,
) -> anyhow::Result<String> {
    let file = MemoryFile::of(&config.data_dir);
    let memory = file.read()?;
    anyhow::ensure!(
        memory.alarm.is_some(),
        "there is nothing to accept: this broker has no alarm about the audit log"
    );
    let acceptance = Acceptance { seq, hash, reason: reason.as_str().to_owned() };
    file.leave(&acceptance).context("cannot leave the acceptance for the broker")?;
    Ok(format!(
        "record {seq} is accepted; a broker that runs on {} takes it up within seconds and audits it (`audit.head_accepted`), or \
         logs why it refuses (`audit.acceptance_refused`)",
        config.data_dir.display()
    ))
}
