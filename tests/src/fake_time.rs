//! A wall clock that a test can step while the process runs (libfaketime). The clocks that count are left alone, as they
//! are when a machine's wall clock is set.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The offset of one process's wall clock.
#[derive(Debug)]
pub struct FakeTime {
    offset: PathBuf,
}

impl FakeTime {
    /// A clock that is right as yet; `dir` takes its file.
    pub fn new(dir: &Path) -> Self {
        let clock = Self { offset: dir.join("fake-time") };
        clock.step(0);
        clock
    }

    /// Sets the clock so many seconds off the true time.
    pub fn step(&self, seconds: i64) {
        // In one step: the library reads the file whenever the process asks for the time.
        let next = self.offset.with_extension("next");
        fs::write(&next, format!("{seconds:+}\n")).expect("a file can be written");
        fs::rename(&next, &self.offset).expect("a file can be renamed");
    }

    /// Makes a command live by this clock.
    ///
    /// # Panics
    /// libfaketime is not installed.
    #[must_use]
    pub fn over(&self, mut command: Command) -> Command {
        command
            .env("LD_PRELOAD", library())
            .env("FAKETIME_TIMESTAMP_FILE", &self.offset)
            .env("FAKETIME_NO_CACHE", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        command
    }
}

fn library() -> PathBuf {
    let directories = fs::read_dir("/usr/lib").expect("/usr/lib can be read").flatten();
    let candidates = directories.map(|entry| entry.path().join("faketime/libfaketimeMT.so.1"));
    candidates
        .into_iter()
        .find(|path| path.is_file())
        .expect("libfaketime is installed: run `make install-deps`")
}
