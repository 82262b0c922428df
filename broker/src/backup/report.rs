//! The texts about a backup and a restore.

use std::path::Path;

use super::manifest::Manifest;
use super::restore::Restored;
use crate::config::BrokerConfig;

/// Describes a backup that was made.
pub fn made(dir: &Path, manifest: &Manifest, warnings: &[String]) -> String {
    let mut text = String::new();
    for warning in warnings {
        text += &format!("warning: {warning}\n");
    }
    let count = |kind: &str| manifest.records.get(kind).copied().unwrap_or(0);
    text += &format!(
        "the backup is in {}: {} files, {} grants, {} agents, policies of generation {}, the audit log up to record {} (hash {})\n",
        dir.display(),
        manifest.files.len(),
        count("grants"),
        count("agents"),
        manifest.policy_generation,
        manifest.audit_head.seq,
        manifest.audit_head.hash
    );
    text += match manifest.checkpoint {
        Some(_) => {
            "every file was read back; the audit log is one chain, and agrees with the trusted checkpoint\n"
        }
        None => "every file was read back; the audit log is one chain; no checkpoint vouches for it\n",
    };
    text += if manifest.offline_keys {
        "it holds the keys that sign for brokers, agents and people, and the root's as far as they were in data_dir/ca: keep it offline\n"
    } else {
        "it holds the keys that sign for brokers and agents, and not those of the root and for people: keep it as private as data_dir\n"
    };
    for (key, path) in &manifest.needs_besides {
        text += &format!("not in it: {path} ({key})\n");
    }
    text
}

/// Describes a restore, and what an operator does next.
pub fn restored(restored: &Restored, config: &BrokerConfig) -> String {
    let Restored { manifest, grants, tokens, forged } = restored;
    let store = config.redis.as_ref().map_or_else(
        || config.store_path().display().to_string(),
        |settings| format!("{} (tenant {})", settings.endpoint, settings.tenant),
    );
    let mut text = format!(
        "the backup of {:.0} is restored to {}, with its store in {store}; {grants} grants were revoked and {tokens} join tokens removed\n",
        manifest.made_at,
        config.data_dir.display(),
    );
    if *forged > 0 {
        text += &format!("warning: {forged} records in the store are forged: they give no rights\n");
    }
    let missing = manifest.needs_besides.iter().filter(|(_, path)| !Path::new(path).exists());
    for (key, path) in missing {
        text += &format!("warning: {path} ({key}) was not in the backup and is not here\n");
    }
    text += "next:\n\
        1. start the broker: systemctl start postern-broker; it refuses requests and opens nothing until step 3\n\
        2. at once, revoke again each principal and ban again each agent of the time since the backup: postern principals revoke NAME, \
        postern agents ban TARGET\n\
        3. compare the policies with your files and apply each: postern policy apply -f FILE\n\
        4. enrol the agents again that were enrolled since the backup; the others connect by themselves, and the broker closes the windows of \
        grants that it does not know\n\
        5. postern status --check; agents that keep a newer checkpoint of the audit log raise an alarm: postern-broker audit accept-head \
        (docs/operations.md, \"An audit log that went back\")\n";
    text
}
