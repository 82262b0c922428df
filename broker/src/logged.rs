//! What a test logs, where an alarm is part of what is promised.

use std::io;
use std::sync::{Arc, Mutex};

use tracing::Level;
use tracing::subscriber::DefaultGuard;

/// What was logged so far.
#[derive(Debug, Clone, Default)]
pub(crate) struct Logged(Arc<Mutex<Vec<u8>>>);

/// Hears what this thread logs at this level or above, for as long as the guard lives.
pub(crate) fn logged(level: Level) -> (Logged, DefaultGuard) {
    let logged = Logged::default();
    let writer = logged.clone();
    let subscriber =
        tracing_subscriber::fmt().with_max_level(level).with_writer(move || writer.clone()).finish();
    (logged, tracing::subscriber::set_default(subscriber))
}

impl Logged {
    /// How many lines there are.
    pub(crate) fn lines(&self) -> usize {
        String::from_utf8_lossy(&self.0.lock().unwrap()).lines().count()
    }
}

impl io::Write for Logged {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
