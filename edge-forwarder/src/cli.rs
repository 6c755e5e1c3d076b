//! The command line of `millrace-edge`.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::{CommandFactory, Parser, Subcommand};
use millrace_platform::{
    disk::{RealDisk, read_file},
    entropy::OsEntropy,
};

use crate::{identity, source::SourceKind, status, supervisor, uplink};

#[derive(Debug, Parser)]
#[command(
    name = "millrace-edge",
    version,
    about = "Streams machine data to a Millrace server, exactly once. Opens no port.",
    after_help = "Examples:\n  millrace-edge enroll https://millrace.example:8443 --claim CODE --ca ca.pem --data-dir ./edge\n  millrace-edge run --data-dir ./edge --source host-metrics --source tail:/var/log/press.lp\n  cat lines.lp | millrace-edge run --data-dir ./edge --source stdin\n  millrace-edge status --data-dir ./edge"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make this device's key and have the server sign it.
    #[command(
        visible_alias = "enrol",
        after_help = "Example:\n  millrace-edge enroll https://localhost:8443 --claim mrc_... --ca ca.pem --data-dir ./edge"
    )]
    Enroll {
        /// The server.
        url: String,
        /// The one-time claim code (`millrace device claim`); otherwise MILLRACE_CLAIM.
        #[arg(long, env = "MILLRACE_CLAIM", hide_env_values = true)]
        claim: String,
        /// CA certificate of the server, PEM.
        #[arg(long, value_name = "FILE")]
        ca: PathBuf,
        /// Folder of this device.
        #[arg(long, value_name = "DIR", default_value = "/var/lib/millrace-edge")]
        data_dir: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Collect and deliver until stopped.
    #[command(
        after_help = "Example:\n  millrace-edge run --data-dir ./edge --source host-metrics --interval 1"
    )]
    Run {
        /// Folder of this device.
        #[arg(long, value_name = "DIR", default_value = "/var/lib/millrace-edge")]
        data_dir: PathBuf,
        /// host-metrics, stdin or tail:PATH; may be given several times.
        #[arg(long = "source", value_name = "SOURCE", required = true)]
        sources: Vec<SourceKind>,
        /// Seconds between two samples of host metrics (1 to 3600).
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
        interval: u64,
        /// MiB that the queue may take on disk (16 to 1048576).
        #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u64).range(16..=1_048_576))]
        queue_mib: u64,
        /// Database for all rows.
        #[arg(long, default_value = "default")]
        db: String,
    },
    /// Show what the running forwarder last said about itself.
    Status {
        /// Folder of this device.
        #[arg(long, value_name = "DIR", default_value = "/var/lib/millrace-edge")]
        data_dir: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print a shell completion script.
    Completions {
        /// For which shell.
        shell: clap_complete::Shell,
    },
}

#[expect(clippy::print_stdout, reason = "a command's answer goes to the terminal")]
fn say(text: &str) {
    println!("{text}");
}

#[expect(clippy::print_stderr, reason = "a command's error goes to the terminal")]
fn fail(text: &str) -> ExitCode {
    eprintln!("millrace-edge: {text}");
    ExitCode::FAILURE
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    execute(Cli::parse())
}

/// Runs with these arguments, as another binary's hidden subcommand.
pub fn run_from(args: Vec<String>) -> ExitCode {
    execute(Cli::parse_from(std::iter::once("millrace-edge".to_owned()).chain(args)))
}

fn execute(cli: Cli) -> ExitCode {
    let done = match cli.command {
        Command::Enroll { url, claim, ca, data_dir, json } => {
            enroll(&url, &claim, &ca, &data_dir, json)
        }
        Command::Run { data_dir, sources, interval, queue_mib, db } => run(supervisor::Plan {
            data_dir,
            sources,
            interval: Duration::from_secs(interval),
            queue_bytes: queue_mib << 20,
            database: db,
        }),
        Command::Status { data_dir, json } => show(&data_dir, json),
        Command::Completions { shell } => {
            let mut command = Cli::command();
            clap_complete::generate(shell, &mut command, "millrace-edge", &mut std::io::stdout());
            Ok(())
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => fail(&why),
    }
}

fn enroll(
    url: &str,
    claim: &str,
    ca: &std::path::Path,
    dir: &std::path::Path,
    json: bool,
) -> Result<(), String> {
    if !url.starts_with("https://") {
        return Err(format!("{url} is not an https:// URL; there is no plaintext port"));
    }
    let pem = read_file(&RealDisk, ca, 1 << 20).map_err(|e| format!("{}: {e}", ca.display()))?;
    let pem = String::from_utf8(pem).map_err(|_| format!("{} is not PEM", ca.display()))?;
    let device = identity::enrol(&RealDisk, &OsEntropy, dir, url, &pem, claim, |request| {
        uplink::post_enrolment(url, &pem, request)
    })
    .map_err(|e| e.to_string())?;
    say(&if json {
        serde_json::json!({ "device_id": device }).to_string()
    } else {
        format!("enrolled as device {device}")
    });
    Ok(())
}

fn run(plan: supervisor::Plan) -> Result<(), String> {
    let filter = tracing_subscriber::EnvFilter::try_from_env("MILLRACE_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt().json().with_env_filter(filter).with_writer(std::io::stderr).init();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(4)
        .enable_all()
        .build()
        .map_err(|e| e.to_string())?;
    let done = runtime.block_on(supervisor::run(plan)).map_err(|e| e.to_string());
    // Standard input may block a thread for ever; it holds nothing.
    runtime.shutdown_background();
    done
}

fn show(dir: &std::path::Path, json: bool) -> Result<(), String> {
    let status = status::read(&RealDisk, dir)
        .map_err(|e| format!("no status in {}: {e}; is the forwarder running?", dir.display()))?;
    if json {
        say(&serde_json::to_string(&status).map_err(|e| e.to_string())?);
        return Ok(());
    }
    say(&format!(
        "connected   {}\nrows acked  {}\nrows queued {}\nin flight   {} frames\nqueue       {} bytes\nlast error  {}",
        status.connected,
        status.rows_acked,
        status.rows_queued,
        status.frames_in_flight,
        status.queue_bytes,
        status.last_error.as_deref().unwrap_or("none"),
    ));
    for (source, rows) in &status.acked {
        say(&format!("  {source}: {rows} rows acked"));
    }
    Ok(())
}
