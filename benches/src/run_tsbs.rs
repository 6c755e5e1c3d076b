//! The `tsbs` run: line protocol over HTTPS, or Arrow Flight as enrolled devices.
//!
//! Owns: the way of the rows, the suite's queries, the comparison with the generator's manifest.
//! A figure that the queries contradict fails the run.

use std::{collections::BTreeMap, time::Instant};

use millrace_benches::{
    figures::{percentile_ms, round},
    flight::{self, Device, Outgoing},
    http::Connection,
    load::{Batch, Sent},
    manifest::Verdict,
    queries::{self, Picker},
    server::{self, Failed},
    stage::{self, Common, More, Stage, bar, figures, pass},
    tsbs::{FIELDS, Generator, Manifest, TABLE},
};
use serde_json::{Value, json};

/// How rows travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Protocol {
    /// Line protocol over HTTPS, with a token.
    Line,
    /// Arrow Flight DoPut, each connection an enrolled device with a stream of its own.
    Flight,
}

/// What the run takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Hosts, each with one row every ten seconds.
    #[arg(long, default_value_t = 1000)]
    hosts: usize,
    /// Hours of data.
    #[arg(long, default_value_t = 4.0)]
    hours: f64,
    #[command(flatten)]
    common: Common,
    /// How rows travel.
    #[arg(long, value_enum, default_value_t = Protocol::Line)]
    protocol: Protocol,
    /// With Flight: messages of one stream that wait for their ack at the same time.
    #[arg(long, default_value_t = 2)]
    ahead: usize,
    /// Also ask each of the suite's fifteen queries so often, warm, and report medians in ms.
    #[arg(long, default_value_t = 0)]
    queries: usize,
}

/// The command.
pub(crate) fn run(args: &Args) -> Result<(), Failed> {
    let common = &args.common;
    let mut generator = Generator::new(common.seed, args.hosts, args.hours);
    let total = generator.total_rows();
    eprintln!(
        "tsbs: {total} rows of {} hosts over {} h, seed {}",
        args.hosts, args.hours, common.seed
    );
    let batches = generate(&mut generator, common.batch);
    let (mut stage, claims) = Stage::prepared(common, "tsbs", |data| {
        let devices = if args.protocol == Protocol::Flight { common.connections } else { 0 };
        (0..devices).map(|_| server::claim(data, "bench")).collect::<Result<Vec<String>, _>>()
    })?;
    let (sent, sent_bytes) = match args.protocol {
        Protocol::Line => {
            let bytes = batches.iter().map(|b| b.body.len()).sum();
            (stage.load(common, std::slice::from_ref(&stage.token), &batches)?, bytes)
        }
        Protocol::Flight => load_flight(&stage, args, &claims, &batches)?,
    };
    drop(batches);
    let mut loaded = stage.settle(sent);

    let asked = Instant::now();
    let mut connection = stage.connect(&stage.token)?;
    let verdict = verify(&mut connection, generator.manifest())?;
    let verify_ms = asked.elapsed().as_secs_f64() * 1e3;
    let query_ms = ask_all(&mut connection, args)?;
    let cost = stage.finish(&loaded)?;
    let more = More::from_iter([
        ("hosts".to_owned(), json!(args.hosts)),
        ("hours".to_owned(), json!(args.hours)),
        ("protocol".to_owned(), json!(format!("{:?}", args.protocol).to_lowercase())),
        ("connections".to_owned(), json!(common.connections)),
        ("batch".to_owned(), json!(common.batch)),
        ("sent_bytes_per_row".to_owned(), json!(round(sent_bytes as f64 / total as f64, 1))),
        ("verify_ms".to_owned(), json!(round(verify_ms, 1))),
        ("query_ms".to_owned(), json!(query_ms)),
    ]);
    figures("tsbs", total, &mut loaded, &cost, &verdict, more).print();
    pass(&verdict)
}

fn generate(generator: &mut Generator, batch: usize) -> Vec<Batch> {
    let bar = bar("generating", generator.total_rows());
    let mut batches = Vec::new();
    loop {
        let mut body = Vec::with_capacity(batch * 360);
        let lines = generator.fill(&mut body, batch) as u64;
        if lines == 0 {
            bar.finish_and_clear();
            return batches;
        }
        batches.push(Batch { body, lines, caller: 0 });
        bar.inc(lines);
    }
}

/// Enrols one device per claim, deals the batches out to their streams and sends them; also the
/// bytes of the encoded messages.
fn load_flight(
    stage: &Stage,
    args: &Args,
    claims: &[String],
    batches: &[Batch],
) -> Result<(Sent, usize), Failed> {
    let bar = stage::bar("encoding", batches.iter().map(|b| b.lines).sum());
    let mut connection = stage.connect("")?;
    let mut streams = Vec::new();
    let mut bytes = 0;
    for (n, code) in claims.iter().enumerate() {
        let device = Device::enrol(&mut connection, code, &format!("bench-{n}"))?;
        let mut stream = Outgoing::new(&device, "cpu")?;
        for batch in batches.iter().skip(n).step_by(claims.len()) {
            bytes += stream.push(&flight::record_batch(&batch.body)?)?;
            bar.inc(batch.lines);
        }
        streams.push((device, stream));
    }
    bar.finish_and_clear();
    let bar = stage::bar("loading", batches.iter().map(|b| b.lines).sum());
    let server = (stage.server.base.as_str(), stage.ca.as_str());
    let rate = args.common.rows_per_s;
    let sent = flight::send_all(server, streams, args.ahead, rate, &|rows| bar.inc(rows))?;
    bar.finish_and_clear();
    Ok((sent, bytes))
}

/// Asks the suite's queries, each `args.queries` times after one that warms up; medians in ms at
/// the client, answers as CSV read whole.
fn ask_all(
    connection: &mut Connection,
    args: &Args,
) -> Result<BTreeMap<&'static str, f64>, Failed> {
    let mut medians = BTreeMap::new();
    for query in queries::ALL.iter().filter(|_| args.queries > 0) {
        let mut picker = Picker::new(args.common.seed, args.hosts, args.hours);
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

/// The first row of an answer.
fn ask(connection: &mut Connection, sql: &str) -> Result<Value, Failed> {
    Ok(connection.ask(sql)?.into_iter().next().unwrap_or(Value::Null))
}

/// Compares the database with the manifest.
fn verify(connection: &mut Connection, manifest: &Manifest) -> Result<Verdict, Failed> {
    let mut verdict = Verdict::default();
    let number = |row: &Value, key: &str| row.get(key).and_then(Value::as_i64);
    let row = ask(
        connection,
        &format!("SELECT count(*) AS n, count(DISTINCT hostname) AS hosts FROM {TABLE}"),
    )?;
    let found = number(&row, "n").and_then(|n| u64::try_from(n).ok()).unwrap_or(0);
    verdict.lost = manifest.rows.saturating_sub(found);
    verdict.doubled = found.saturating_sub(manifest.rows);
    if number(&row, "hosts") != i64::try_from(manifest.hosts).ok() {
        verdict.note(|| format!("{} hosts expected: {row}", manifest.hosts));
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
            verdict.note(|| format!("{name}: sum, min, max, last are {seen:?}, not {expected:?}"));
        }
    }
    Ok(verdict)
}
