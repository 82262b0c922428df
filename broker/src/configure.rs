//! The first configuration: `init` writes a commented file of what it is given, if there is none.

use std::fs;
use std::io::{self, BufRead, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use postern_core::Name;

use crate::config::BrokerConfig;

/// The address to listen on, if none is given: every address of both families.
const LISTEN: &str = "[::]:7443";
/// The data directory, if none is given.
const DATA_DIR: &str = "/var/lib/postern-broker";
/// The mode of the configuration: it holds no secret.
const MODE: u32 = 0o644;
/// The longest line that is read from a terminal, in bytes.
const MAX_LINE: u64 = 4096;

/// The values for a first configuration, as far as they are given.
#[derive(Debug, Clone, Default)]
pub struct Answers {
    /// The names by which clients reach the broker.
    pub names: Vec<String>,
    /// The address and port to listen on.
    pub listen: Option<SocketAddr>,
    /// The directory for all data.
    pub data_dir: Option<PathBuf>,
}

impl Answers {
    fn are_none(&self) -> bool {
        self.names.is_empty() && self.listen.is_none() && self.data_dir.is_none()
    }
}

/// Writes the configuration if there is none, and returns whether it did. `ask` is the terminal on which missing values are asked for, if
/// there is one.
///
/// # Errors
/// There is a configuration and values are given, too; a value is missing or wrong; the file cannot be written.
pub fn write_if_missing(
    file: &Path,
    answers: Answers,
    ask: Option<(&mut dyn BufRead, &mut dyn Write)>,
) -> anyhow::Result<bool> {
    if file.exists() {
        ensure!(
            answers.are_none(),
            "{} exists, so --name, --listen and --data-dir are not used; edit that file, and run `init` without them",
            file.display()
        );
        return Ok(false);
    }
    let answers = match ask {
        Some((input, output)) => asked(answers, input, output)?,
        None => answers,
    };
    ensure!(
        !answers.names.is_empty(),
        "there is no {}; give the DNS names or addresses by which agents reach this broker, as --name broker.example.org",
        file.display()
    );
    let text = text(&answers);
    BrokerConfig::parse(&text).context("the given values make no good configuration")?;
    let dir = file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let cannot_write =
        || format!("cannot write {}; run this as root, or name another file with --config", file.display());
    fs::create_dir_all(dir).with_context(cannot_write)?;
    let mut made = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(MODE)
        .open(file)
        .with_context(cannot_write)?;
    made.write_all(text.as_bytes()).and_then(|()| made.sync_all()).with_context(cannot_write)?;
    Ok(true)
}

/// Asks for each value that is missing; an empty line takes what is in brackets.
fn asked(mut answers: Answers, input: &mut dyn BufRead, output: &mut dyn Write) -> anyhow::Result<Answers> {
    if answers.names.is_empty() {
        let line = ask(
            input,
            output,
            "DNS names and addresses by which agents reach this broker, with spaces between: ",
        )?;
        answers.names =
            line.split([' ', ',']).filter(|name| !name.is_empty()).map(ToOwned::to_owned).collect();
    }
    if answers.listen.is_none() {
        let line = ask(input, output, &format!("Address and port to listen on [{LISTEN}]: "))?;
        if !line.is_empty() {
            let what = || format!("{line:?} is not an address and a port; write it like {LISTEN}");
            answers.listen = Some(line.parse().with_context(what)?);
        }
    }
    if answers.data_dir.is_none() {
        let line = ask(input, output, &format!("Directory for all data [{DATA_DIR}]: "))?;
        answers.data_dir = Some(line).filter(|line| !line.is_empty()).map(PathBuf::from);
    }
    Ok(answers)
}

fn ask(input: &mut dyn BufRead, output: &mut dyn Write, question: &str) -> anyhow::Result<String> {
    write!(output, "{question}").and_then(|()| output.flush())?;
    let mut line = String::new();
    io::Read::take(input, MAX_LINE).read_line(&mut line).context("cannot read from the terminal")?;
    Ok(line.trim().to_owned())
}

fn text(answers: &Answers) -> String {
    let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
    let names: Vec<String> = answers.names.iter().map(|name| quoted(name)).collect();
    let listen = answers.listen.map_or_else(|| LISTEN.to_owned(), |listen| listen.to_string());
    let data_dir = answers.data_dir.as_deref().unwrap_or(Path::new(DATA_DIR));
    format!(
        "# The configuration of Postern's broker. docs/operations.md describes each key; `postern-broker check-config` checks this file.\n\
         # The broker reads it when it starts.\n\
         \n\
         # The directory for the authority, the store and the broker's memory; only the broker's user may enter it.\n\
         data_dir = {data_dir}\n\
         \n\
         # The address and port for agents and callers; [::] takes IPv4 and IPv6.\n\
         listen = {listen}\n\
         \n\
         # The DNS names and addresses by which agents and callers reach the broker. Its certificate is good for these alone.\n\
         names = [{names}]\n\
         \n\
         # Metrics and health for machines, without authentication: keep it on loopback or behind a firewall.\n\
         # metrics_listen = \"127.0.0.1:9464\"\n\
         \n\
         # The format of log lines: text or json.\n\
         # log_format = \"text\"\n\
         \n\
         # The key that signs for people, taken out of the broker's reach.\n\
         # [authority]\n\
         # people_key = \"/root/postern/people.key\"\n\
         \n\
         # A store on Redis, for several brokers, instead of the one in data_dir.\n\
         # [store]\n\
         # url = \"rediss://postern@redis.example.org\"\n\
         # password_file = \"/etc/postern/redis-password\"\n\
         \n\
         # The cloud layer: docs/aws.md and docs/azure.md.\n\
         # [[aws.accounts]]\n\
         # id = \"123456789012\"\n\
         # regions = [\"eu-central-1\"]\n",
        data_dir = quoted(&data_dir.to_string_lossy()),
        listen = quoted(&listen),
        names = names.join(", "),
    )
}

/// Returns the next commands after `init`, with this broker's own values.
pub fn next_commands(config: &BrokerConfig) -> Vec<String> {
    let name = config.names.first().map_or("localhost", String::as_str);
    let host = if name.parse::<std::net::Ipv6Addr>().is_ok() { format!("[{name}]") } else { name.to_owned() };
    let postern = format!(
        "postern --broker https://{host}:{} --identity {}",
        config.listen.port(),
        config.admin_dir().display()
    );
    vec![
        "systemctl enable --now postern-broker".to_owned(),
        format!("{postern} status"),
        format!("{postern} agents token host:web-1"),
    ]
}

/// Returns the command that runs `init` as the owner of the data directory, if root runs this and the directory is another user's: root
/// writes no keys into a directory that another user controls. None if this process is to go on itself.
pub fn as_owner(config: &BrokerConfig, file: &Path, admin: &Name) -> Option<Command> {
    let owner = fs::metadata(&config.data_dir).ok().filter(|found| found.is_dir() && found.uid() != 0);
    let owner = owner.filter(|_| rustix::process::geteuid().is_root())?;
    // Not by its path: the owner may be unable to reach the directory in which root has this program.
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0("postern-broker")
        .arg("--config")
        .arg(file)
        .args(["init", "--admin", admin.as_str()])
        .uid(owner.uid())
        .gid(owner.gid());
    Some(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_asked_for_and_an_empty_line_takes_the_default() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("postern/broker.toml");
        let (mut input, mut output) = (&b"broker.example.org, 192.0.2.1\n\n\n"[..], Vec::new());
        assert!(write_if_missing(&file, Answers::default(), Some((&mut input, &mut output))).unwrap());
        let config = BrokerConfig::load(&file).unwrap();
        assert_eq!(config.names, ["broker.example.org", "192.0.2.1"]);
        assert_eq!(
            (config.listen.to_string().as_str(), config.data_dir.as_path()),
            (LISTEN, Path::new(DATA_DIR))
        );
        assert_eq!(String::from_utf8(output).unwrap().matches(": ").count(), 3);
        assert!(!write_if_missing(&file, Answers::default(), None).unwrap(), "it is there");
    }

    #[test]
    fn values_are_never_dropped_and_never_guessed() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("broker.toml");
        let named = |name: &str| Answers { names: vec![name.to_owned()], ..Answers::default() };
        let missing = write_if_missing(&file, Answers::default(), None).unwrap_err().to_string();
        assert!(missing.contains("--name"), "{missing}");
        let wrong = format!("{:#}", write_if_missing(&file, named("not a \"name\""), None).unwrap_err());
        assert!(wrong.contains("names"), "{wrong}");
        assert!(!file.exists());
        assert!(write_if_missing(&file, named("broker.example.org"), None).unwrap());
        let ignored = write_if_missing(&file, named("other.example.org"), None).unwrap_err().to_string();
        assert!(ignored.contains("edit that file"), "{ignored}");
    }
}
