//! A broker that cannot start says why on one line.

#[cfg(test)]
mod tests {
    use std::process::Command;

    /// Runs the broker with a configuration of these bytes, which it refuses, and returns what it writes to stderr.
    fn refused(config: &str, backtrace: Option<&str>) -> String {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("broker.toml");
        std::fs::write(&file, config).unwrap();
        let mut broker = Command::new(env!("CARGO_BIN_EXE_postern-broker"));
        broker.arg("--config").arg(&file).arg("serve").env_remove("RUST_BACKTRACE");
        broker.env_remove("RUST_LIB_BACKTRACE").envs(backtrace.map(|value| ("RUST_BACKTRACE", value)));
        let output = broker.output().unwrap();
        assert_eq!((output.status.code(), output.stdout), (Some(1), Vec::new()));
        String::from_utf8(output.stderr).unwrap()
    }

    const UNKNOWN_KEY: &str = "data_dir = \"/var/lib/postern-broker\"\nlissen = \"0.0.0.0:7443\"\n";

    #[test]
    fn the_error_and_its_causes_are_one_line_without_a_backtrace() {
        for backtrace in [None, Some("0")] {
            let stderr = refused(UNKNOWN_KEY, backtrace);
            assert_eq!(stderr.lines().count(), 1, "{stderr}");
            assert!(
                stderr.starts_with("postern-broker: ") && stderr.contains("broker.toml is not"),
                "{stderr}"
            );
            assert!(stderr.contains("lissen"), "{stderr}");
        }
    }

    #[test]
    fn a_backtrace_follows_where_the_environment_asks_for_one() {
        let stderr = refused(UNKNOWN_KEY, Some("1"));
        assert!(stderr.contains("lissen"), "{stderr}");
        assert!(stderr.lines().count() > 1, "{stderr}");
    }
}
