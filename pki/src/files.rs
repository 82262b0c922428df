//! Key and certificate files: private ones readable by their owner alone, every one replaced whole.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::Path;

use postern_runtime::files;
pub(crate) use postern_runtime::files::is_absent;
use postern_runtime::private_file::{self, PrivateFileError};

use crate::PkiError;

/// The largest file of keys or certificates that is read, in bytes.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Makes a directory that only its owner can enter; an existing one stays as it is.
pub(crate) fn make_dir(dir: &Path) -> Result<(), PkiError> {
    files::make_private_dir_all(dir).map_err(|source| failed(dir, source))
}

/// Reads the file of a private key; refuses a file that other users can read or change.
pub(crate) fn read_private(path: &Path) -> Result<String, PkiError> {
    let metadata = fs::symlink_metadata(path).map_err(|source| failed(path, source))?;
    if !metadata.is_file() {
        return Err(PkiError::NotAFile { path: path.to_owned() });
    }
    private_file::read(path, MAX_FILE_BYTES).map_err(|error| match error {
        PrivateFileError::Exposed { path, mode } => PkiError::ExposedKey { path, mode },
        PrivateFileError::Read { path, source } => PkiError::File { path, source },
        error @ PrivateFileError::Owner { .. } => PkiError::ForeignKey(error),
    })
}

/// Reads a file.
pub(crate) fn read(path: &Path) -> Result<String, PkiError> {
    let mut text = String::new();
    let file = File::open(path).map_err(|source| failed(path, source))?;
    file.take(MAX_FILE_BYTES).read_to_string(&mut text).map_err(|source| failed(path, source))?;
    Ok(text)
}

/// Replaces a file whole and durably: a crash leaves the old content or the new one.
pub(crate) fn write(path: &Path, text: &str, mode: u32) -> Result<(), PkiError> {
    files::replace_durably(path, text.as_bytes(), mode).map_err(|source| failed(path, source))
}

/// Writes a file as [`write()`] does, and gives it to the owner of its directory: a command that root runs must not leave a
/// file that the broker's user cannot read.
pub(crate) fn write_beside(path: &Path, text: &str, mode: u32) -> Result<(), PkiError> {
    files::replace_durably_for_owner_of_dir(path, text.as_bytes(), mode)
        .map_err(|source| failed(path, source))
}

/// Removes a file, if it is there.
pub(crate) fn remove(path: &Path) -> Result<(), PkiError> {
    files::remove(path).map_err(|source| failed(path, source))
}

/// Renames a file within its directory, durably.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<(), PkiError> {
    fs::rename(from, to).map_err(|source| failed(from, source))?;
    let dir = to.parent().unwrap_or(Path::new("."));
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|source| failed(dir, source))
}

fn failed(path: &Path, source: io::Error) -> PkiError {
    PkiError::File { path: path.to_owned(), source }
}
