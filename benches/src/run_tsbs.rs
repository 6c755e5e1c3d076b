//! The `tsbs` run: generate, load, settle, verify, report.
//!
//! Owns: what is counted. CPU is the server's own, from its start to the end of the flush at its
//! graceful stop, without the time of the verifying queries. A figure that the queries contradict
//! fails the run.

use std::{collections::BTreeMap, time::Instant};

use indicatif::{ProgressBar, ProgressStyle};
use millrace_benches::{
    figures::{Figures, percentile_ms, round},
    load,
    queries::{self, Picker},
    server::{self, Failed, Server},
    tsbs::{FIELDS, Generator, Manifest, TABLE},
};
use serde_json::{Value, json};

/// What the run takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Hosts, each with one row every ten seconds.
    #[arg(long, default_value_t = 1000)]
    hosts: usize,
    /// Hours of data.
    #[arg(long, default_value_t = 4.0)]
    hours: f64,
    /// Connections that send at the same time.
    #[arg(long, default_value_t = 4)]
    connections: usize,
    /// Lines per request.
    #[arg(long, default_value_t = 10_000)]
    batch: usize,
    /// Same seed, same rows.
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// Where the data goes; a temporary folder beside the executable if not given.
    #[arg(long)]
    data_dir: Option<std::path::PathBuf>,
    /// Also ask each of the suite's fifteen queries so often, warm, and report medians in ms.
    #[arg(long, default_value_t = 0)]
    queries: usize,
}

/// The command.
pub(crate) fn run(args: &Args) -> Result<(), Failed> {
    let mut generator = Generator::new(args.seed, args.hosts, args.hours);
    let total = generator.total_rows();
    eprintln!(
        "tsbs: {total} rows of {} hosts over {} h, seed {}",
        args.hosts, args.hours, args.seed
    );
    let bar = bar("generating", total);
    let mut batches = Vec::new();
    loop {
        let mut batch = Vec::with_capacity(args.batch * 360);
        let rows = generator.fill(&mut batch, args.batch);
        if rows == 0 {
            break;
        }
        batches.push(batch);
        bar.inc(rows as u64);
    }
    bar.finish_and_clear();
    let sent_bytes: usize = batches.iter().map(Vec::len).sum();

    // The executable's own disk: /tmp is often memory, which would make a sync free.
    let beside = std::env::current_exe()?;
    let beside = beside.parent().map_or_else(|| ".".into(), std::path::Path::to_path_buf);
    let temporary = tempfile::Builder::new().prefix("bench-").tempdir_in(beside)?;
    let data = args.data_dir.clone().unwrap_or_else(|| temporary.path().join("data"));
    let token = server::tenant(&data, "bench")?;
    let server = Server::start(&data)?;
    let ca = server.ca()?;

    let bar = self::bar("loading", total);
    let per_batch = args.batch as u64;
    let path = "/api/v3/write_lp?db=default&precision=nanosecond";
    let sent =
        load::send_all(&server.base, &ca, &token, path, &batches, args.connections, &|_| {
            bar.inc(per_batch);
        })?;
    bar.finish_and_clear();
    drop(batches);
    let loaded_cpu = server.cpu();
    eprintln!("loaded in {:.1} s; waiting until the server is idle", sent.wall.as_secs_f64());
    server.settle();
    let settled_cpu = server.cpu();
    let rss = server.rss_mib();

    eprintln!("verifying");
    let asked = Instant::now();
    let tls = load::tls(&ca)?;
    let mut connection = load::Connection::open(&server.base, &tls, &token)?;
    let (lost, doubled) = verify(&mut connection, generator.manifest())?;
    let verify_ms = asked.elapsed().as_secs_f64() * 1e3;
    let query_ms = ask_all(&mut connection, args)?;
    let verified_cpu = server.cpu();
    let whole_cpu = server.stop()?;
    let cpu = settled_cpu + whole_cpu.saturating_sub(verified_cpu);
    let (log_bytes, stored_bytes) = server::bytes_on_disk(&data);

    let mut acks = sent.acks;
    let million = total as f64 / 1e6;
    let figures = Figures {
        bench: "tsbs".to_owned(),
        rows: total,
        rows_per_s: round(total as f64 / sent.wall.as_secs_f64(), 0),
        cpu_s_per_mrow: round(cpu.as_secs_f64() / million, 3),
        bytes_per_row: round(stored_bytes as f64 / total as f64, 2),
        ack_ms_p50: percentile_ms(&mut acks, 0.5),
        ack_ms_p99: percentile_ms(&mut acks, 0.99),
        rss_mib: rss,
        lost,
        doubled,
        more: serde_json::Map::from_iter([
            ("hosts".to_owned(), json!(args.hosts)),
            ("hours".to_owned(), json!(args.hours)),
            ("connections".to_owned(), json!(args.connections)),
            ("batch".to_owned(), json!(args.batch)),
            ("sent_bytes_per_row".to_owned(), json!(round(sent_bytes as f64 / total as f64, 1))),
            (
                "cpu_s_per_mrow_at_last_ack".to_owned(),
                json!(round(loaded_cpu.as_secs_f64() / million, 3)),
            ),
            ("log_bytes_per_row".to_owned(), json!(round(log_bytes as f64 / total as f64, 2))),
            ("verify_ms".to_owned(), json!(round(verify_ms, 1))),
            ("query_ms".to_owned(), json!(query_ms)),
            ("optimised".to_owned(), json!(!cfg!(debug_assertions))),
        ]),
    };
    figures.print();
    if lost + doubled == 0 {
        Ok(())
    } else {
        Err(Failed(format!("{lost} rows lost, {doubled} doubled")))
    }
}

fn bar(what: &'static str, total: u64) -> ProgressBar {
    let style = ProgressStyle::with_template(
        "{msg:10} {bar:40} {human_pos} of {human_len} rows, {per_sec}, {eta} left",
    );
    let bar = ProgressBar::new(total).with_message(what);
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}

fn ask(connection: &mut load::Connection, sql: &str) -> Result<Value, Failed> {
    let body = json!({ "db": "default", "q": sql, "format": "json" }).to_string();
    let (status, answer) = connection.request("POST", "/api/v3/query_sql", body.as_bytes())?;
    let text = String::from_utf8_lossy(&answer).into_owned();
    if status != 200 {
        return Err(Failed(format!("{sql}\nwas answered {status}: {text}")));
    }
    let rows: Value = serde_json::from_str(&text)?;
    Ok(rows.get(0).cloned().unwrap_or(Value::Null))
}

/// Asks the suite's queries, each `args.queries` times after one that warms up; medians in ms at
/// the client, answers as CSV read whole.
fn ask_all(
    connection: &mut load::Connection,
    args: &Args,
) -> Result<BTreeMap<&'static str, f64>, Failed> {
    let mut medians = BTreeMap::new();
    for query in queries::ALL.iter().filter(|_| args.queries > 0) {
        let mut picker = Picker::new(args.seed, args.hosts, args.hours);
        let mut times = Vec::new();
        for round in 0..=args.queries {
            let sql = query.sql(&mut picker);
            let body = json!({ "db": "default", "q": sql, "format": "csv" }).to_string();
            let asked = Instant::now();
            let (status, answer) =
                connection.request("POST", "/api/v3/query_sql", body.as_bytes())?;
            if status != 200 {
                let text = String::from_utf8_lossy(&answer).into_owned();
                return Err(Failed(format!(
                    "{}: {sql}\nwas answered {status}: {text}",
                    query.name
                )));
            }
            if round > 0 {
                times.push(asked.elapsed());
            }
        }
        let median = percentile_ms(&mut times, 0.5);
        eprintln!("{:<24} {median} ms", query.name);
        medians.insert(query.name, median);
    }
    Ok(medians)
}

/// Compares the database with the manifest: rows lost and doubled, or an error where a figure
/// differs although the count is right.
fn verify(connection: &mut load::Connection, manifest: &Manifest) -> Result<(u64, u64), Failed> {
    let number = |row: &Value, key: &str| row.get(key).and_then(Value::as_i64);
    let row = ask(
        connection,
        &format!("SELECT count(*) AS n, count(DISTINCT hostname) AS hosts FROM {TABLE}"),
    )?;
    let found = number(&row, "n").and_then(|n| u64::try_from(n).ok()).unwrap_or(0);
    let lost = manifest.rows.saturating_sub(found);
    let doubled = found.saturating_sub(manifest.rows);
    if lost + doubled > 0 {
        return Ok((lost, doubled));
    }
    if number(&row, "hosts") != i64::try_from(manifest.hosts).ok() {
        return Err(Failed(format!("{} hosts expected: {row}", manifest.hosts)));
    }
    for (name, field) in FIELDS.iter().zip(&manifest.fields) {
        let sql = format!(
            "SELECT sum({name}) AS sum, min({name}) AS min, max({name}) AS max FROM {TABLE}"
        );
        let row = ask(connection, &sql)?;
        let seconds = manifest.last_time_ns / 1_000_000_000;
        let sql = format!(
            "SELECT sum({name}) AS last FROM {TABLE} WHERE time = to_timestamp_seconds({seconds})"
        );
        let last = ask(connection, &sql)?;
        let seen =
            [number(&row, "sum"), number(&row, "min"), number(&row, "max"), number(&last, "last")];
        let expected = [field.sum, field.min, field.max, field.last].map(Some);
        if seen != expected {
            return Err(Failed(format!(
                "{name}: sum, min, max, last are {seen:?}, not {expected:?}"
            )));
        }
    }
    Ok((lost, doubled))
}
