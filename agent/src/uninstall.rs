//! `uninstall`: removes everything that the agent put on this host, and nothing else (I6).

use std::fs;
use std::io;
use std::path::Path;

use anyhow::Context as _;
use postern_runtime::files;

use crate::config::AgentConfig;
use crate::lock::StateDirLock;

/// The files that the agent makes in its state directory.
const STATE_FILES: [&str; 5] = ["state.json", "state.tmp", "status.json", "status.tmp", "lock"];
/// The files of an identity.
const IDENTITY_FILES: [&str; 5] = ["key.pem", "cert.pem", "roots.pem", "received.json", "received.tmp"];

/// Removes the table with `remove_table`, and then the state.
///
/// # Errors
/// The agent runs, or a file or the table cannot be removed. Everything after it is still there.
pub fn uninstall(
    config: &AgentConfig,
    remove_table: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let dir = &config.state_dir;
    if !dir.exists() {
        return remove_table();
    }
    let lock = StateDirLock::take(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    anyhow::ensure!(
        lock.is_some(),
        "the agent runs; stop it first with `systemctl disable --now postern-agent`"
    );
    remove_table()?;
    let identity = config.identity_dir();
    let files = IDENTITY_FILES
        .map(|name| identity.join(name))
        .into_iter()
        .chain(STATE_FILES.map(|name| dir.join(name)));
    for path in files {
        files::remove(&path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    for dir in [&identity, dir] {
        remove_empty(dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    }
    Ok(())
}

/// Removes an empty directory; a directory with other files in it stays.
fn remove_empty(dir: &Path) -> io::Result<()> {
    match fs::remove_dir(dir) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty) => {
            Ok(())
        }
        other => other,
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
        }
    }

    #[test]
    fn i6_only_files_of_the_agent_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("agent");
        fs::create_dir_all(state.join("identity")).unwrap();
        for name in ["state.json", "status.json", "identity/key.pem", "identity/cert.pem", "notes"] {
            fs::write(state.join(name), "x").unwrap();
        }
        uninstall(&config(&state), || Ok(())).unwrap();
        let left: Vec<_> = fs::read_dir(&state).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["notes"]);
        fs::remove_file(state.join("notes")).unwrap();
        uninstall(&config(&state), || Ok(())).unwrap();
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
        uninstall(&config(dir.path()), || anyhow::bail!("refused")).unwrap_err();
        assert!(dir.path().join("state.json").exists());
    }
}
