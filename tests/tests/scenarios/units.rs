//! The systemd units: systemd itself finds nothing wrong with them, and little exposed.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use tempfile::TempDir;

/// The exposure that each unit may have, in tenths of systemd's points (`systemd-analyze security`): 100 is the worst.
const EXPOSURE: [(&str, &str); 3] =
    [("postern-broker.service", "14"), ("postern-agent.service", "20"), ("postern-agent-boot.service", "20")];

/// The units as they are, but for the programs, which are not installed where the units expect them.
fn units() -> TempDir {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/systemd");
    let programs = postern_tests::binary("postern-agent");
    let programs = programs.parent().unwrap().display().to_string();
    let dir = TempDir::with_prefix("postern-").unwrap();
    for entry in fs::read_dir(&sources).unwrap().flatten() {
        let text = fs::read_to_string(entry.path()).unwrap();
        let text = text.replace("/usr/bin/postern-", &format!("{programs}/postern-"));
        fs::write(dir.path().join(entry.file_name()), text).unwrap();
    }
    dir
}

fn systemd_analyze(arguments: &[&str], unit: &Path) -> Output {
    let output = Command::new("systemd-analyze").args(arguments).arg(unit).output();
    output.expect("systemd-analyze is installed: run `make install-deps`")
}

#[test]
fn systemd_finds_nothing_wrong_with_any_unit() {
    let units = units();
    let mut verified = 0;
    for entry in fs::read_dir(units.path()).unwrap().flatten() {
        let output = systemd_analyze(&["verify", "--man=no"], &entry.path());
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.is_empty(), "{}: {said}", entry.path().display());
        verified += 1;
    }
    assert_eq!(verified, EXPOSURE.len(), "every unit stands in the table above");
}

#[test]
fn i10_every_unit_bounds_memory_and_tasks() {
    for (unit, _) in EXPOSURE {
        let text = fs::read_to_string(units().path().join(unit)).unwrap();
        for key in ["MemoryMax=", "TasksMax="] {
            assert!(text.lines().any(|line| line.starts_with(key)), "{unit} has no {key}");
        }
    }
}

#[test]
fn no_unit_is_more_exposed_than_it_has_to_be() {
    let units = units();
    for (unit, most) in EXPOSURE {
        let threshold = format!("--threshold={most}");
        let output = systemd_analyze(&["security", "--offline=true", &threshold], &units.path().join(unit));
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{unit}: {}", said.lines().last().unwrap_or_default());
    }
}
