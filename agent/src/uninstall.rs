//! `uninstall`: removes everything that the agent put on this host, and nothing else (I6).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use postern_runtime::files;

use crate::config::AgentConfig;
use crate::enforcement::EnforcementMark;
use crate::enrolment_mark::EnrolmentMark;
use crate::ledger::Ledger;
use crate::lock::{self, IdentityLock, StateDirLock};
use crate::{checkpoint, receipt, status};

/// The files that [`postern_pki::credentials::Credentials`] consist of.
const CREDENTIALS: [&str; 3] = ["key.pem", "cert.pem", "roots.pem"];

/// Removes the table with `remove_table`, and then the state. Returns the directories of the agent that stay, because they hold files
/// that are not the agent's.
///
/// # Errors
/// The agent runs, another process writes the identity, or a file or the table cannot be removed. Everything after it is still there.
pub fn uninstall(
    config: &AgentConfig,
    remove_table: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<Vec<PathBuf>> {
    let (dir, identity) = (&config.state_dir, config.identity_dir());
    if !dir.exists() {
        return remove_table().map(|()| Vec::new());
    }
    let lock = StateDirLock::take(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    anyhow::ensure!(
        lock.is_some(),
        "the agent runs; stop it first with `systemctl disable --now postern-agent`"
    );
    let identity_lock = identity.exists().then(|| IdentityLock::try_take(&identity)).transpose();
    let identity_lock = identity_lock.with_context(|| format!("cannot read {}", identity.display()))?;
    anyhow::ensure!(
        !matches!(identity_lock, Some(None)),
        "another process writes the identity in {}; wait for its end, and try again",
        identity.display()
    );
    remove_table()?;
    for path in files_of_agent(config) {
        files::remove(&path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    let mut left = Vec::new();
    for dir in [&identity, dir] {
        if !remove_empty(dir).with_context(|| format!("cannot remove {}", dir.display()))? {
            left.push(dir.clone());
        }
    }
    Ok(left)
}

/// Returns every file that the agent may have written, the key first, and the locks last.
fn files_of_agent(config: &AgentConfig) -> Vec<PathBuf> {
    let (dir, identity) = (&config.state_dir, config.identity_dir());
    let credentials = CREDENTIALS.map(|name| identity.join(name));
    let others = [
        receipt::path(&identity),
        EnrolmentMark::beside(&identity).path(),
        Ledger::in_dir(dir).path().to_owned(),
        status::path(dir),
        checkpoint::path(dir),
        EnforcementMark::in_dir(dir).path().to_owned(),
    ];
    // A crash may have left the half of each.
    let replaced = credentials.into_iter().chain(others).flat_map(|path| {
        let temporary = files::temporary(&path);
        [path, temporary]
    });
    replaced
        .chain([EnforcementMark::in_dir(dir).lock_path(), lock::path(&identity), lock::path(dir)])
        .collect()
}

/// Removes an empty directory. Returns whether it is gone: a directory with other files in it stays.
fn remove_empty(dir: &Path) -> io::Result<bool> {
    match fs::remove_dir(dir) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::config::LogFormat;

    fn config(state_dir: &Path) -> AgentConfig {
        AgentConfig {
            broker: "https://b:7443".into(),
            state_dir: state_dir.to_owned(),
            log_format: LogFormat::Text,
            limits: crate::limits::StateLimits::default(),
            bootstrap: BTreeSet::new(),
            confirm_within: None,
        }
    }

    #[test]
    fn i6_only_files_of_the_agent_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("agent");
        fs::create_dir_all(state.join("identity")).unwrap();
        for name in [
            "state.json",
            "state.tmp",
            "status.json",
            "enforcement.json",
            "enforcement.tmp",
            "enforcement.lock",
            "audit-checkpoint",
            "audit-checkpoint.tmp",
            "identity/key.pem",
            "identity/key.tmp",
            "identity/cert.pem",
            "identity/enrolled",
            "identity/enrolled.tmp",
            "identity/received.json",
            "notes",
        ] {
            fs::write(state.join(name), "x").unwrap();
        }
        assert_eq!(uninstall(&config(&state), || Ok(())).unwrap(), std::slice::from_ref(&state));
        let left: Vec<_> = fs::read_dir(&state).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["notes"]);
        fs::remove_file(state.join("notes")).unwrap();
        assert!(uninstall(&config(&state), || Ok(())).unwrap().is_empty());
        assert!(!state.exists());
    }

    #[test]
    fn nothing_is_removed_under_a_running_agent_or_while_the_table_stays() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("state.json"), "x").unwrap();
        let lock = StateDirLock::take(dir.path()).unwrap();
        let error = uninstall(&config(dir.path()), || panic!("the table of a running agent")).unwrap_err();
        assert!(error.to_string().contains("stop it first"));
        drop(lock);
        fs::create_dir(dir.path().join("identity")).unwrap();
        let lock = IdentityLock::try_take(&dir.path().join("identity")).unwrap();
        let error = uninstall(&config(dir.path()), || panic!("the table during an enrolment")).unwrap_err();
        assert!(error.to_string().contains("another process writes the identity"), "{error}");
        drop(lock);
        uninstall(&config(dir.path()), || anyhow::bail!("refused")).unwrap_err();
        assert!(dir.path().join("state.json").exists());
    }
}
