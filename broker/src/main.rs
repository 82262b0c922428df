//! `postern-broker`.

use std::io::{IsTerminal as _, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::{CommandFactory as _, Parser, Subcommand};
use postern_aws::Aws;
use postern_azure::Azure;
use postern_broker::authority;
use postern_broker::checkpoints;
use postern_broker::config::{BrokerConfig, LogFormat, lifetime, plain_warning};
use postern_broker::configure::{self, Answers};
use postern_broker::traces::{self, Exporter};
use postern_broker::{backup, doctor, migrate, run, setup};
use postern_core::audit::Hash;
use postern_core::target::CloudKind;
use postern_core::{Justification, KeyHash, Name, Role};
use postern_manual::Section;
use postern_runtime::findings::{self, Severity};
use postern_store::redis::Redis;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

/// The broker of Postern: authorizes requests for access, keeps the grants, and drives both layers.
#[derive(Debug, Parser)]
#[command(version, about)]
struct BrokerArguments {
    /// The configuration file.
    #[arg(long, global = true, default_value = "/etc/postern/broker.toml", env = "POSTERN_BROKER_CONFIG")]
    config: PathBuf,
    #[command(subcommand)]
    command: BrokerCommand,
}

#[derive(Debug, Subcommand)]
enum BrokerCommand {
    /// Writes a configuration if there is none, and makes the keys, the store, and the first administrator's identity in
    /// <data_dir>/admin; run it once.
    ///
    /// Without a configuration it asks on a terminal for what is not given.
    Init {
        /// A DNS name or an address by which agents and callers reach the broker; may be given several times.
        #[arg(long = "name")]
        names: Vec<String>,
        /// The address and port to listen on; [::]:7443 if not given.
        #[arg(long)]
        listen: Option<SocketAddr>,
        /// The directory for all data; /var/lib/postern-broker if not given.
        #[arg(long)]
        data_dir: Option<PathBuf>,
        /// The name of the first administrator.
        #[arg(long, default_value = "admin")]
        admin: Name,
    },
    /// Serves until SIGTERM.
    Serve,
    /// Checks the configuration and changes nothing.
    CheckConfig,
    /// Finds what keeps the broker from its work, and names the remedy; ends with 1 if something does.
    Doctor {
        /// Write the findings as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Moves every record to another store, verbatim; no broker may run on either.
    ///
    /// A store is `config` (the one that the configuration names), sqlite:///PATH, or a URL of a Redis without a password.
    /// Afterwards the source is refused.
    Migrate {
        /// The store to move.
        #[arg(long)]
        from: migrate::StoreName,
        /// The store to move to: an empty one.
        #[arg(long)]
        to: migrate::StoreName,
        /// A file with the password for the source.
        #[arg(long)]
        from_password_file: Option<PathBuf>,
        /// A file with the password for the target.
        #[arg(long)]
        to_password_file: Option<PathBuf>,
        /// Leave the source usable: then there are two stores, and only one may be used.
        #[arg(long)]
        keep_source: bool,
        /// Empty the target first, if a migration into it was not completed.
        #[arg(long)]
        overwrite_incomplete: bool,
    },
    /// Copies the store, the authority and the configuration into a new directory, and verifies the copy. The broker may run.
    Backup {
        /// The directory to make, in a place that no other user can change.
        dir: PathBuf,
        /// Copy the keys of the root and for people as well, if they are in data_dir/ca.
        #[arg(long)]
        offline_keys: bool,
    },
    /// Makes the data directory and the store of the configuration from a backup, after it has verified it. Both must be empty.
    ///
    /// What is restored opens nothing: grants that are not over are revoked, join tokens are removed, and requests are refused until an
    /// administrator applies a policy.
    Restore {
        /// The directory that `backup` made.
        dir: PathBuf,
        /// A principal that was revoked since the backup; may be given several times.
        #[arg(long)]
        revoke: Vec<Name>,
        /// Empty the store on Redis first, if a restore into it was not completed.
        #[arg(long)]
        overwrite_incomplete: bool,
    },
    /// Shows and renews the certificates that sign every other certificate.
    Authority {
        #[command(subcommand)]
        command: AuthorityCommand,
    },
    /// Shows the trusted checkpoint of the audit log, and accepts a log after an alarm.
    Audit {
        #[command(subcommand)]
        command: AuditCommand,
    },
    /// Makes a client certificate for an operator, a requester or a portal. The broker audits it (`principal.issued`).
    ///
    /// It also brings back a principal that `postern principals revoke` has revoked: a certificate that is issued later is good.
    Issue {
        /// The principal's name. One name is one principal, in whatever role.
        name: Name,
        /// administrator, requester or reader.
        #[arg(long)]
        role: Role,
        /// The directory for key.pem, cert.pem and roots.pem.
        #[arg(long)]
        out: PathBuf,
        /// The time for which it is valid, at most 365d.
        #[arg(long, default_value = "90d", value_parser = lifetime)]
        valid_for: Duration,
        /// The file with the private key that signs for people; as [authority] people_key if not given.
        #[arg(long)]
        people_key: Option<PathBuf>,
        /// Issue the certificate although the name has one in another role: both are one principal, and share its grants.
        #[arg(long)]
        allow_other_role: bool,
    },
    /// Writes the man pages and the completion scripts of this command into a directory, for packages.
    #[command(hide = true)]
    Manual {
        /// The directory.
        dir: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
enum AuthorityCommand {
    /// Shows the root and the intermediate with their validity, and the place of the root key.
    Status {
        /// Exit with 9 if something needs attention.
        #[arg(long)]
        check: bool,
    },
    /// Makes new intermediates with the root's key. A running broker takes them up without a restart; an intermediate that
    /// has ended may be renewed, too.
    ///
    /// Certificates that the old intermediates signed stay valid until their own ends. An authority with one intermediate has two
    /// afterwards: one for agents and brokers, one for people.
    Renew {
        /// The file with the root's private key, readable by its owner alone.
        #[arg(long)]
        root_key: PathBuf,
        /// The file with the private key that signs for people; as [authority] people_key if not given. Without it that
        /// intermediate stays.
        #[arg(long)]
        people_key: Option<PathBuf>,
        /// Make a new intermediate for people although the key of the present one is not in that file: it is lost.
        #[arg(long)]
        replace_people: bool,
    },
    /// Replaces the root, in steps with an overlap: no agent is enrolled again.
    Roll {
        #[command(subcommand)]
        step: RollStep,
    },
    /// Revokes an intermediate whose key was stolen: every broker refuses its certificates within seconds, and agents renew within
    /// minutes.
    RevokeIntermediate {
        /// The key of the intermediate, as `authority status` shows it: 64 hexadecimal digits.
        key: KeyHash,
        /// The file with the root's private key; needed if the intermediate signs now.
        #[arg(long)]
        root_key: Option<PathBuf>,
        /// The file for the private key that signs for people; as [authority] people_key if not given.
        #[arg(long)]
        people_key: Option<PathBuf>,
    },
}

#[derive(Debug, Subcommand)]
enum RollStep {
    /// Makes the next root, for which the old one vouches. Running brokers make it known.
    Begin {
        /// The file with the old root's private key.
        #[arg(long)]
        root_key: PathBuf,
        /// The file for the next root's private key; data_dir/ca/next-root.key if not given.
        #[arg(long)]
        new_root_key: Option<PathBuf>,
    },
    /// Shows both roots, and the agents and people that still need the old one.
    Status,
    /// Lets the next root sign. Refused while an agent has not confirmed that it trusts that root.
    Switch {
        /// The file with the next root's private key; data_dir/ca/next-root.key if not given.
        #[arg(long)]
        new_root_key: Option<PathBuf>,
        /// The file with the private key that signs for people; as [authority] people_key if not given.
        #[arg(long)]
        people_key: Option<PathBuf>,
        /// Switch although agents have not confirmed.
        #[arg(long)]
        force: bool,
    },
    /// Ends the trust in the old root. Refused while an agent or a person has a certificate under it.
    Finish {
        /// Finish although certificates under the old root are in use.
        #[arg(long)]
        force: bool,
    },
}

#[derive(Debug, Subcommand)]
enum AuditCommand {
    /// Shows the newest checkpoint that this broker trusts, and the alarm if there is one.
    Status {
        /// Exit with 9 if there is an alarm.
        #[arg(long)]
        check: bool,
    },
    /// Accepts that the audit log is another than the trusted checkpoint says, after an alarm. The broker audits it.
    AcceptHead {
        /// The number of the record up to which the log is right.
        #[arg(long)]
        seq: u64,
        /// The hash of that record, 64 hexadecimal digits.
        #[arg(long)]
        hash: Hash,
        /// The reason, on one line.
        #[arg(long, value_parser = justification)]
        reason: Justification,
    },
}

/// The exit code of `authority status --check` and `audit status --check` if something needs attention, as of `postern status --check`.
const ATTENTION: u8 = 9;

#[tokio::main]
async fn main() -> ExitCode {
    match execute(BrokerArguments::parse()).await {
        Ok(code) => code,
        Err(error) => {
            // Without a stderr the exit code still says that the command failed.
            let _ = writeln!(std::io::stderr(), "postern-broker: {}", in_a_line(&error));
            if std::env::var_os("RUST_BACKTRACE").is_some_and(|asked| asked != "0") {
                let _ = writeln!(std::io::stderr(), "{}", error.backtrace());
            }
            ExitCode::FAILURE
        }
    }
}

/// Returns an error with its causes on one line. The errors of TOML have several.
fn in_a_line(error: &anyhow::Error) -> String {
    let chain = format!("{error:#}");
    let lines = chain.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.collect::<Vec<_>>().join(" ")
}

async fn execute(arguments: BrokerArguments) -> anyhow::Result<ExitCode> {
    if let BrokerCommand::Manual { dir } = &arguments.command {
        write_manual(dir)?;
        return Ok(ExitCode::SUCCESS);
    }
    if let BrokerCommand::Restore { dir, .. } = &arguments.command {
        anyhow::ensure!(
            arguments.config.exists(),
            "there is no {}; copy {} there, and correct what is different on this machine",
            arguments.config.display(),
            dir.join("broker.toml").display()
        );
    }
    if let BrokerCommand::Init { names, listen, data_dir, .. } = &arguments.command {
        let answers = Answers { names: names.clone(), listen: *listen, data_dir: data_dir.clone() };
        configure_first(&arguments.config, answers)?;
    }
    let config = BrokerConfig::load(&arguments.config)?;
    let mut out = std::io::stdout();
    match arguments.command {
        BrokerCommand::Init { admin, .. } => {
            if let Some(mut command) = configure::as_owner(&config, &arguments.config, &admin) {
                let ended = command.status().context("cannot run init as the owner of data_dir")?;
                return Ok(if ended.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
            }
            setup::init(&config, admin).await?;
            writeln!(out, "the first administrator's identity is in {}", config.admin_dir().display())?;
            writeln!(
                out,
                "{} is not needed from day to day: take it offline, and run `postern-broker authority renew` once a year",
                config.authority_dir().join("root.key").display()
            )?;
            writeln!(
                out,
                "{} signs for people and only `postern-broker issue` needs it: take it out of the broker's reach as well",
                config.people_key.display()
            )?;
            if rustix::process::geteuid().is_root() {
                let dir = config.data_dir.display();
                writeln!(
                    out,
                    "{dir} belongs to root: for the service, run `chown -R postern-broker: {dir}`"
                )?;
            }
            writeln!(out, "next:")?;
            for command in configure::next_commands(&config) {
                writeln!(out, "    {command}")?;
            }
        }
        BrokerCommand::Doctor { json } => {
            let findings = doctor::diagnose(&config, &arguments.config).await;
            let worst = if json {
                writeln!(out, "{}", serde_json::to_string(&findings)?)?;
                findings::worst(&findings)
            } else {
                findings::write_text(findings, &mut out)?
            };
            if worst == Severity::Error {
                return Ok(ExitCode::FAILURE);
            }
        }
        BrokerCommand::Serve => {
            let exporter = log(&config)?;
            let providers = providers(&config).await?;
            let ended = run::serve(config, providers).await;
            exporter.end();
            ended?;
        }
        BrokerCommand::CheckConfig => {
            config.check_private_files()?;
            if let Some(settings) = &config.redis {
                if let Some(warning) = plain_warning(settings) {
                    writeln!(out, "warning: {warning}")?;
                }
                for warning in Redis::warnings(settings).await.context("cannot look at Redis's settings")? {
                    writeln!(out, "warning: {warning}")?;
                }
            }
            for warning in authority::command::warnings(&config)? {
                writeln!(out, "warning: {warning}")?;
            }
            writeln!(out, "{} is good", arguments.config.display())?;
        }
        BrokerCommand::Migrate {
            from,
            to,
            from_password_file,
            to_password_file,
            keep_source,
            overwrite_incomplete,
        } => {
            let options = migrate::MigrateCommand {
                from,
                to,
                from_password_file,
                to_password_file,
                keep_source,
                overwrite_incomplete,
            };
            let moved = migrate::migrate(&config, options).await?;
            for (kind, count) in moved.counts {
                writeln!(out, "{count} {kind}")?;
            }
            if moved.left_out > 0 {
                let count = moved.left_out;
                writeln!(
                    out,
                    "left out: {count} entries that no broker can have written; find out who can write the store"
                )?;
            }
            writeln!(out, "the migration is complete")?;
        }
        BrokerCommand::Backup { dir, offline_keys } => {
            let asked = backup::BackupCommand { dir: &dir, config: &arguments.config, offline_keys };
            let (manifest, warnings) = backup::backup(&config, asked).await?;
            write!(out, "{}", backup::report::made(&dir, &manifest, &warnings))?;
        }
        BrokerCommand::Restore { dir, revoke, overwrite_incomplete } => {
            let asked = backup::RestoreCommand { dir: &dir, revoke: &revoke, overwrite_incomplete };
            let restored = backup::restore(&config, asked).await?;
            write!(out, "{}", backup::report::restored(&restored, &config))?;
        }
        BrokerCommand::Authority { command: AuthorityCommand::Status { check } } => {
            let (text, warnings) = authority::command::status(&config)?;
            write!(out, "{text}")?;
            if check && warnings > 0 {
                return Ok(ATTENTION.into());
            }
        }
        BrokerCommand::Authority { command } => writeln!(out, "{}", change_authority(&config, command)?)?,
        BrokerCommand::Audit { command: AuditCommand::Status { check } } => {
            let (text, alarm) = checkpoints::command::status(&config)?;
            write!(out, "{text}")?;
            if check && alarm {
                return Ok(ATTENTION.into());
            }
        }
        BrokerCommand::Audit { command: AuditCommand::AcceptHead { seq, hash, reason } } => {
            writeln!(out, "{}", checkpoints::command::accept_head(&config, seq, hash, &reason)?)?;
        }
        BrokerCommand::Issue { name, role, out: dir, valid_for: lifetime, people_key, allow_other_role } => {
            let people_key = people_key.as_deref().unwrap_or(&config.people_key);
            let asked = setup::IssueCommand { role, name, lifetime, out: &dir, people_key, allow_other_role };
            let (serial, end) = setup::issue(&config, asked)?;
            writeln!(
                out,
                "the identity is in {}; its serial number is {serial}; it ends at {end:.0}",
                dir.display()
            )?;
        }
        BrokerCommand::Manual { dir } => write_manual(&dir)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes the manual; it needs no configuration.
fn write_manual(dir: &Path) -> anyhow::Result<()> {
    let program = BrokerArguments::command();
    postern_manual::write(program, Section::Administrator, &["broker.toml(5)"], dir)
        .with_context(|| format!("cannot write the manual into {}", dir.display()))
}

/// Writes the configuration if there is none. On a terminal it asks for what is missing.
fn configure_first(file: &Path, answers: Answers) -> anyhow::Result<()> {
    let (stdin, mut stderr) = (std::io::stdin(), std::io::stderr());
    let is_terminal = stdin.is_terminal() && stderr.is_terminal();
    let (mut input, output): (_, &mut dyn std::io::Write) = (stdin.lock(), &mut stderr);
    let ask = is_terminal.then_some((&mut input as &mut dyn std::io::BufRead, output));
    if configure::write_if_missing(file, answers, ask)? {
        writeln!(std::io::stdout(), "{} is written", file.display())?;
    }
    Ok(())
}

/// Runs a command that changes the authority, and returns a text about the outcome.
fn change_authority(config: &BrokerConfig, command: AuthorityCommand) -> anyhow::Result<String> {
    let people = |key: Option<PathBuf>| key.unwrap_or_else(|| config.people_key.clone());
    match command {
        AuthorityCommand::Status { .. } => authority::command::status(config).map(|(text, _)| text),
        AuthorityCommand::Renew { root_key, people_key, replace_people } => {
            authority::command::renew(config, &root_key, &people(people_key), replace_people)
        }
        AuthorityCommand::RevokeIntermediate { key, root_key, people_key } => {
            authority::revoke_command::revoke(config, key, root_key.as_deref(), &people(people_key))
        }
        AuthorityCommand::Roll { step } => match step {
            RollStep::Begin { root_key, new_root_key } => {
                authority::roll_command::begin(config, &root_key, new_root_key.as_deref())
            }
            RollStep::Status => Ok(authority::roll_command::status(config)?.trim_end().to_owned()),
            RollStep::Switch { new_root_key, people_key, force } => {
                let people_key = people(people_key);
                authority::roll_command::switch(config, new_root_key.as_deref(), &people_key, force)
            }
            RollStep::Finish { force } => authority::roll_command::finish(config, force),
        },
    }
}

/// Returns the providers of the clouds that the configuration names. No call is made yet.
async fn providers(config: &BrokerConfig) -> anyhow::Result<run::Providers> {
    let mut providers = run::Providers::new();
    if let Some(settings) = config.aws.clone() {
        providers.insert(CloudKind::Aws, Arc::new(Aws::connect(settings).await));
    }
    if let Some(settings) = config.azure.clone() {
        providers.insert(CloudKind::Azure, Arc::new(Azure::connect(settings).map_err(anyhow::Error::msg)?));
    }
    Ok(providers)
}

/// Logs to stderr, at the level in POSTERN_LOG, and exports spans if the configuration names a collector.
fn log(config: &BrokerConfig) -> anyhow::Result<Exporter> {
    // Strangers can make the transport warn of each frame that they send.
    let usual = || EnvFilter::new("info,h2=error,hyper=error,rustls=error");
    let filter = EnvFilter::try_from_env("POSTERN_LOG").unwrap_or_else(|_| usual());
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_target(false);
    let lines = match config.log_format {
        LogFormat::Text => lines.with_ansi(false).boxed(),
        LogFormat::Json => lines.json().boxed(),
    };
    let (spans, exporter) = traces::start(config.traces.as_ref())?;
    tracing_subscriber::registry().with(spans).with(lines.with_filter(filter)).init();
    Ok(exporter)
}

fn justification(text: &str) -> Result<Justification, String> {
    Justification::new(text).map_err(|error| error.to_string())
}
