//! Key and certificate files: private ones readable by their owner alone, every one replaced whole.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown,
};
use std::path::Path;

use crate::PkiError;

/// The largest file of keys or certificates that is read, in bytes.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Makes a directory that only its owner can enter; an existing one stays as it is.
pub(crate) fn make_dir(dir: &Path) -> Result<(), PkiError> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|source| failed(dir, source))
}

/// Reads the file of a private key; refuses a file that other users can read.
pub(crate) fn read_private(path: &Path) -> Result<String, PkiError> {
    let metadata = fs::symlink_metadata(path).map_err(|source| failed(path, source))?;
    if !metadata.is_file() {
        return Err(PkiError::NotAFile { path: path.to_owned() });
    }
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(PkiError::ExposedKey { path: path.to_owned(), mode });
    }
    read(path)
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
    replace(path, text, mode, false)
}

/// Writes a file as [`write`] does, and gives it to the owner of its directory: a command that root runs must not leave a
/// file that the broker's user cannot read.
pub(crate) fn write_beside(path: &Path, text: &str, mode: u32) -> Result<(), PkiError> {
    replace(path, text, mode, true)
}

fn replace(path: &Path, text: &str, mode: u32, to_owner_of_directory: bool) -> Result<(), PkiError> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let temporary = path.with_extension("tmp");
    let write = || -> io::Result<()> {
        // A file that a crash left may have another mode: `create_new` must make the file.
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        if to_owner_of_directory {
            let (directory, own) = (fs::metadata(directory)?, file.metadata()?);
            if (directory.uid(), directory.gid()) != (own.uid(), own.gid()) {
                fchown(&file, Some(directory.uid()), Some(directory.gid()))?;
            }
        }
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(directory)?.sync_all()
    };
    write().map_err(|source| failed(path, source))
}

fn failed(path: &Path, source: io::Error) -> PkiError {
    PkiError::File { path: path.to_owned(), source }
}
