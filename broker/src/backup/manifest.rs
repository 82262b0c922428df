//! The manifest of a backup: what it holds, of what moment, and the hash of each file.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::path::Path;

use anyhow::{Context as _, ensure};
use jiff::Timestamp;
use postern_core::audit::{Hash, Head};
use serde::{Deserialize, Serialize};

use super::{AUTHORITY, MANIFEST, STORE};

/// The form of backups that this broker writes and reads.
const FORMAT: u32 = 1;
/// The longest manifest, in bytes.
const MAX_BYTES: u64 = 1024 * 1024;
/// The most files of a backup: a thousand certificates may wait to be recorded.
const MAX_FILES: usize = 2000;
/// The longest name of a file, in bytes.
const MAX_NAME: usize = 200;

/// The manifest of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The form of the backup.
    pub format: u32,
    /// The version of the broker that made it.
    pub version: String,
    /// The time at which it was made.
    pub made_at: Timestamp,
    /// The trust domain.
    pub trust_domain: String,
    /// The store that was copied, without a password.
    pub store: String,
    /// The base of the audit log, after which its lines begin.
    pub audit_base: ManifestHead,
    /// The end of the audit log.
    pub audit_head: ManifestHead,
    /// The number of the record that the trusted checkpoint names; none before the first checkpoint, and while there is an alarm.
    pub checkpoint: Option<u64>,
    /// The generation of the policies; 0 if there are none.
    pub policy_generation: u64,
    /// The number of records of each kind, and of lines of the audit log.
    pub records: BTreeMap<String, u64>,
    /// Reports whether the keys that are kept offline are in it, as far as they were in `data_dir/ca`.
    pub offline_keys: bool,
    /// The files with secrets that a broker with this configuration needs besides, by the keys of the configuration.
    pub needs_besides: BTreeMap<String, String>,
    /// The files, by their paths in the backup.
    pub files: BTreeMap<String, ManifestFile>,
}

/// The end or the base of an audit log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestHead {
    /// The number of the record.
    pub seq: u64,
    /// The hash of the record.
    pub hash: Hash,
}

/// A file of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestFile {
    /// The size, in bytes.
    pub bytes: u64,
    /// The SHA-256 of the content, in lower-case hexadecimal digits.
    pub sha256: String,
    /// The permission bits that a restore gives the file.
    pub mode: u32,
}

impl From<Head> for ManifestHead {
    fn from(Head { seq, hash }: Head) -> Self {
        Self { seq, hash }
    }
}

impl Manifest {
    /// The form of backups that this broker writes.
    pub const FORMAT: u32 = FORMAT;

    /// Reads and checks the manifest in a backup's directory.
    ///
    /// # Errors
    /// There is none, it is malformed or of a later form, or it names a file that no backup has.
    pub fn read(dir: &Path) -> anyhow::Result<Self> {
        let path = dir.join(MANIFEST);
        let what = || format!("{} cannot be read; is {} a backup?", path.display(), dir.display());
        let mut text = Vec::new();
        fs::File::open(&path)
            .and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut text))
            .with_context(what)?;
        ensure!(text.len() as u64 <= MAX_BYTES, "{} is longer than {MAX_BYTES} bytes", path.display());
        Self::parse(&text).with_context(|| format!("{} is malformed", path.display()))
    }

    fn parse(text: &[u8]) -> anyhow::Result<Self> {
        #[derive(Deserialize)]
        struct Form {
            format: u32,
        }
        let Form { format } = serde_json::from_slice(text)?;
        ensure!(
            format == FORMAT,
            "the backup has the form {format} and this broker knows {FORMAT}; restore it with the version that made it"
        );
        let manifest: Self = serde_json::from_slice(text)?;
        ensure!(manifest.files.len() <= MAX_FILES, "it names more than {MAX_FILES} files");
        for name in manifest.files.keys() {
            ensure!(is_good_name(name), "it names the file {name:?}, which no backup has");
        }
        ensure!(manifest.files.contains_key(STORE), "it names no {STORE}");
        ensure!(
            manifest.files.keys().any(|name| name.starts_with("ca/")),
            "it names no file of the authority"
        );
        Ok(manifest)
    }
}

/// Reports whether a backup can have a file of this path: one of its directory, or of the authority's.
fn is_good_name(path: &str) -> bool {
    let name = path.strip_prefix(AUTHORITY).and_then(|rest| rest.strip_prefix('/')).unwrap_or(path);
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    !name.is_empty()
        && name.len() <= MAX_NAME
        && !name.starts_with('.')
        && name.bytes().all(is_plain)
        && path != MANIFEST
        && path != AUTHORITY
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(change: impl FnOnce(&mut Manifest)) -> Vec<u8> {
        let file = ManifestFile { bytes: 1, sha256: "00".to_owned(), mode: 0o600 };
        let head = ManifestHead::from(Head::EMPTY);
        let mut manifest = Manifest {
            format: FORMAT,
            version: "0.1.0".to_owned(),
            made_at: Timestamp::UNIX_EPOCH,
            trust_domain: "postern".to_owned(),
            store: "sqlite:///var/lib/postern-broker/postern.db".to_owned(),
            audit_base: head,
            audit_head: head,
            checkpoint: None,
            policy_generation: 0,
            records: BTreeMap::new(),
            offline_keys: false,
            needs_besides: BTreeMap::new(),
            files: [STORE, "ca/root.pem"].map(|name| (name.to_owned(), file.clone())).into(),
        };
        change(&mut manifest);
        serde_json::to_vec(&manifest).unwrap()
    }

    #[test]
    fn a_manifest_is_read_as_it_was_written() {
        let written = text(|_| {});
        assert_eq!(serde_json::to_vec(&Manifest::parse(&written).unwrap()).unwrap(), written);
    }

    #[test]
    fn i7_a_manifest_names_no_file_outside_the_backup() {
        let file = ManifestFile { bytes: 1, sha256: "00".to_owned(), mode: 0o600 };
        for bad in [
            "../x",
            "/etc/passwd",
            "ca/../x",
            "ca/",
            "ca",
            "",
            "ca//x",
            "a/b",
            ".x",
            "ca/.x",
            "manifest.json",
        ] {
            let text = text(|manifest| {
                manifest.files.insert(bad.to_owned(), file.clone());
            });
            assert!(Manifest::parse(&text).unwrap_err().to_string().contains("no backup has"), "{bad}");
        }
    }

    #[test]
    fn a_manifest_of_a_later_form_or_without_a_store_is_refused() {
        let later = text(|manifest| manifest.format = FORMAT + 1);
        assert!(Manifest::parse(&later).unwrap_err().to_string().contains("this broker knows 1"));
        let storeless = text(|manifest| drop(manifest.files.remove(STORE)));
        assert!(Manifest::parse(&storeless).unwrap_err().to_string().contains("no postern.db"));
    }
}
