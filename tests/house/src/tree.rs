//! The files of a checkout.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

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
    /// Reads each file that Git tracks, and each new one that it does not ignore. Files that are not UTF-8 are left out.
    ///
    /// # Errors
    /// Git is not installed, or the directory is no checkout.
    pub(crate) fn read(root: &Path) -> Result<Self> {
        let mut git = Command::new("git");
        git.args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]).current_dir(root);
        let listed = git.output().context("starting git")?;
        ensure!(listed.status.success(), "git ls-files: {}", String::from_utf8_lossy(&listed.stderr).trim());
        let names = String::from_utf8(listed.stdout).context("a path is not UTF-8")?;
        let mut paths: Vec<&str> = names.split_terminator('\0').collect();
        paths.sort_unstable();
        paths.dedup();
        let read = |path: &str| {
            let text = std::fs::read_to_string(root.join(path)).ok()?;
            Some(File { path: path.into(), text })
        };
        Ok(Self { files: paths.into_iter().filter_map(read).collect() })
    }

    /// The Rust files.
    pub(crate) fn rust(&self) -> impl Iterator<Item = &File> {
        self.files.iter().filter(|file| file.path.extension().is_some_and(|extension| extension == "rs"))
    }
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
