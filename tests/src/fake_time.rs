//! Clocks that a test can move while the process runs (libfaketime): the wall clock alone, as when a machine's time is
//! set, or every clock at once, as when time passes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

/// The number of seconds that pass in a true one, where a test lets time pass. It leaves a process on a busy machine the time for
/// what it does in each of them.
const PACE: u32 = 5;

/// The offset of the clocks of one process, or of several that share it.
#[derive(Debug, Clone)]
pub struct FakeTime {
    offset: PathBuf,
    clocks: Clocks,
}

/// The clocks that are moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Clocks {
    Wall,
    All,
}

impl FakeTime {
    /// A clock that is right as yet; `dir` takes its file.
    pub fn new(dir: &Path) -> Self {
        Self::of(dir, Clocks::Wall)
    }

    /// Clocks of which also those that count are moved: for a process that lives through months. Programs that ask the
    /// kernel without the C library are not reached: the workspace's tests have rustix use it (tests/Cargo.toml).
    pub fn passing(dir: &Path) -> Self {
        Self::of(dir, Clocks::All)
    }

    /// The same offset, for a process of which the wall clock alone is moved.
    #[must_use]
    pub fn wall_alone(&self) -> Self {
        Self { clocks: Clocks::Wall, ..self.clone() }
    }

    fn of(dir: &Path, clocks: Clocks) -> Self {
        let clock = Self { offset: dir.join("fake-time"), clocks };
        clock.step(0);
        clock
    }

    /// Sets the clocks so many seconds off the true time.
    pub fn step(&self, seconds: i64) {
        // In one step: the library reads the file whenever the process asks for the time.
        let next = self.offset.with_extension("next");
        fs::write(&next, format!("{seconds:+}\n")).expect("a file can be written");
        fs::rename(&next, &self.offset).expect("a file can be renamed");
    }

    /// Lets up to so many seconds pass faster than they do, one by one, until `is_over`. What waits for each of them, goes on in
    /// its turn, as it would not if the clock jumped.
    pub fn pass(&self, seconds: i64, mut is_over: impl FnMut() -> bool) {
        let begin = self.seconds();
        for passed in 1..=seconds {
            if is_over() {
                break;
            }
            self.step(begin + passed);
            sleep(Duration::from_secs(1) / PACE);
        }
    }

    /// Returns how many seconds the clocks are off the true time.
    fn seconds(&self) -> i64 {
        let text = fs::read_to_string(&self.offset).expect("the file can be read");
        text.trim().parse().expect("the file has a number of seconds")
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
            .env("FAKETIME_NO_CACHE", "1");
        if self.clocks == Clocks::Wall {
            command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        }
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
