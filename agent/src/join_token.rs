//! The place from which `enroll` reads its join token: a file, standard input, or a credential of the service manager.
//!
//! A token is a secret for some minutes: its holder enrols as this host. The process list shows every argument to every user of
//! the host, so a token is never an argument.

use std::io::{self, BufRead as _};
use std::path::{Path, PathBuf};

use postern_core::Invalid;
use postern_pki::join::JoinToken;
use postern_runtime::private_file::{self, PrivateFileError};

/// The name of the credential that holds a token (`LoadCredential=postern.token:…` in a unit).
pub const CREDENTIAL: &str = "postern.token";
/// The name that stands for standard input.
pub const STDIN: &str = "-";
/// The longest token that is read, in bytes, with the line's end.
const MAX_TOKEN_BYTES: u64 = 1024;

/// A token cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The caller names no place.
    #[error(
        "no join token: name its file with --token-file FILE, or read it from standard input with --token-file -"
    )]
    Missing,
    /// The caller gave the token as an argument.
    #[error(
        "--token shows the token to every user of this host; make another one with `postern agents token TARGET`, and run \
         `postern-agent enroll --token-file -`, which reads it from standard input"
    )]
    Argument,
    /// Other users can read the file.
    #[error(
        "other users can read {} (mode {mode:04o}); make another token with `postern agents token TARGET`, and put it into a \
         file of mode 0600", path.display()
    )]
    Exposed {
        /// The file.
        path: PathBuf,
        /// The permission bits of the file.
        mode: u32,
    },
    /// The file belongs to another user.
    #[error(transparent)]
    Foreign(PrivateFileError),
    /// The file cannot be read.
    #[error("cannot read the join token from {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The text is no token.
    #[error(transparent)]
    Malformed(#[from] Invalid),
}

/// Reads the token from `file`, or without one from the credential in `credentials_dir`, the value of `CREDENTIALS_DIRECTORY`.
///
/// # Errors
/// There is no token, or other users can read it.
pub fn read(file: Option<&Path>, credentials_dir: Option<&Path>) -> Result<JoinToken, TokenError> {
    let credential = credentials_dir.map(|dir| dir.join(CREDENTIAL)).filter(|path| path.exists());
    let path = file.map(Path::to_owned).or(credential).ok_or(TokenError::Missing)?;
    let failed = |source| TokenError::Read { path: path.clone(), source };
    if path == Path::new(STDIN) {
        return Ok(first_line(io::stdin().lock()).map_err(failed)?.parse()?);
    }
    let file = private_file::open(&path).map_err(|error| match error {
        PrivateFileError::Exposed { path, mode } => TokenError::Exposed { path, mode },
        PrivateFileError::Read { source, .. } => failed(source),
        error @ PrivateFileError::Owner { .. } => TokenError::Foreign(error),
    })?;
    Ok(first_line(io::BufReader::new(file)).map_err(failed)?.parse()?)
}

fn first_line(from: impl io::BufRead) -> io::Result<String> {
    let mut line = String::new();
    io::BufReader::new(from.take(MAX_TOKEN_BYTES)).read_line(&mut line)?;
    Ok(line)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt as _;

    use postern_pki::join::Fingerprint;

    use super::*;

    fn written(dir: &Path, name: &str, mode: u32) -> (PathBuf, JoinToken) {
        let token = JoinToken::generate(Fingerprint([7; 32])).unwrap();
        let path = dir.join(name);
        fs::write(&path, format!("{}\nsomething else\n", token.to_text())).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        (path, token)
    }

    #[test]
    fn a_token_comes_from_a_private_file_or_a_credential() {
        let dir = tempfile::tempdir().unwrap();
        let (file, token) = written(dir.path(), "token", 0o600);
        let (_, credential) = written(dir.path(), CREDENTIAL, 0o400);
        assert_eq!(
            read(Some(&file), Some(dir.path())).unwrap().hash(),
            token.hash(),
            "the file that is named"
        );
        assert_eq!(read(None, Some(dir.path())).unwrap().hash(), credential.hash());
        let nowhere = dir.path().join("nowhere");
        assert!(matches!(read(None, Some(&nowhere)), Err(TokenError::Missing)));
        assert!(matches!(read(None, None), Err(TokenError::Missing)));
        assert!(matches!(read(Some(&nowhere), None), Err(TokenError::Read { .. })));
    }

    #[test]
    fn i7_a_token_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for mode in [0o644, 0o640, 0o604] {
            let (file, token) = written(dir.path(), "token", mode);
            let error = read(Some(&file), None).unwrap_err();
            assert!(matches!(error, TokenError::Exposed { .. }), "{mode:o}: {error}");
            assert!(!error.to_string().contains(&token.to_text()));
        }
    }

    #[test]
    fn a_text_that_is_no_token_is_refused_without_quoting_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        fs::write(&file, "secret but wrong").unwrap();
        fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
        let error = read(Some(&file), None).unwrap_err();
        assert!(
            matches!(error, TokenError::Malformed(_)) && !error.to_string().contains("secret"),
            "{error}"
        );
    }
}
