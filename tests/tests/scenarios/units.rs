//! The systemd units: systemd itself finds nothing wrong with them, and little exposed.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use tempfile::TempDir;

/// The exposure that each unit may have, in tenths of systemd's points (`systemd-analyze security`): 100 is the worst.
const EXPOSURE: [(&str, &str); 3] =
    [("postern-broker.service", "14"), ("postern-agent.service", "20"), ("postern-agent-boot.service", "27")];

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

/// The settings for which systemd needs a mount namespace (systemd.exec(5)), which it cannot make in every container.
const NEEDS_MOUNT_NAMESPACE: [&str; 16] = [
    "ProtectSystem",
    "ProtectHome",
    "ProtectControlGroups",
    "ProtectKernelLogs",
    "ProtectKernelModules",
    "ProtectKernelTunables",
    "ProtectProc",
    "ProcSubset",
    "PrivateDevices",
    "PrivateMounts",
    "PrivateTmp",
    "PrivateIPC",
    "ReadOnlyPaths",
    "ReadWritePaths",
    "InaccessiblePaths",
    "BindPaths",
];

/// Returns the settings of a unit that need a mount namespace, with the values that are on.
fn needing_mount_namespace(unit: &str) -> Vec<&str> {
    let settings = unit.lines().filter_map(|line| line.split_once('='));
    let needing = settings.filter(|(name, value)| {
        NEEDS_MOUNT_NAMESPACE.contains(name) && !["", "no", "default"].contains(value)
    });
    needing.map(|(name, _)| name).collect()
}

#[test]
fn i1_the_boot_unit_starts_in_a_container_without_nesting_and_a_drop_in_lets_the_agent_start_there() {
    let packaging = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging");
    let read = |path: &str| fs::read_to_string(packaging.join(path)).unwrap();
    assert_eq!(needing_mount_namespace(&read("systemd/postern-agent-boot.service")), [""; 0]);
    let drop_in = read("containers/postern-agent.service.d/unprivileged.conf");
    for name in needing_mount_namespace(&read("systemd/postern-agent.service")) {
        assert!(drop_in.contains(&format!("\n{name}=no\n")), "the drop-in leaves {name} on");
    }
}
