//! The `restart` run: a server is killed with rows in its log alone, and started again.
//!
//! Owns: the two figures. *Writes accepted*: from the start of the process to the first ack of a
//! new row. *All queryable*: from the same moment to a count that has every row. The rows are
//! those of `tsbs`. Until it is killed the server has memory enough to flush nothing, about eight
//! times the log; the one that is started after it has what `--serve` says.

use std::time::{Duration, Instant};

use millrace_benches::{
    figures::round,
    load::{Batch, post},
    server::{self, Failed},
    stage::{Common, Stage, bar},
    tsbs::{Generator, TABLE},
};
use serde_json::{Value, json};

/// How long the rows may take to be there.
const PATIENCE: Duration = Duration::from_secs(600);

/// Bytes of rows in memory for each byte of log, and then some.
const LOG_TO_ROWS: u64 = 8;

/// What the run takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Hosts, each with one row every ten seconds.
    #[arg(long, default_value_t = 1000)]
    hosts: usize,
    /// MiB of log at which loading ends and the server is killed.
    #[arg(long, default_value_t = 1024)]
    log_mib: u64,
    #[command(flatten)]
    common: Common,
}

/// The command.
pub(crate) fn run(args: &Args) -> Result<(), Failed> {
    let mut common = args.common.clone();
    // Half of the first is for rows, and a flush starts at a third of the second.
    let mib = args.log_mib * LOG_TO_ROWS;
    common.serve = vec![format!("--memory-mib={}", 2 * mib), format!("--memtable-mib={}", 3 * mib)];
    let (mut stage, ()) = Stage::prepared(&common, "restart", |_| Ok(()))?;
    let mut generator = Generator::new(common.seed, args.hosts, 24.0 * 365.0);
    let bar = bar("loading", args.log_mib);
    let mut rows = 0;
    let mut connection = stage.connect(&stage.token)?;
    let mut log_mib = 0;
    while log_mib < args.log_mib {
        let mut body = Vec::with_capacity(common.batch * 360);
        let lines = generator.fill(&mut body, common.batch) as u64;
        let batch = Batch { body, lines, caller: 0 };
        post(&mut connection, &batch.body)?;
        rows += lines;
        log_mib = server::on_disk(&stage.data).log_bytes >> 20;
        bar.set_position(log_mib);
    }
    bar.finish_and_clear();
    let log_bytes = server::on_disk(&stage.data).log_bytes;
    let begun = Instant::now();
    stage.options(&args.common.serve);
    stage.restart(true)?;
    let listening = begun.elapsed();
    let mut connection = stage.connect(&stage.token)?;
    post(&mut connection, b"restarted v=1 1\n")?;
    let accepted = begun.elapsed();
    let found = wait_for(&mut connection, rows, begun)?;
    let queryable = begun.elapsed();
    let rss_mib = stage.server.rss_mib();
    stage.server.stop()?;
    let seconds = |d: Duration| round(d.as_secs_f64(), 3);
    println!(
        "{}",
        json!({
            "bench": "restart",
            "rows": rows,
            "log_bytes": log_bytes,
            "listening_s": seconds(listening),
            "writes_accepted_s": seconds(accepted),
            "all_queryable_s": seconds(queryable),
            "rss_mib": rss_mib,
            "lost": rows.saturating_sub(found),
            "doubled": found.saturating_sub(rows),
            "optimised": !cfg!(debug_assertions),
        })
    );
    if found == rows { Ok(()) } else { Err(Failed(format!("{found} rows, not {rows}"))) }
}

/// Counts until every row is there, or longer than anybody would wait.
fn wait_for(
    connection: &mut millrace_benches::http::Connection,
    rows: u64,
    begun: Instant,
) -> Result<u64, Failed> {
    loop {
        let answer = connection.ask(&format!("SELECT count(*) AS n FROM {TABLE}"))?;
        let found = answer.first().and_then(|row| row.get("n")).and_then(Value::as_u64);
        let found = found.unwrap_or(0);
        if found >= rows || begun.elapsed() > PATIENCE {
            return Ok(found);
        }
        std::thread::park_timeout(Duration::from_millis(20));
    }
}
