//! The command line.
//!
//! Owns: arguments and what they print. Administration works on a stopped server's folder
//! (`--data-dir`) or on a running one (`--url`). Never: takes a secret as an argument; tokens come
//! from MILLRACE_TOKEN or a file.

mod client;
mod fsck;
mod manage;
mod plan;
mod rejected;
mod sql;

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::{settings::RawSettings, startup};

#[derive(Debug, Parser)]
#[command(
    name = "millrace",
    version,
    about = "A time-series telemetry database: every tenant under its own key, every edge row exactly once, SQL over all of it.",
    after_help = "Examples:\n  millrace demo --for 30s\n  millrace serve --data-dir ./data --listen 127.0.0.1:8443\n  millrace tenant create acme --data-dir ./data\n  millrace token create --tenant acme --scope write,read --data-dir ./data\n  MILLRACE_TOKEN=... millrace sql --url https://localhost:8443 --ca ./data/tls/ca.pem 'SELECT 1'"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server (TLS only).
    #[command(after_help = "Example:\n  millrace serve --data-dir ./data --listen 0.0.0.0:8443")]
    Serve(RawSettings),
    /// Create and list tenants.
    #[command(after_help = "Example:\n  millrace tenant create acme --data-dir ./data")]
    Tenant {
        #[command(subcommand)]
        command: manage::TenantCommand,
    },
    /// Create, list and revoke tokens of a tenant.
    #[command(
        after_help = "Example:\n  millrace token create --tenant acme --scope write,read --data-dir ./data"
    )]
    Token {
        #[command(subcommand)]
        command: manage::TokenCommand,
    },
    /// Claim, list and revoke devices of a tenant.
    #[command(after_help = "Example:\n  millrace device claim --tenant acme --data-dir ./data")]
    Device {
        #[command(subcommand)]
        command: manage::DeviceCommand,
    },
    /// What is kept of whom: plans, previews, confirmations.
    #[command(
        after_help = "Example:\n  millrace plan preview acme --url https://localhost:8443 --ca ./data/tls/ca.pem --token-file ./data/operator.token"
    )]
    Plan {
        #[command(subcommand)]
        command: plan::PlanCommand,
    },
    /// Legal holds: what must stay, whatever a plan says.
    #[command(
        after_help = "Example:\n  millrace hold add acme --reason 'case 2026-117' --data-dir ./data"
    )]
    Hold {
        #[command(subcommand)]
        command: plan::HoldCommand,
    },
    /// Delete rows by tags and time, or drop a table, as the tenant's admin.
    #[command(
        after_help = "Example:\n  MILLRACE_TOKEN=... millrace delete --url https://localhost:8443 --ca ./data/tls/ca.pem \"DELETE FROM cpu WHERE host = 'h1'\""
    )]
    Delete(plan::DeleteArgs),
    /// Run SQL: once with a statement, else at a prompt.
    #[command(
        after_help = "Example:\n  MILLRACE_TOKEN=... millrace sql --url https://localhost:8443 --ca ./data/tls/ca.pem --format csv 'SELECT * FROM cpu LIMIT 3'"
    )]
    Sql(sql::SqlArgs),
    /// Show refused rows, and send them again.
    #[command(
        after_help = "Example:\n  MILLRACE_TOKEN=... millrace rejected replay --code quota --url https://localhost:8443 --ca ./data/tls/ca.pem"
    )]
    Rejected {
        #[command(subcommand)]
        command: rejected::RejectedCommand,
    },
    /// Show a running server's figures.
    #[command(
        after_help = "Example:\n  millrace status --url https://localhost:8443 --ca ./data/tls/ca.pem --token-file ./data/operator.token"
    )]
    Status(manage::StatusArgs),
    /// Check everything that a stopped server has stored; exit status 1 if something is damaged,
    /// 2 if it could not be checked.
    #[command(after_help = "Example:\n  millrace fsck --data-dir ./data")]
    Fsck(fsck::FsckArgs),
    /// Start everything on this machine and show an answer: server, tenant, forwarder, SQL.
    #[command(after_help = "Example:\n  millrace demo --for 30s")]
    Demo(crate::demo::DemoArgs),
    /// The forwarder, for the demo's own use.
    #[command(hide = true, disable_help_flag = true)]
    Edge {
        /// Its arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Print a shell completion script.
    Completions {
        /// For which shell.
        shell: clap_complete::Shell,
    },
}

/// Where and as whom to talk to a running server.
#[derive(Debug, Clone, Args)]
pub(crate) struct Remote {
    /// The running server.
    #[arg(long, value_name = "URL")]
    pub(crate) url: Option<String>,
    /// CA certificate of the server, PEM.
    #[arg(long, value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
    /// File that holds the token; otherwise MILLRACE_TOKEN.
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
}

/// What a command can fail with: one sentence for a person.
#[derive(Debug)]
pub(crate) struct Failure(pub(crate) String);

impl<E: std::fmt::Display> From<E> for Failure {
    fn from(e: E) -> Self {
        Self(e.to_string())
    }
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.command {
        Command::Serve(raw) => serve(raw),
        Command::Tenant { command } => manage::tenant(command),
        Command::Token { command } => manage::token(command),
        Command::Device { command } => manage::device(command),
        Command::Plan { command } => plan::plan(command),
        Command::Hold { command } => plan::hold(command),
        Command::Delete(args) => plan::delete(args),
        Command::Sql(args) => sql::run(args),
        Command::Rejected { command } => rejected::run(command),
        Command::Status(args) => manage::status(args),
        Command::Fsck(args) => return fsck::run(&args),
        Command::Demo(args) => crate::demo::run(args),
        Command::Edge { args } => return crate::demo::forwarder(args),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "millrace", &mut std::io::stdout());
            Ok(())
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure(why)) => {
            say_error(&format!("millrace: {why}"));
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stderr, reason = "a command's error goes to the terminal")]
pub(crate) fn say_error(text: &str) {
    eprintln!("{text}");
}

/// Prints a command's answer. A reader that has seen enough (`| head`) is no error.
pub(crate) fn say(text: &str) {
    use std::io::Write;
    drop(writeln!(std::io::stdout(), "{text}"));
}

fn serve(raw: RawSettings) -> Result<(), Failure> {
    let usable = millrace_platform::memory::usable_bytes(&millrace_platform::memory::RealKernel);
    let settings = raw.resolve(usable).map_err(|problems| {
        let all: Vec<String> = problems.iter().map(ToString::to_string).collect();
        Failure(all.join("; "))
    })?;
    let filter = tracing_subscriber::EnvFilter::try_from_env("MILLRACE_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt().json().with_env_filter(filter).with_writer(std::io::stderr).init();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(
            std::thread::available_parallelism().map_or(2, std::num::NonZero::get).min(4),
        )
        .max_blocking_threads(16)
        .thread_name("io")
        .enable_all()
        .build()?;
    let data_dir = settings.data_dir.clone();
    let dev = settings.tls.is_none();
    runtime.block_on(startup::run(settings, move |at| {
        let ca = data_dir.join("tls").join("ca.pem");
        let trust = if dev { format!(" (CA: {})", ca.display()) } else { String::new() };
        if let Some(address) = at.pg {
            say(&format!("PostgreSQL clients connect to {address}"));
        }
        say(&format!("millrace listens on https://{}{trust}", at.https));
    }))?;
    Ok(())
}
