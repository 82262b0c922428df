//! The records key of a data directory: the file `ca/records.key`, with which the store's records are sealed.
//!
//! `init` makes it. A data directory of an older version has none: the first start makes one under another name, seals the store's
//! records as they are, and only then gives the file its own name. So a data directory seals what it finds once, a broker that dies in
//! between goes on, and a store that is set back later is not sealed again.
//!
//! Further brokers have the file of the first, as `ca` is copied whole. One without it refuses a store that another key sealed.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use postern_runtime::files::{self, PRIVATE};
use postern_runtime::private_file;
use postern_store::{RecordsKey, Sealing};

use crate::config::BrokerConfig;

/// The longest file that is read, in bytes.
const MAX_BYTES: u64 = 1024;

/// The files of the key.
#[derive(Debug)]
pub struct RecordsKeyFile {
    path: PathBuf,
    /// The name of a key with which the store has not been sealed yet.
    unsettled: PathBuf,
}

impl RecordsKeyFile {
    /// Returns the files in a data directory.
    pub fn of(config: &BrokerConfig) -> Self {
        Self::in_dir(&config.authority_dir())
    }

    /// Returns the files in a directory of an authority.
    pub(crate) fn in_dir(dir: &Path) -> Self {
        Self { path: dir.join("records.key"), unsettled: dir.join("records.key.unsettled") }
    }

    /// Returns the path of the key.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the key, or makes one.
    ///
    /// # Errors
    /// The file cannot be read or written, other users can read it, or it holds no key.
    pub fn load_or_make(&self) -> anyhow::Result<Sealing> {
        if !files::is_absent(&self.path) {
            return Ok(Sealing::with(read(&self.path)?));
        }
        if !files::is_absent(&self.unsettled) {
            return Ok(Sealing::first(read(&self.unsettled)?));
        }
        let key = RecordsKey::generate()?;
        files::replace_durably_for_owner_of_dir(&self.unsettled, key.to_text().as_bytes(), PRIVATE)
            .with_context(|| format!("cannot write {}", self.unsettled.display()))?;
        Ok(Sealing::first(key))
    }

    /// Notes that the store is sealed with the key: no record without a seal is sealed from now on.
    ///
    /// # Errors
    /// The file cannot be renamed.
    pub fn settle(&self) -> anyhow::Result<()> {
        if files::is_absent(&self.unsettled) {
            return Ok(());
        }
        let failed = || format!("cannot make {}", self.path.display());
        if !files::is_absent(&self.path) {
            // An operator has copied the key of another broker here.
            return files::remove(&self.unsettled).with_context(failed);
        }
        std::fs::rename(&self.unsettled, &self.path).with_context(failed)?;
        let dir = self.path.parent().unwrap_or(Path::new("."));
        std::fs::File::open(dir).and_then(|dir| dir.sync_all()).with_context(failed)
    }
}

fn read(path: &Path) -> anyhow::Result<RecordsKey> {
    let text = private_file::read(path, MAX_BYTES)?;
    RecordsKey::from_text(&text).with_context(|| {
        format!("{} holds no records key; copy it from another broker or a backup", path.display())
    })
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_key_is_made_once_and_kept_under_its_name_once_the_store_is_sealed() {
        let dir = tempfile::tempdir().unwrap();
        let file = RecordsKeyFile::in_dir(dir.path());
        let id = |sealing: Sealing| format!("{:?}", sealing.sealer("t"));
        let made = file.load_or_make().unwrap();
        assert!(format!("{made:?}").contains("is_first: true"));
        assert!(
            format!("{:?}", file.load_or_make().unwrap()).contains("is_first: true"),
            "it goes on after a crash"
        );
        file.settle().unwrap();
        file.settle().unwrap();
        let kept = file.load_or_make().unwrap();
        assert!(format!("{kept:?}").contains("is_first: false"));
        assert_eq!(id(made), id(kept));
        assert_eq!(std::fs::metadata(file.path()).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_key_that_others_can_read_or_that_is_none_is_refused_and_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let file = RecordsKeyFile::in_dir(dir.path());
        std::fs::write(file.path(), "nothing").unwrap();
        std::fs::set_permissions(file.path(), Permissions::from_mode(0o600)).unwrap();
        let error = file.load_or_make().unwrap_err().to_string();
        assert!(error.contains("records.key holds no records key"), "{error}");
        std::fs::set_permissions(file.path(), Permissions::from_mode(0o640)).unwrap();
        let error = file.load_or_make().unwrap_err().to_string();
        assert!(error.contains("chmod 600"), "{error}");
        assert_eq!(std::fs::read_to_string(file.path()).unwrap(), "nothing");
    }
}
