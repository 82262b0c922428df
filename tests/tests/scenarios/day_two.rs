//! `init` of a new machine, and `doctor`: what an operator reads when something is wrong.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::Path;
use std::process::{Command, Output};

use postern_tests::clock::wait_until;
use postern_tests::{HostWorld, STEP_TIMEOUT, binary, usual_policy};
use serde_json::Value;

/// Runs the doctor, and returns its exit code and its findings by severity.
fn doctor(world: &HostWorld) -> (Option<i32>, String, String) {
    let output = world.broker.command(&["doctor", "--json"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let findings: Vec<Value> =
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    let of = |severity: &str| -> String {
        let found = findings.iter().filter(|finding| finding["severity"] == severity);
        found.map(|finding| format!("{} -> {}\n", finding["what"], finding["remedy"])).collect()
    };
    (output.status.code(), of("good"), of("error"))
}

#[test]
fn a_doctor_finds_nothing_on_a_broker_that_is_well_and_names_what_is_not() {
    let mut world = HostWorld::without_agent(usual_policy());
    // The broker is ready once each of its parts has gone round, a moment after it listens.
    wait_until("a broker that is well", STEP_TIMEOUT, || doctor(&world).0 == Some(0));
    let (_, good, errors) = doctor(&world);
    assert_eq!(errors, "", "{good}");
    for wanted in [
        "has the schema",
        "durable write",
        "files with secrets",
        "the root is valid until",
        "the clock shows",
        "the broker answers at",
    ] {
        assert!(good.contains(wanted), "{wanted}: {good}");
    }
    assert_eq!(good.matches("the certificate there is good for it").count(), 2, "{good}");
    let text = world.broker.must(&["doctor"]);
    assert!(text.starts_with("good"), "{text}");

    // A name that the certificate of the running broker does not have, and one that does not resolve.
    let config = fs::read_to_string(world.broker.config()).unwrap();
    fs::write(
        world.broker.config(),
        config.replace("names = [", "names = [\"127.0.0.1\", \"nowhere.invalid\", "),
    )
    .unwrap();
    let (code, good, errors) = doctor(&world);
    assert_eq!(code, Some(1));
    assert!(errors.contains("127.0.0.1 leads to 127.0.0.1:7443, and not to this broker"), "{good}{errors}");
    assert!(errors.contains("nowhere.invalid does not resolve here"), "{errors}");
    assert_eq!(good.matches("the certificate there is good for it").count(), 2, "{good}");
    fs::write(world.broker.config(), config).unwrap();

    // A secret that other users can read, a directory that they can write, and no broker.
    let (key, data) = (world.broker.data_dir().join("ca/records.key"), world.broker.data_dir());
    fs::set_permissions(&key, Permissions::from_mode(0o644)).unwrap();
    assert!(doctor(&world).2.contains("ca/records.key can be read by other users"));
    fs::set_permissions(&key, Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(&data, Permissions::from_mode(0o777)).unwrap();
    assert!(doctor(&world).2.contains("other users"));
    fs::set_permissions(&data, Permissions::from_mode(0o700)).unwrap();
    world.broker.process().terminate();
    let (code, good, errors) = doctor(&world);
    assert_eq!(code, Some(1));
    assert!(errors.contains("no broker answers at") && good.contains("has the schema"), "{good}{errors}");
    fs::remove_file(world.broker.database()).unwrap();
    assert!(doctor(&world).2.contains("there is no store"));
    assert!(!data.join(".doctor").exists());
}

fn broker(config: &Path, arguments: &[&str]) -> Output {
    Command::new(binary("postern-broker")).arg("--config").arg(config).args(arguments).output().unwrap()
}

#[test]
fn init_writes_a_configuration_of_what_it_is_given_and_prints_the_next_commands() {
    let dir = tempfile::TempDir::with_prefix("postern-").unwrap();
    // Another user has to get to the data directory.
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    let (config, data) = (dir.path().join("etc/broker.toml"), dir.path().join("data"));
    let refused = broker(&config, &["init"]);
    assert!(
        !refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("--name"),
        "{refused:?}"
    );
    assert!(!config.exists() && !data.exists());

    // The directory of a service's user, as a package makes it.
    fs::create_dir(&data).unwrap();
    fs::set_permissions(&data, Permissions::from_mode(0o700)).unwrap();
    chown(&data, Some(65534), Some(65534)).unwrap();
    let data_text = data.to_string_lossy();
    let given =
        ["init", "--name", "broker.example.org", "--listen", "127.0.0.1:9443", "--data-dir", &data_text];
    let done = broker(&config, &given);
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(done.status.success(), "{done:?}");
    for wanted in [
        "broker.toml is written",
        "    systemctl enable --now postern-broker\n",
        &format!(
            "    postern --broker https://broker.example.org:9443 --identity {data_text}/admin status\n"
        ),
    ] {
        assert!(said.contains(wanted), "{wanted}: {said}");
    }
    assert!(!said.contains("PRIVATE KEY"));
    for file in ["ca", "ca/intermediate.key", "ca/records.key", "admin", "admin/key.pem", "postern.db"] {
        assert_eq!(fs::metadata(data.join(file)).unwrap().uid(), 65534, "{file}");
    }
    let checked = broker(&config, &["check-config"]);
    assert!(checked.status.success(), "{checked:?}");
    let again = broker(&config, &given);
    assert!(String::from_utf8_lossy(&again.stderr).contains("edit that file"), "{again:?}");
}
