//! The checks of this machine: the files, the authority, and the clock.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use jiff::Timestamp;
use postern_pki::Authority;
use postern_runtime::error_chain::error_chain;
use postern_runtime::findings::Finding;
use postern_runtime::private_place::private_place;

use crate::authority;
use crate::clock::wall;
use crate::config::BrokerConfig;

/// The bits of a mode that let other users in.
const ACCESS_OF_OTHERS: u32 = 0o077;
/// The bits of a mode that let other users write.
const WRITABLE_BY_OTHERS: u32 = 0o022;
/// The lead of the newest audit record over the wall clock that is no finding, in seconds.
const CLOCK_TOLERANCE_SECONDS: i64 = 5;
/// The file by which systemd-timesyncd says that it has set the clock.
const TIMESYNC: &str = "/run/systemd/timesync/synchronized";

/// Checks the modes and the owners of the files.
pub(super) fn files(config: &BrokerConfig, file: &Path) -> Vec<Finding> {
    let mut findings = Vec::new();
    match fs::metadata(file) {
        Ok(found) if found.mode() & WRITABLE_BY_OTHERS != 0 => findings.push(Finding::error(
            format!("{} can be written by other users (mode {:04o})", file.display(), found.mode() & 0o7777),
            format!("run `chmod go-w {}`, and check its content", file.display()),
        )),
        Ok(_) => findings.push(Finding::good(format!("{} is a good configuration", file.display()))),
        Err(error) => findings.push(Finding::error(
            format!("{} cannot be read: {error}", file.display()),
            "run this as root or as the broker's user",
        )),
    }
    let data_dir = &config.data_dir;
    let init = "run `postern-broker init` as the broker's user, or `postern-broker restore DIR`";
    let found = match fs::metadata(data_dir) {
        Ok(found) => found,
        Err(error) => {
            findings.push(Finding::error(format!("{} cannot be read: {error}", data_dir.display()), init));
            return findings;
        }
    };
    if let Err(error) = private_place(data_dir) {
        findings.push(Finding::error(error.to_string(), "correct the owner or the mode that it names"));
    } else if found.mode() & ACCESS_OF_OTHERS != 0 {
        let what = format!(
            "{} can be entered by other users (mode {:04o})",
            data_dir.display(),
            found.mode() & 0o7777
        );
        findings.push(Finding::warning(what, format!("run `chmod 700 {}`", data_dir.display())));
    }
    match config.check_private_files() {
        Ok(()) => findings.push(Finding::good("the files with secrets are closed to other users")),
        Err(error) => findings
            .push(Finding::error(format!("{error:#}"), "see docs/operations.md, \"Files with secrets\"")),
    }
    findings
}

/// Checks the ends of the authority.
pub(super) fn authority(config: &BrokerConfig) -> Vec<Finding> {
    let dir = config.authority_dir();
    if !dir.exists() {
        let what = format!("there is no authority in {}", dir.display());
        return vec![Finding::error(what, "run `postern-broker init` as the broker's user")];
    }
    let loaded = match Authority::load(&dir, &config.trust_domain) {
        Ok(loaded) => loaded,
        Err(error) => {
            let remedy = "see `postern-broker authority status`, and docs/operations.md, \"Keys\"";
            return vec![Finding::error(error_chain(&error), remedy)];
        }
    };
    let (root, intermediate, now) = (loaded.root().life, loaded.intermediate().life, wall());
    let mut findings = vec![if root.holds(now) && intermediate.holds(now) {
        Finding::good(format!(
            "the root is valid until {:.0}, and the intermediate for agents until {:.0}",
            root.not_after, intermediate.not_after
        ))
    } else {
        Finding::error(
            format!(
                "the authority is not valid now, {now:.0}: the root from {:.0} to {:.0}, the intermediate from {:.0} to {:.0}",
                root.not_before, root.not_after, intermediate.not_before, intermediate.not_after
            ),
            "check the clock; if it is right, run `postern-broker authority renew`",
        )
    }];
    match authority::command::warnings(config) {
        Ok(warnings) => findings.extend(
            warnings
                .into_iter()
                .map(|warning| Finding::warning(warning, "see `postern-broker authority status`")),
        ),
        Err(error) => {
            findings.push(Finding::error(format!("{error:#}"), "see `postern-broker authority status`"))
        }
    }
    findings
}

/// Judges the wall clock by the time of the newest audit record, and by what systemd-timesyncd says.
pub(super) fn clock(newest: Option<Timestamp>) -> Vec<Finding> {
    let is_kept = Path::new(TIMESYNC).exists();
    vec![judged(wall(), newest, is_kept)]
}

fn judged(now: Timestamp, newest: Option<Timestamp>, is_kept: bool) -> Finding {
    if let Some(newest) = newest
        && newest.as_second() > now.as_second() + CLOCK_TOLERANCE_SECONDS
    {
        return Finding::warning(
            format!(
                "the clock shows {now:.0}, and the newest audit record is of {newest:.0}, which is later"
            ),
            "set the clock and keep it set (NTP); see docs/operations.md, \"A clock that was ahead\"",
        );
    }
    if is_kept {
        Finding::good(format!("the clock shows {now:.0}; systemd-timesyncd has set it"))
    } else {
        Finding::good(format!(
            "the clock shows {now:.0}, which is not before the newest audit record; nothing here tells whether it is right"
        ))
    }
}

#[cfg(test)]
mod tests {
    use postern_runtime::findings::Severity;

    use super::*;

    #[test]
    fn a_clock_behind_the_newest_audit_record_is_a_warning() {
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        assert_eq!(judged(at(100), Some(at(106)), true).severity, Severity::Warning);
        for newest in [None, Some(at(99)), Some(at(105))] {
            assert_eq!(judged(at(100), newest, false).severity, Severity::Good);
        }
    }
}
