//! The files of a checkout.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

/// A text file of the checkout.
#[derive(Debug)]
pub(crate) struct File {
    /// The path from the root of the checkout.
    pub(crate) path: PathBuf,
    /// The content.
    pub(crate) text: String,
}

/// The text files that Git knows.
#[derive(Debug)]
pub(crate) struct Tree {
    /// The files, ordered by path.
    pub(crate) files: Vec<File>,
}

impl Tree {
    /// Reads each file that Git tracks, and each new one that it does not ignore. Where Git cannot tell (an unpacked archive, or
    /// another user's checkout), every file outside of `target` and `.git` is read. Files that are not UTF-8 are left out.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub(crate) fn read(root: &Path) -> Result<Self> {
        let mut paths = match listed(root) {
            Some(paths) => paths,
            None => walked(root, Path::new(""))?,
        };
        paths.sort_unstable();
        paths.dedup();
        let read = |path: PathBuf| {
            let text = std::fs::read_to_string(root.join(&path)).ok()?;
            Some(File { path, text })
        };
        Ok(Self { files: paths.into_iter().filter_map(read).collect() })
    }

    /// The Rust files.
    pub(crate) fn rust(&self) -> impl Iterator<Item = &File> {
        self.files.iter().filter(|file| file.path.extension().is_some_and(|extension| extension == "rs"))
    }
}

/// Lists the files that Git knows; none where it knows nothing of the directory.
fn listed(root: &Path) -> Option<Vec<PathBuf>> {
    let mut git = Command::new("git");
    git.args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]).current_dir(root);
    let listed = git.output().ok().filter(|listed| listed.status.success())?;
    let names = String::from_utf8(listed.stdout).ok()?;
    Some(names.split_terminator('\0').map(PathBuf::from).collect())
}

/// Lists every file below a directory of the tree.
fn walked(root: &Path, below: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    let directory = root.join(below);
    for entry in std::fs::read_dir(&directory).with_context(|| format!("reading {}", directory.display()))? {
        let entry = entry?;
        let path = below.join(entry.file_name());
        let kind = entry.file_type()?;
        if kind.is_dir() && ![".git", "target"].iter().any(|left_out| entry.file_name() == *left_out) {
            paths.extend(walked(root, &path)?);
        } else if kind.is_file() {
            paths.push(path);
        }
    }
    Ok(paths)
}

/// A line that a check found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Hit {
    /// The path from the root of the checkout.
    pub(crate) path: PathBuf,
    /// The number of the line, from 1.
    pub(crate) line: usize,
    /// The rule that the line breaks, or the text that breaks it.
    pub(crate) what: String,
}

impl std::fmt::Display for Hit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}: {}", self.path.display(), self.line, self.what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkout_reads_the_same_without_git() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let walked = walked(root, Path::new("")).unwrap();
        assert!(
            walked.contains(&"src/tree.rs".into()) && walked.contains(&"limits.toml".into()),
            "{walked:?}"
        );
        if let Some(listed) = listed(root) {
            assert!(listed.iter().all(|path| walked.contains(path)), "{listed:?} {walked:?}");
        }
    }
}
