//! The paths of the programs under test: beside the test itself, in the target directory of the same profile.

use std::path::PathBuf;

/// The path of a program of the workspace.
///
/// # Panics
/// It has not been built.
pub fn binary(name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("a process knows its own path");
    let directory = own.parent().expect("a program lies in a directory");
    let profile =
        if directory.ends_with("deps") { directory.parent().unwrap_or(directory) } else { directory };
    let path = profile.join(name);
    assert!(
        path.is_file(),
        "{} is missing: run `cargo build --workspace --bins` first, or `make test`",
        path.display()
    );
    path
}
