//! The command line. Clap refuses malformed values; the broker decides whether a well-formed request is allowed.

mod values;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum, ValueHint};
use clap_complete::Shell;
use postern_core::audit::Hash;
use postern_core::{
    CertificateSerial, GrantId, Justification, Name, PrincipalKey, Protocol, SourcePrefix, TargetId,
};

pub(crate) use values::PortArg;
use values::{duration, head, justification, name, parsed, whole_seconds};

use crate::exit_code;
use crate::output::Format;

/// The heading of the flags that every command takes.
const GLOBAL: &str = "Global options";

/// Just-in-time access to the management ports of machines.
#[derive(Debug, Parser)]
#[command(name = "postern", version, about, after_help = exit_code::HELP, max_term_width = 110)]
pub(crate) struct Args {
    #[command(flatten)]
    pub connection: ConnectionArgs,
    /// The format of results: a table for people, with whole ids if it is wide, or JSON for programs.
    #[arg(short, long, global = true, help_heading = GLOBAL, value_enum, default_value_t = Format::Table, value_name = "FORMAT")]
    pub output: Format,
    #[command(subcommand)]
    pub command: Command,
}

/// The broker to call, and the identity to show it. Both can also be set in ~/.config/postern/config.toml.
#[derive(Debug, Clone, Default, ClapArgs)]
pub(crate) struct ConnectionArgs {
    /// The broker's address, https://host:port.
    #[arg(long, global = true, help_heading = GLOBAL, env = "POSTERN_BROKER", hide_env_values = true)]
    #[arg(value_name = "URL", value_hint = ValueHint::Url)]
    pub broker: Option<String>,
    /// The directory with key.pem, cert.pem and roots.pem.
    #[arg(long, global = true, help_heading = GLOBAL, env = "POSTERN_IDENTITY", hide_env_values = true)]
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub identity: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Request access, and wait until it is open.
    Request(RequestArgs),
    /// List grants, the newest first.
    Grants(GrantsArgs),
    /// Show one grant with the state of each window in each layer.
    Show {
        /// The grant's id.
        #[arg(value_parser = parsed::<GrantId>)]
        grant: GrantId,
    },
    /// Close a grant before its end, and wait until it is closed. Established connections stay.
    Revoke(RevokeArgs),
    /// Manage policies: the protected ports, and the limits within which they open.
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// List targets, or show one, with the state of both layers.
    Targets {
        /// Only this target.
        #[arg(value_parser = parsed::<TargetId>)]
        target: Option<TargetId>,
    },
    /// Report the VMs of the broker's clouds that expose management ports, with the rules that do.
    Assess(AssessArgs),
    /// Close the protected ports of VMs in their cloud's rules, so that only windows open them.
    Lockdown(LockdownArgs),
    /// Restore the rules that the lockdown of VMs removed.
    Release(ReleaseArgs),
    /// Enrol, list, ban and forget agents.
    #[command(subcommand)]
    Agents(AgentsCommand),
    /// List principals, and revoke their certificates.
    #[command(subcommand)]
    Principals(PrincipalsCommand),
    /// Read and verify the audit log.
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Show the state of the brokers: those that run, the closes that are stuck, and all else that needs an
    /// operator.
    Status {
        /// Exit with code 9 if something needs attention.
        #[arg(long)]
        check: bool,
    },
    /// Write a completion script for a shell to stdout.
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Write the man pages and the completion scripts of this command into a directory, for packages.
    #[command(hide = true)]
    Manual {
        /// The directory.
        #[arg(value_hint = ValueHint::DirPath)]
        dir: PathBuf,
    },
}

#[derive(Debug, ClapArgs)]
pub(crate) struct RequestArgs {
    /// The machines: host:<name>, aws:<account>/<region>/<instance-id> or azure:<ARM id>.
    #[arg(required = true, value_name = "TARGET", value_parser = parsed::<TargetId>)]
    pub targets: Vec<TargetId>,
    /// A port, such as 22 or udp/161, or a service: ssh, rdp, winrm, winrm-https; may be given several times.
    #[arg(long = "port", required = true, value_name = "PORT", value_parser = parsed::<PortArg>)]
    pub ports: Vec<PortArg>,
    /// The protocol of every port that is given as a bare number.
    #[arg(long, default_value = "tcp", value_name = "PROTOCOL", value_parser = parsed::<Protocol>)]
    pub proto: Protocol,
    /// The source that may connect, as an address or a CIDR range; may be given several times. Without it, the
    /// broker uses the address it sees.
    #[arg(long = "source", value_name = "CIDR", value_parser = parsed::<SourcePrefix>)]
    pub sources: Vec<SourcePrefix>,
    /// The duration of the access, in whole seconds: 90s, 30m, "1h 30m".
    #[arg(long = "for", default_value = "30m", value_name = "DURATION", value_parser = whole_seconds, allow_hyphen_values = true)]
    pub duration: Duration,
    /// The reason, on one line.
    #[arg(long, value_name = "TEXT", value_parser = justification)]
    pub reason: Justification,
    /// Do not wait until the grant is active.
    #[arg(long)]
    pub no_wait: bool,
    /// The time to wait for the grant to become active.
    #[arg(long, default_value = "60s", value_name = "DURATION", value_parser = duration, allow_hyphen_values = true)]
    pub timeout: Duration,
    /// A file with your own access token for the targets' cloud, or - for standard input. A broker that asks Azure
    /// for your permissions needs it: `az account get-access-token --query accessToken --output tsv`.
    #[arg(long, value_name = "FILE", env = "POSTERN_CLOUD_TOKEN_FILE")]
    pub cloud_token: Option<PathBuf>,
    /// A key for this request: a second request with the same key returns the same grant. Without it, the command
    /// makes a new key.
    #[arg(long, value_name = "KEY")]
    pub idempotency_key: Option<String>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct GrantsArgs {
    /// Only grants with a window on this target.
    #[arg(long, value_parser = parsed::<TargetId>)]
    pub target: Option<TargetId>,
    /// Only grants in this state; may be given several times.
    #[arg(long = "state", value_enum, value_name = "STATE")]
    pub states: Vec<StateArg>,
    /// Only your own grants.
    #[arg(long, conflicts_with = "principal")]
    pub mine: bool,
    /// Only the grants of this principal: its name, or <issuer>#<subject> if another issuer vouches for it.
    #[arg(long, value_name = "NAME", value_parser = parsed::<PrincipalKey>)]
    pub principal: Option<PrincipalKey>,
    /// Write each grant again whenever it changes, until interrupted.
    #[arg(long, conflicts_with = "limit")]
    pub watch: bool,
    /// The largest number of grants to list.
    #[arg(long, default_value_t = 100, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: u32,
}

/// The states of a grant, as they are written everywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum StateArg {
    PendingApproval,
    Opening,
    Active,
    Closing,
    Closed,
    Denied,
    Failed,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct RevokeArgs {
    /// The grant's id.
    #[arg(value_parser = parsed::<GrantId>)]
    pub grant: GrantId,
    /// The reason, on one line.
    #[arg(long, value_name = "TEXT", value_parser = justification)]
    pub reason: Option<Justification>,
    /// Do not wait until every layer has closed.
    #[arg(long)]
    pub no_wait: bool,
    /// The time to wait for the grant to be closed.
    #[arg(long, default_value = "60s", value_name = "DURATION", value_parser = duration, allow_hyphen_values = true)]
    pub timeout: Duration,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    /// Create or replace every policy of a TOML file.
    Apply {
        /// The file; - for stdin.
        #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
        file: PathBuf,
    },
    /// Show one policy, as TOML that `apply` accepts.
    Get {
        /// The name of the policy.
        #[arg(value_parser = name)]
        name: Name,
    },
    /// List policies by name.
    List,
    /// Delete a policy. Its ports lose their protection on targets that no other policy covers; open grants stay
    /// open.
    Delete {
        /// The name of the policy.
        #[arg(value_parser = name)]
        name: Name,
    },
}

#[derive(Debug, ClapArgs)]
pub(crate) struct AssessArgs {
    /// Only these VMs.
    #[arg(value_name = "TARGET", value_parser = parsed::<TargetId>)]
    pub targets: Vec<TargetId>,
    /// A management port, such as 22, tcp/22 or udp/161, or a service: ssh, rdp, winrm, winrm-https; may be given
    /// several times. Without it, the broker uses its `management_ports`.
    #[arg(long = "port", value_name = "PORT", value_parser = parsed::<PortArg>)]
    pub ports: Vec<PortArg>,
    /// Fail if a VM has this verdict, or if an account, Region or subscription could not be read.
    #[arg(long, value_enum, value_name = "VERDICT")]
    pub fail_on: Option<FailOn>,
}

/// The verdict on which a check fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum FailOn {
    Unhealthy,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct LockdownArgs {
    /// The VMs. Rules that only these VMs share are closed without a concern.
    #[arg(required = true, value_name = "TARGET", value_parser = parsed::<TargetId>)]
    pub targets: Vec<TargetId>,
    /// Change nothing, and list the exact changes.
    #[arg(long)]
    pub dry_run: bool,
    /// Accept the concerns of these kinds, and go on: several with commas, or given several times.
    #[arg(long, value_enum, value_name = "CONCERN", value_delimiter = ',')]
    pub accept: Vec<Accept>,
}

/// The kinds of concern, as they are written everywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Accept {
    /// The rules also apply to machines that are not under JIT; their ports close too.
    Shared,
    /// Traffic that a rule admits cannot be kept.
    Loss,
    /// Established connections may be cut.
    Cut,
    /// Rules of the customer that keep a port open come after Postern's until the release.
    Precedence,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ReleaseArgs {
    /// The VMs.
    #[arg(required = true, value_name = "TARGET", value_parser = parsed::<TargetId>)]
    pub targets: Vec<TargetId>,
    /// Change nothing, and list the exact changes.
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum AgentsCommand {
    /// Create a token with which the agent of one target can enrol once.
    Token {
        /// The target.
        #[arg(value_parser = parsed::<TargetId>)]
        target: TargetId,
        /// The lifetime of the token, at most 10m.
        #[arg(long, default_value = "10m", value_name = "DURATION", value_parser = duration, allow_hyphen_values = true)]
        valid_for: Duration,
    },
    /// List agents by target.
    List,
    /// Ban an agent: the broker ends its session at once, and refuses its certificates from then on.
    Ban {
        /// The target of the agent.
        #[arg(value_parser = parsed::<TargetId>)]
        target: TargetId,
        /// The reason, on one line.
        #[arg(long, value_name = "TEXT", value_parser = justification)]
        reason: Option<Justification>,
    },
    /// Forget an agent that is gone for good: grants no longer wait for it, and its certificate admits it no longer.
    Forget {
        /// The target of the agent.
        #[arg(value_parser = parsed::<TargetId>)]
        target: TargetId,
        /// The reason, on one line.
        #[arg(long, value_name = "TEXT", value_parser = justification)]
        reason: Option<Justification>,
        /// Forget it though its machine, if it still runs, may hold windows until their ends.
        #[arg(long)]
        accept_held_windows: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum PrincipalsCommand {
    /// List the principals that were issued a certificate, have an open grant, or were revoked.
    List,
    /// Revoke every certificate of a principal that was issued until now, or one certificate. Every broker refuses it
    /// within 2 seconds and ends its streams, and the principal's open grants close.
    ///
    /// To bring the principal back, run `postern-broker issue` on the broker's machine: a certificate that is issued
    /// later is good.
    Revoke(RevokePrincipalArgs),
}

#[derive(Debug, ClapArgs)]
pub(crate) struct RevokePrincipalArgs {
    /// The principal: its name, or <issuer>#<subject> if another issuer vouches for it.
    #[arg(required_unless_present = "serial", conflicts_with = "serial", value_parser = parsed::<PrincipalKey>)]
    pub name: Option<PrincipalKey>,
    /// Only the certificate with this serial number, and no grant.
    #[arg(long, value_name = "HEX", value_parser = parsed::<CertificateSerial>)]
    pub serial: Option<CertificateSerial>,
    /// The reason, on one line.
    #[arg(long, value_name = "TEXT", value_parser = justification)]
    pub reason: Option<Justification>,
    /// Keep the principal's open grants until their ends.
    #[arg(long, conflicts_with = "serial")]
    pub keep_grants: bool,
    /// Revoke also your own certificate. Otherwise the broker refuses that.
    #[arg(long)]
    pub allow_self: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum AuditCommand {
    /// Write the log's records in order. With --output json the lines are exactly as they were chained.
    Tail {
        /// Only records after this one.
        #[arg(long, default_value_t = 0, value_name = "N")]
        after: u64,
        /// Continue with new records as they come, until interrupted.
        #[arg(long)]
        follow: bool,
    },
    /// Verify that every record follows from the one before, and that the log agrees with the signed checkpoints that are
    /// known. Exits with 1 and names the line where one does not.
    ///
    /// The command remembers the newest checkpoint that it has seen of each log, and compares the log with it the next time.
    Verify(VerifyArgs),
}

#[derive(Debug, Default, ClapArgs)]
pub(crate) struct VerifyArgs {
    /// Verify this copy of the log, without a broker: one record a line, as `tail --output json` writes them. Given several
    /// times: segments of a broker and exports, in any order, as one log.
    #[arg(long, value_name = "LOG.jsonl", value_hint = ValueHint::FilePath)]
    pub file: Vec<PathBuf>,
    /// The number of the first record in the files, if the segments with those before it are verified elsewhere.
    #[arg(long, value_name = "SEQ", requires = "file")]
    pub from: Option<u64>,
    /// The head that an earlier verification printed: if it is not in the log, the end of the log was cut off.
    #[arg(long, value_name = "HASH", value_parser = head)]
    pub expect_head: Option<Hash>,
    /// A file with a signed checkpoint on one line, from a broker's journal (`audit.checkpoint`) or from an agent
    /// (`postern-agent status --output json`): the log must agree with it. The command then reads every record itself.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub checkpoint: Option<PathBuf>,
    /// With --file: the root certificate that vouches for checkpoints, in PEM. Without it, the identity's roots.
    #[arg(long, value_name = "ROOT.pem", value_hint = ValueHint::FilePath, requires = "file")]
    pub root: Option<PathBuf>,
    /// Have the broker read every record, also those that it has verified before.
    #[arg(long, conflicts_with = "file")]
    pub full: bool,
}

#[cfg(test)]
mod tests;
