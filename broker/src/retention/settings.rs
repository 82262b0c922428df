//! The settings of retention, and its pace.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::ensure;
use jiff::Timestamp;

/// The most writes in a batch.
pub(super) const BATCH: usize = 256;
/// The pause after each batch.
pub(super) const PAUSE: Duration = Duration::from_millis(50);

/// The time for which records that are over stay in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetentionSettings {
    /// The time for which closed grants, expired join tokens and ended certificates stay, 1 to 3650 days.
    pub grants: Duration,
    /// The rule for old records of the audit log; none: they stay.
    pub audit: Option<Segments>,
}

/// The rule for old records of the audit log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segments {
    /// The age at which they leave the store, 1 to 3650 days.
    pub after: Duration,
    /// The directory of the segments.
    pub dir: PathBuf,
}

impl Segments {
    /// Checks that no other user can replace a file in the directory, if that exists.
    ///
    /// # Errors
    /// Its mode lets other users write in it.
    pub fn check_dir(&self) -> anyhow::Result<()> {
        let Ok(found) = fs::metadata(&self.dir) else { return Ok(()) };
        let (dir, mode) = (self.dir.display(), found.permissions().mode() & 0o7777);
        ensure!(
            mode & 0o022 == 0,
            "other users can replace the segments in {dir} (mode {mode:04o}); run `chmod 700 {dir}`"
        );
        Ok(())
    }
}

impl Default for RetentionSettings {
    fn default() -> Self {
        Self { grants: Duration::from_secs(90 * 24 * 3600), audit: None }
    }
}

impl RetentionSettings {
    /// Returns the time before which a record must have been over to leave.
    pub fn cutoff(&self, now: Timestamp) -> Timestamp {
        cutoff(now, self.grants)
    }
}

/// Returns the time before which a record must have been over to leave after this retention.
pub(super) fn cutoff(now: Timestamp, retention: Duration) -> Timestamp {
    now.checked_sub(retention).unwrap_or(Timestamp::MIN)
}

/// Returns a span in words: whole days, or else hours.
pub(crate) fn in_days(span: Duration) -> String {
    let hours = span.as_secs() / 3600;
    match hours {
        24 => "1 day".to_owned(),
        hours if hours.is_multiple_of(24) => format!("{} days", hours / 24),
        hours => format!("{hours} hours"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i9_segments_go_into_no_directory_that_other_users_can_change() {
        let dir = tempfile::tempdir().unwrap();
        let segments = Segments { after: Duration::from_secs(24 * 3600), dir: dir.path().to_owned() };
        for (mode, is_good) in [(0o700, true), (0o755, true), (0o775, false), (0o777, false), (0o1777, false)]
        {
            fs::set_permissions(dir.path(), fs::Permissions::from_mode(mode)).unwrap();
            let checked = segments.check_dir();
            assert_eq!(checked.is_ok(), is_good, "{mode:o}: {checked:?}");
        }
        let missing = Segments { dir: dir.path().join("missing"), ..segments };
        missing.check_dir().unwrap();
    }

    #[test]
    fn a_span_is_told_in_days() {
        let spans = [24, 48, 90 * 24, 36].map(|hours| in_days(Duration::from_secs(hours * 3600)));
        assert_eq!(spans, ["1 day", "2 days", "90 days", "36 hours"]);
    }
}
