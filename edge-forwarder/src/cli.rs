//! The command line of `millrace-edge`.

use std::{path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use clap::{CommandFactory, Parser, Subcommand};
use millrace_platform::{
    clock::{Clock, SystemClock},
    disk::{RealDisk, read_file},
    entropy::OsEntropy,
    net::TcpDialer,
};

use crate::{
    check, delivery::Share, identity, quarantine, settings, source::SourceKind, status, supervisor,
    uplink,
};

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
        #[arg(long = "source", value_name = "SOURCE", required_unless_present = "config")]
        sources: Vec<SourceKind>,
        /// TOML file with more sources.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Seconds between two samples of host metrics (1 to 3600).
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
        interval: u64,
        /// MiB that the queue may take on disk (16 to 1048576).
        #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u64).range(16..=1_048_576))]
        queue_mib: u64,
        /// Database for all rows.
        #[arg(long, default_value = "default", value_parser = database)]
        db: String,
        #[command(flatten)]
        link: Link,
    },
    /// Show what the running forwarder last said about itself.
    #[command(after_help = "Example:\n  millrace-edge status --data-dir ./edge --json")]
    Status {
        /// Folder of this device.
        #[arg(long, value_name = "DIR", default_value = "/var/lib/millrace-edge")]
        data_dir: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Get the next certificate now. A running forwarder does that by itself.
    #[command(after_help = "Example:\n  millrace-edge renew --data-dir ./edge")]
    Renew {
        /// Folder of this device.
        #[arg(long, value_name = "DIR", default_value = "/var/lib/millrace-edge")]
        data_dir: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Say what is wrong with clock, disk, certificate, server and sources, and what to do.
    #[command(
        after_help = "Exit status: 0 nothing is wrong, 1 it could not be checked, 2 something is wrong.\n\nExample:\n  millrace-edge check --data-dir ./edge --config edge.toml --source tail:/var/log/press.lp"
    )]
    Check {
        /// Folder of this device.
        #[arg(long, value_name = "DIR", default_value = "/var/lib/millrace-edge")]
        data_dir: PathBuf,
        /// Sources to look at, as for `run`.
        #[arg(long = "source", value_name = "SOURCE")]
        sources: Vec<SourceKind>,
        /// TOML file with more sources.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Rows that the server refused: list them, or have them sent again.
    #[command(
        after_help = "Examples:\n  millrace-edge quarantine list\n  millrace-edge quarantine retry --all"
    )]
    Quarantine {
        /// What to do.
        action: Action,
        /// Ids of what to send again, as `list` shows them.
        ids: Vec<u64>,
        /// Send everything again.
        #[arg(long, conflicts_with = "ids")]
        all: bool,
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

/// What to do with rows that the server refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Action {
    /// Show them.
    List,
    /// Send them again.
    Retry,
}

/// How live rows and backfill share the link to the server.
#[derive(Debug, Clone, clap::Args)]
struct Link {
    /// Percent of the link for rows from before an outage, while live rows wait too (0 to 100).
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u8).range(0..=100))]
    backfill_percent: u8,
    /// KiB per second of rows from before an outage at most; 0: no cap.
    #[arg(long, default_value_t = 0)]
    backfill_kib: u64,
    /// KiB per second of live rows at most; 0: no cap.
    #[arg(long, default_value_t = 0)]
    live_kib: u64,
    /// Send everything in the order in which it came: live rows wait for those of an outage.
    #[arg(long)]
    oldest_first: bool,
}

impl Link {
    fn share(&self) -> Share {
        let normal = Share::default();
        Share {
            backfill_percent: self.backfill_percent,
            live_bytes_per_s: self.live_kib.saturating_mul(1024),
            backfill_bytes_per_s: self.backfill_kib.saturating_mul(1024),
            split_rows: if self.oldest_first { u64::MAX } else { normal.split_rows },
        }
    }
}

/// Prints a command's answer. A reader that has seen enough (`| head`) is no error.
fn say(text: &str) {
    use std::io::Write;
    drop(writeln!(std::io::stdout(), "{text}"));
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
        Command::Run { data_dir, sources, config, interval, queue_mib, db, link } => {
            all(sources, config.as_deref()).and_then(|sources| {
                run(supervisor::Plan {
                    data_dir,
                    sources,
                    interval: Duration::from_secs(interval),
                    queue_bytes: queue_mib << 20,
                    database: db,
                    share: link.share(),
                })
            })
        }
        Command::Renew { data_dir, json } => renew(&data_dir, json),
        Command::Check { data_dir, sources, config, json } => {
            match all(sources, config.as_deref()).and_then(|s| examine(data_dir, s, json)) {
                Ok(true) => return ExitCode::from(WRONG),
                Ok(false) => Ok(()),
                Err(why) => Err(why),
            }
        }
        Command::Status { data_dir, json } => show(&data_dir, json),
        Command::Quarantine { action: Action::List, data_dir, json, .. } => list(&data_dir, json),
        Command::Quarantine { ids, all, data_dir, json, .. } => {
            send_again(&data_dir, ids, all, json)
        }
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

/// The sources of the command line and of the file.
fn all(
    mut sources: Vec<SourceKind>,
    config: Option<&std::path::Path>,
) -> Result<Vec<SourceKind>, String> {
    if let Some(path) = config {
        let read = read_file(&RealDisk, path, 1 << 20);
        let text = read.map_err(|e| format!("{}: {e}", path.display()))?;
        let more = settings::sources(&String::from_utf8_lossy(&text));
        sources.extend(more.map_err(|e| format!("{}:\n  {}", path.display(), e.join("\n  ")))?);
    }
    distinct(&sources).map(|()| sources)
}

/// Two sources of one name would share a position.
fn distinct(sources: &[SourceKind]) -> Result<(), String> {
    let mut seen = std::collections::BTreeSet::new();
    match sources.iter().map(SourceKind::name).find(|name| !seen.insert(name.clone())) {
        Some(name) => Err(format!("source {name} is given twice; give each source once")),
        None => Ok(()),
    }
}

/// A database's name, so that no row is queued for one that cannot be.
fn database(name: &str) -> Result<String, String> {
    let fine = !name.is_empty() && name.len() <= 128 && !name.chars().any(char::is_control);
    fine.then(|| name.to_owned())
        .ok_or_else(|| "use 1 to 128 bytes without control characters".to_owned())
}

fn run(plan: supervisor::Plan) -> Result<(), String> {
    let filter = tracing_subscriber::EnvFilter::try_from_env("MILLRACE_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt().json().with_env_filter(filter).with_writer(std::io::stderr).init();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        // A tailed file on a dead mount holds a thread for ever; others must find one.
        .max_blocking_threads(64)
        .enable_all()
        .build()
        .map_err(|e| e.to_string())?;
    let done = runtime.block_on(supervisor::run(plan)).map_err(|e| e.to_string());
    // Standard input may block a thread for ever; it holds nothing.
    runtime.shutdown_background();
    done
}

fn renew(data_dir: &std::path::Path, json: bool) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(|e| e.to_string())?;
    let end = runtime.block_on(supervisor::renew(data_dir)).map_err(|e| e.to_string())?;
    let days = end.saturating_sub(SystemClock::new().now_ns()) / 86_400_000_000_000;
    say(&if json {
        serde_json::json!({ "not_after_ns": end }).to_string()
    } else {
        format!("the certificate is good for {days} more days")
    });
    Ok(())
}

/// Exit status of `check` when something is wrong.
const WRONG: u8 = 2;

/// Looks at everything; whether something is wrong.
fn examine(data_dir: PathBuf, sources: Vec<SourceKind>, json: bool) -> Result<bool, String> {
    let ground = check::Ground {
        disk: Arc::new(RealDisk),
        clock: Arc::new(SystemClock::new()),
        dialer: Arc::new(TcpDialer),
        data_dir,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(|e| e.to_string())?;
    let found = runtime.block_on(check::all(&ground, &sources));
    runtime.shutdown_background();
    say(&if json {
        serde_json::to_string(&found).map_err(|e| e.to_string())?
    } else {
        check::shown(&found)
    });
    Ok(found.iter().any(|f| f.level == check::Level::Wrong))
}

fn list(dir: &std::path::Path, json: bool) -> Result<(), String> {
    let aside = supervisor::put_aside(dir).map_err(|e| e.to_string())?;
    if json {
        say(&serde_json::to_string(&aside).map_err(|e| e.to_string())?);
        return Ok(());
    }
    if aside.is_empty() {
        say("nothing is put aside");
    }
    for a in aside {
        let rows = (a.last + 1).saturating_sub(a.first);
        say(&format!("{}  {}  {rows} rows ({} to {})  {}", a.id, a.stream, a.first, a.last, a.why));
    }
    Ok(())
}

fn send_again(dir: &std::path::Path, ids: Vec<u64>, all: bool, json: bool) -> Result<(), String> {
    if ids.is_empty() && !all {
        return Err("say which: ids as `quarantine list` shows them, or --all".to_owned());
    }
    let done =
        supervisor::send_again(dir, &quarantine::Request { ids }).map_err(|e| e.to_string())?;
    let answer = match done {
        _ if json => {
            let (groups, rows) = done.unwrap_or_default();
            let asked = done.is_none();
            serde_json::json!({ "asked": asked, "groups": groups, "rows": rows }).to_string()
        }
        Some((groups, rows)) => format!("{rows} rows of {groups} messages are queued again"),
        None => "the running forwarder was asked; it looks every second".to_owned(),
    };
    say(&answer);
    Ok(())
}

fn show(dir: &std::path::Path, json: bool) -> Result<(), String> {
    let status = status::read(&RealDisk, dir)
        .map_err(|e| format!("no status in {}: {e}; is the forwarder running?", dir.display()))?;
    if json {
        say(&serde_json::to_string(&status).map_err(|e| e.to_string())?);
        return Ok(());
    }
    let age = SystemClock::new().now_ns().saturating_sub(status.time_ns) / 1_000_000_000;
    // The file is written at least every 30 s.
    let stale = if age > 60 { ", so the forwarder is not running" } else { "" };
    say(&format!(
        "written     {age} s ago{stale}\nconnected   {}\nroom        {}\nrows acked  {}\nrows pending {} ({} live)\nrows queued {}\nin flight   {} messages\nqueue       {} bytes\nput aside   {} messages\nlast error  {}",
        status.connected,
        status.room.name(),
        status.rows_acked,
        status.rows_pending,
        status.rows_live,
        status.rows_queued,
        status.frames_in_flight,
        status.queue_bytes,
        status.put_aside,
        status.last_error.as_deref().unwrap_or("none"),
    ));
    for (source, rows) in &status.acked {
        say(&format!("  {source}: {rows} rows acked"));
    }
    for (source, restarts) in &status.sources {
        say(&format!("  {source}: restarted {restarts} times"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = include_str!("../../docs/edge.md");

    #[test]
    fn the_page_lists_every_command_and_option_and_none_that_is_not() {
        let mut known = std::collections::BTreeSet::new();
        for command in Cli::command().get_subcommands() {
            let name = command.get_name();
            if name == "help" {
                continue;
            }
            assert!(PAGE.contains(&format!("### `millrace-edge {name}`")), "{name} has no section");
            let from = PAGE.find(&format!("### `millrace-edge {name}`")).unwrap();
            let section = &PAGE[from + 4..];
            let section = &section[..section.find("\n## ").unwrap_or(section.len())];
            let section = section.split("\n### ").next().unwrap();
            for arg in command.get_arguments().filter(|a| a.get_id() != "help") {
                let shown = match arg.get_long() {
                    Some(long) => format!("--{long}"),
                    None => arg.get_id().as_str().to_uppercase(),
                };
                assert!(section.contains(&format!("| `{shown}")), "{name} lacks {shown}");
                known.insert(shown.clone());
                let defaults = arg.get_default_values();
                for default in defaults.iter().map(|d| d.to_string_lossy()) {
                    let line = section.lines().find(|l| l.starts_with(&format!("| `{shown}")));
                    let said = line.is_some_and(|l| l.contains(&*default));
                    assert!(said || default == "false", "{name} {shown}: default {default}");
                }
            }
        }
        for option in PAGE.lines().filter_map(|l| l.strip_prefix("| `--")) {
            let name = option.split(['`', ' ']).next().unwrap();
            assert!(known.contains(&format!("--{name}")), "--{name} is no option");
        }
    }

    #[test]
    fn the_page_explains_every_member_of_the_status() {
        let status = serde_json::to_value(status::Status::default()).unwrap();
        for member in status.as_object().unwrap().keys() {
            assert!(PAGE.contains(&format!("| `{member}` |")), "{member} is not explained");
        }
    }

    #[test]
    fn a_source_that_is_given_twice_is_refused() {
        let tail = |path: &str| SourceKind::Tail(path.into());
        assert!(distinct(&[tail("/a/x"), tail("/b/x"), SourceKind::Stdin]).is_ok());
        assert!(distinct(&[tail("/a/x"), tail("/a/x")]).is_err());
        assert!(distinct(&[SourceKind::Stdin, SourceKind::Stdin]).is_err());
    }

    #[test]
    fn a_database_that_cannot_be_is_refused_before_a_row_is_queued() {
        assert!(database("default").is_ok());
        assert!(database("").is_err());
        assert!(database(&"d".repeat(300)).is_err());
    }
}
