//! The command `postern-agent`.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{CommandFactory as _, Parser, Subcommand, ValueEnum, ValueHint};
use postern_agent::clock;
use postern_agent::config::{AgentConfig, DEFAULT_PATH, LogFormat, trial_time};
use postern_agent::doctor::{self, Severity};
use postern_agent::enforcement::commands::{self, EnforceOptions};
use postern_agent::join_token::{self, TokenError};
use postern_agent::status::Status;
use postern_agent::{enroll, firewall, run, uninstall};
use postern_manual::Section;
use postern_pki::credentials::Credentials;
use postern_runtime::files;
use postern_runtime::private_place::private_place;
use tracing_subscriber::EnvFilter;

/// The agent of Postern: protects this host's management ports with nftables, and opens what the broker grants.
#[derive(Debug, Parser)]
#[command(version, about)]
struct AgentArguments {
    /// The configuration file.
    #[arg(long, global = true, default_value = DEFAULT_PATH, env = "POSTERN_AGENT_CONFIG")]
    config: PathBuf,
    #[command(subcommand)]
    command: AgentCommand,
}

#[derive(Debug, Subcommand)]
enum AgentCommand {
    /// Enrols this host with a join token, which an administrator makes with `postern agents token`.
    Enroll {
        /// The file with the join token, which no other user can read, or - for standard input. Default: the credential
        /// postern.token of the service manager.
        #[arg(long, value_name = "FILE")]
        token_file: Option<PathBuf>,
        /// Refused: other users can read the arguments of a command.
        #[arg(long, hide = true)]
        token: Option<String>,
    },
    /// Runs until SIGTERM. The table and its timeouts stay in the kernel.
    Run,
    /// Puts the last accepted state into the kernel. For early boot, before the network is up.
    Load,
    /// Closes the protected ports on trial: they open again by themselves unless `postern-agent confirm` is run in a session that came in
    /// after that. Does nothing to a host that is confirmed.
    Enforce {
        /// The time of the trial, 10s to 1h. Default: `[enforce] confirm` in the configuration.
        #[arg(long, value_name = "TIME", value_parser = parse_trial_time, conflicts_with = "now")]
        confirm_within: Option<Duration>,
        /// Confirms without a trial and without evidence, for instance at the machine's console.
        #[arg(long)]
        now: bool,
    },
    /// Confirms the trial, so that the host enforces for good. Run it in a session that came in after the trial began.
    Confirm,
    /// Shows the state of the agent and the open windows.
    Status {
        /// The format: `text` for people, `json` for programs.
        #[arg(long, value_enum, default_value_t = Output::Text)]
        output: Output,
    },
    /// Finds what keeps this host from being protected, and names the remedy.
    Doctor,
    /// Checks the configuration and changes nothing.
    CheckConfig,
    /// Removes the table, the identity and the state from this host.
    Uninstall,
    /// Writes the man pages and the completion scripts of this command into a directory, for packages.
    #[command(hide = true)]
    Manual {
        /// The directory.
        #[arg(value_hint = ValueHint::DirPath)]
        dir: PathBuf,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Output {
    Text,
    Json,
}

/// The exit code of a wrong configuration or argument, the same as clap's: nothing was done, but by `load`, which shuts what it can.
const BAD_USAGE: u8 = 2;

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = AgentArguments::parse();
    if let AgentCommand::Manual { dir } = &arguments.command {
        return write_manual(dir)
            .map_or_else(|error| report_error(&error, ExitCode::FAILURE), |()| ExitCode::SUCCESS);
    }
    let config = match AgentConfig::load(&arguments.config) {
        Ok(config) => config,
        Err(error) => {
            if matches!(arguments.command, AgentCommand::Load) && arguments.config.exists() {
                load_without(&arguments.config);
            }
            return report_error(&error.into(), ExitCode::from(BAD_USAGE));
        }
    };
    execute(arguments, config).await.unwrap_or_else(|error| report_error(&error, ExitCode::FAILURE))
}

async fn execute(arguments: AgentArguments, config: AgentConfig) -> anyhow::Result<ExitCode> {
    let mut out = io::stdout();
    match arguments.command {
        AgentCommand::Enroll { token_file, token } => {
            let credentials_dir = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
            let token = match token {
                Some(_) => Err(TokenError::Argument),
                None => join_token::read(token_file.as_deref(), credentials_dir.as_deref()),
            };
            let token = match token {
                Ok(token) => token,
                Err(error) => return Ok(report_error(&error.into(), ExitCode::from(BAD_USAGE))),
            };
            let place =
                private_place(&config.state_dir).context("cannot keep a key in the state directory")?;
            files::make_private_dir(&place)
                .with_context(|| format!("cannot make the state directory {}", config.state_dir.display()))?;
            let before = Credentials::load(&config.identity_dir()).ok();
            let before = before.as_ref().and_then(enroll::target_of);
            let target = enroll::enroll(&config.broker, &token, &config.identity_dir()).await?;
            commands::enrolled(&config, before.as_ref(), &target).await?;
            writeln!(
                out,
                "this host is enrolled as {target}; a running agent starts to use the new identity by itself"
            )?;
        }
        AgentCommand::Run => {
            log(config.log_format);
            run::run(config).await?;
        }
        AgentCommand::Load => {
            log(config.log_format);
            run::load(&config)?;
        }
        AgentCommand::Enforce { confirm_within, now } => {
            let options = EnforceOptions { confirm_within, now };
            let session = ssh_connection();
            commands::enforce(&config, options, session.as_deref(), &mut out, &mut io::stderr()).await?;
        }
        AgentCommand::Confirm => commands::confirm(&config, ssh_connection().as_deref(), &mut out).await?,
        AgentCommand::Status { output } => {
            let status = Status::gather(&config, &clock::moment());
            match output {
                Output::Text => status.write_text(&mut out)?,
                Output::Json => writeln!(out, "{}", serde_json::to_string_pretty(&status)?)?,
            }
        }
        AgentCommand::Doctor => {
            let mut findings = doctor::diagnose(&config, &clock::moment()).await;
            findings.extend(firewall::diagnose());
            if doctor::write_text(findings, &mut out)? == Severity::Error {
                return Ok(ExitCode::FAILURE);
            }
        }
        AgentCommand::CheckConfig => writeln!(out, "{} is good", arguments.config.display())?,
        AgentCommand::Uninstall => {
            let left = uninstall::uninstall(&config, || Ok(firewall::remove_table()?))?;
            writeln!(out, "the table, the identity and the state are removed")?;
            for dir in left {
                writeln!(out, "{} stays: it has files that are not the agent's", dir.display())?;
            }
        }
        AgentCommand::Manual { dir } => write_manual(&dir)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Puts the last accepted state into the kernel although the configuration is wrong: a typing error opens no port at the next boot.
fn load_without(file: &Path) {
    let config = AgentConfig::salvage(file);
    log(config.log_format);
    match run::load(&config) {
        Ok(()) => tracing::warn!(
            state_dir = %config.state_dir.display(),
            "the configuration is wrong; the host holds the state that was accepted last"
        ),
        Err(error) => tracing::error!(
            error = format!("{error:#}"),
            "the configuration is wrong, and no state could be loaded"
        ),
    }
}

/// Writes the manual; it needs no configuration.
fn write_manual(dir: &Path) -> anyhow::Result<()> {
    let program = AgentArguments::command();
    postern_manual::write(program, Section::Administrator, &["agent.toml(5)"], dir)
        .with_context(|| format!("cannot write the manual into {}", dir.display()))
}

/// Returns the connection of this session as sshd names it.
fn ssh_connection() -> Option<String> {
    std::env::var("SSH_CONNECTION").ok()
}

fn parse_trial_time(text: &str) -> Result<Duration, postern_core::Invalid> {
    trial_time("--confirm-within", text)
}

/// Writes the error with its causes to stderr.
fn report_error(error: &anyhow::Error, code: ExitCode) -> ExitCode {
    // Where stderr is closed, the exit code is all that is left.
    let _ = writeln!(io::stderr(), "postern-agent: {}", format!("{error:#}").trim_end());
    code
}

/// Starts logging to stderr; the level comes from `POSTERN_LOG`.
fn log(format: LogFormat) {
    let filter = EnvFilter::try_from_env("POSTERN_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_target(false);
    match format {
        LogFormat::Text => builder.with_ansi(false).init(),
        LogFormat::Json => builder.json().init(),
    }
}
