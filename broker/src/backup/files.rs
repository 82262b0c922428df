//! Private copies of files, each read back and compared with what was written.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use data_encoding::HEXLOWER;
use postern_runtime::private_file;
use sha2::{Digest as _, Sha256};

use super::{AUTHORITY, CONFIG, manifest::ManifestFile};

/// The bytes that are copied at once.
const CHUNK: usize = 64 * 1024;
/// The permission bits that a file of a data directory may have: its owner alone writes it.
const MODES: u32 = 0o644;
/// The most files of a directory that are looked at.
const MAX_ENTRIES: usize = 10_000;
/// The files in `ca` that a running broker does not need: they are kept offline.
const OFFLINE: [&str; 3] = ["root.key", "people.key", "next-root.key"];
/// The files of a data directory, besides the store and the authority, that go into a backup.
const KEPT: [&str; 3] = ["audit-checkpoint", "policies-seen", "principals.json"];
/// The beginning and the end of the name of a certificate that waits to be recorded.
const ISSUED: (&str, &str) = ("issued-", ".json");

/// Returns the files of a broker that a backup holds, each with its path in the backup, besides the store.
///
/// # Errors
/// A directory cannot be read, or has something else than files where a file is expected.
pub(super) fn to_keep(
    data_dir: &Path,
    authority: &Path,
    config: &Path,
    offline_keys: bool,
) -> anyhow::Result<Vec<(String, PathBuf)>> {
    let mut all = vec![(CONFIG.to_owned(), config.to_owned())];
    for (name, path) in entries(authority)? {
        let is_kept = offline_keys || !OFFLINE.contains(&name.as_str());
        // A file that a crash left half written.
        if is_kept && !name.ends_with(".tmp") {
            ensure!(path.is_file(), "{} is not a file; move it away", path.display());
            all.push((format!("{AUTHORITY}/{name}"), path));
        }
    }
    for (name, path) in entries(data_dir)? {
        let is_issued = name.starts_with(ISSUED.0) && name.ends_with(ISSUED.1);
        if is_issued || KEPT.contains(&name.as_str()) {
            all.push((name, path));
        }
    }
    Ok(all)
}

fn entries(dir: &Path) -> anyhow::Result<Vec<(String, PathBuf)>> {
    let read = || format!("cannot read {}; was `postern-broker init` run?", dir.display());
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).with_context(read)?.take(MAX_ENTRIES) {
        let entry = entry.with_context(read)?;
        all.push((entry.file_name().to_string_lossy().into_owned(), entry.path()));
    }
    all.sort();
    Ok(all)
}

/// Opens a file to copy. A file whose mode keeps it from others is read as the secret that it is.
///
/// # Errors
/// The file cannot be opened, or is a key that others can read.
pub(super) fn open(path: &Path) -> anyhow::Result<File> {
    let is_key = path.extension().is_some_and(|extension| extension == "key");
    let opened = if is_key {
        private_file::open(path)?
    } else {
        File::open(path).with_context(|| cannot_read(path))?
    };
    ensure!(opened.metadata()?.is_file(), "{} is not a file", path.display());
    Ok(opened)
}

/// Copies a file to a new one, syncs it, and reads it back.
///
/// # Errors
/// The file exists or cannot be written, or what is read back is something else than what was written.
pub(super) fn copy(mut from: File, to: &Path, mode: u32) -> anyhow::Result<ManifestFile> {
    let cannot_write = || format!("cannot write {}", to.display());
    let mode = mode & MODES;
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(to).with_context(cannot_write)?;
    let (mut hasher, mut bytes, mut chunk) = (Sha256::new(), 0, vec![0; CHUNK]);
    loop {
        let read = match from.read(&mut chunk) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error).context("cannot read the file that is copied"),
        };
        hasher.update(&chunk[..read]);
        file.write_all(&chunk[..read]).with_context(cannot_write)?;
        bytes += read as u64;
    }
    file.set_permissions(fs::Permissions::from_mode(mode)).with_context(cannot_write)?;
    file.sync_all().with_context(cannot_write)?;
    let written = ManifestFile { bytes, sha256: HEXLOWER.encode(&hasher.finalize()), mode };
    verify(to, &written)?;
    Ok(written)
}

/// Writes a new private file, as [`copy`] does.
///
/// # Errors
/// As [`copy`].
pub(super) fn write(to: &Path, content: &[u8]) -> anyhow::Result<()> {
    let cannot_write = || format!("cannot write {}", to.display());
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(to).with_context(cannot_write)?;
    file.write_all(content).and_then(|()| file.sync_all()).with_context(cannot_write)?;
    ensure!(fs::read(to).with_context(|| cannot_read(to))? == content, "{} reads back wrong", to.display());
    Ok(())
}

/// Describes a file as it is.
///
/// # Errors
/// The file cannot be read.
pub(super) fn describe(path: &Path) -> anyhow::Result<ManifestFile> {
    let mut file = File::open(path).with_context(|| cannot_read(path))?;
    let (mut hasher, mut chunk, mut bytes) = (Sha256::new(), vec![0; CHUNK], 0);
    loop {
        match file.read(&mut chunk) {
            Ok(0) => break,
            Ok(read) => {
                hasher.update(&chunk[..read]);
                bytes += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error).with_context(|| cannot_read(path)),
        }
    }
    let mode = file.metadata().with_context(|| cannot_read(path))?.mode() & MODES;
    Ok(ManifestFile { bytes, sha256: HEXLOWER.encode(&hasher.finalize()), mode })
}

/// Checks that a file has the size and the hash that it should have.
///
/// # Errors
/// It has others, or cannot be read.
pub(super) fn verify(path: &Path, expected: &ManifestFile) -> anyhow::Result<()> {
    let found = describe(path)?;
    ensure!(
        (found.bytes, &found.sha256) == (expected.bytes, &expected.sha256),
        "{} is damaged or was changed: it has {} bytes with the SHA-256 {}, and should have {} with {}",
        path.display(),
        found.bytes,
        found.sha256,
        expected.bytes,
        expected.sha256
    );
    Ok(())
}

/// Makes a new private directory, which belongs to the owner of the one above.
///
/// # Errors
/// It exists, or cannot be made.
pub(super) fn make_dir(dir: &Path) -> anyhow::Result<()> {
    fs::DirBuilder::new().mode(0o700).create(dir).with_context(|| format!("cannot make {}", dir.display()))
}

/// Syncs a directory, so that what was renamed in it stays renamed.
///
/// # Errors
/// It cannot be synced.
pub(super) fn sync_dir(dir: &Path) -> anyhow::Result<()> {
    File::open(dir).and_then(|dir| dir.sync_all()).with_context(|| format!("cannot sync {}", dir.display()))
}

fn cannot_read(path: &Path) -> String {
    format!("cannot read {}", path.display())
}

/// A directory that is removed with all that is in it, unless it was kept.
#[derive(Debug)]
pub(super) struct Partial {
    dir: PathBuf,
    is_kept: bool,
}

impl Partial {
    /// Makes the directory.
    ///
    /// # Errors
    /// It exists, or cannot be made.
    pub(super) fn make(dir: PathBuf) -> anyhow::Result<Self> {
        ensure!(
            dir.symlink_metadata().is_err(),
            "{} is there: an earlier command was interrupted; remove it, and begin again",
            dir.display()
        );
        make_dir(&dir)?;
        Ok(Self { dir, is_kept: false })
    }

    pub(super) fn path(&self) -> &Path {
        &self.dir
    }

    /// Leaves the directory where it is from now on.
    pub(super) fn keep(mut self) {
        self.is_kept = true;
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.is_kept {
            // What cannot be removed is named by the next command.
            fs::remove_dir_all(&self.dir).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_private_and_a_changed_byte_shows() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::write(&from, "content").unwrap();
        let written = copy(File::open(&from).unwrap(), &to, 0o777).unwrap();
        assert_eq!((written.bytes, written.mode), (7, 0o644));
        assert_eq!(written, describe(&to).unwrap());
        copy(File::open(&from).unwrap(), &to, 0o600).unwrap_err();
        fs::write(&to, "Content").unwrap();
        let error = verify(&to, &written).unwrap_err().to_string();
        assert!(error.contains("was changed"), "{error}");
    }

    #[test]
    fn a_backup_holds_the_offline_keys_only_if_asked() {
        let dir = tempfile::tempdir().unwrap();
        let (data, ca) = (dir.path(), dir.path().join("ca"));
        make_dir(&ca).unwrap();
        for name in ["root.key", "root.pem", "intermediate.key", "records.key", "people.key", "left.tmp"] {
            fs::write(ca.join(name), "").unwrap();
        }
        for name in ["postern.db", "postern.lock", "policies-seen", "issued-1.json", "audit-acceptance"] {
            fs::write(data.join(name), "").unwrap();
        }
        let names = |offline| {
            let kept = to_keep(data, &ca, Path::new("/etc/postern/broker.toml"), offline).unwrap();
            kept.into_iter().map(|(name, _)| name).collect::<Vec<_>>()
        };
        let usual = [
            "broker.toml",
            "ca/intermediate.key",
            "ca/records.key",
            "ca/root.pem",
            "issued-1.json",
            "policies-seen",
        ];
        assert_eq!(names(false), usual);
        let offline: Vec<String> =
            names(true).into_iter().filter(|name| !usual.contains(&name.as_str())).collect();
        assert_eq!(offline, ["ca/people.key", "ca/root.key"]);
    }
}
