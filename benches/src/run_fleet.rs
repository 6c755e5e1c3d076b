//! The `fleet` run: thousands of small tenants, each with a few tables and a few rows at a time.
//!
//! Owns: making the tenants, and asking each of them for exactly its own rows. CPU counts from
//! when the tenants are there; what making them took is reported apart.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use millrace_benches::{
    figures::round,
    fleet::{self, Options},
    http::Connection,
    load::Batch,
    manifest::{Manifest, Verdict},
    server::Failed,
    stage::{Common, More, Stage, bar, figures, pass},
};
use serde_json::{Value, json};

/// What the run takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Tenants.
    #[arg(long, default_value_t = 10_000)]
    tenants: usize,
    /// Tables of each.
    #[arg(long, default_value_t = 4)]
    tables: usize,
    /// Requests of each.
    #[arg(long, default_value_t = 10)]
    rounds: u64,
    /// Rows per table and request.
    #[arg(long, default_value_t = 5)]
    rows: usize,
    /// Time of the first row, seconds since the Unix epoch: with the same seed the same bytes.
    #[arg(long)]
    start: Option<u64>,
    #[command(flatten)]
    common: Common,
}

/// The command.
pub(crate) fn run(args: &Args) -> Result<(), Failed> {
    let span_s = args.rounds * args.rows as u64 * 10;
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let options = Options {
        seed: args.common.seed,
        tenants: args.tenants,
        tables: args.tables,
        rows: args.rows,
        start_s: args.start.unwrap_or_else(|| now_s.saturating_sub(span_s)),
    };
    eprintln!(
        "fleet: {} tenants x {} tables x {} rows, seed {}, start {}",
        args.tenants,
        args.tables,
        args.rounds * args.rows as u64,
        options.seed,
        options.start_s
    );
    let (batches, manifests) = generate(&options, args.rounds);
    let mut stage = Stage::open(&args.common, "fleet")?;
    let (made, begun) = (stage.server.cpu(), Instant::now());
    let (alone_mib, tokens) = (stage.server.rss_now_mib(), make_tenants(&stage, args)?);
    let setup_s = begun.elapsed().as_secs_f64();
    let setup_cpu = stage.server.cpu().saturating_sub(made);
    stage.server.settle();
    stage.mark();
    let sent = stage.load(&args.common, &tokens, &batches)?;
    let requests = batches.len();
    drop(batches);
    let mut loaded = stage.settle(sent);
    let verdict = verify(&stage, &tokens, &manifests)?;
    let cost = stage.finish(&loaded)?;
    let idle_mib = stage.rest_mib()? - alone_mib;
    let rows = manifests.iter().flatten().map(Manifest::rows).sum();
    let tenants = args.tenants.max(1) as f64;
    let more = More::from_iter([
        ("tenants".to_owned(), json!(args.tenants)),
        ("tables".to_owned(), json!(args.tables)),
        ("requests".to_owned(), json!(requests)),
        ("connections".to_owned(), json!(args.common.connections)),
        ("setup_s".to_owned(), json!(round(setup_s, 1))),
        (
            "setup_cpu_ms_per_tenant".to_owned(),
            json!(round(setup_cpu.as_secs_f64() * 1e3 / tenants, 3)),
        ),
        ("idle_kib_per_tenant".to_owned(), json!(round(idle_mib * 1024.0 / tenants, 2))),
    ]);
    figures("fleet", rows, &mut loaded, &cost, &verdict, more).print();
    pass(&verdict)
}

/// Every request, round by round, and each tenant's manifests.
fn generate(options: &Options, rounds: u64) -> (Vec<Batch>, Vec<Vec<Manifest>>) {
    let bar = bar("generating", rounds * options.tenants as u64);
    let mut manifests = vec![vec![Manifest::default(); options.tables]; options.tenants];
    let mut batches = Vec::new();
    for round in 0..rounds {
        for (tenant, own) in manifests.iter_mut().enumerate() {
            let body = fleet::body(options, tenant, round, own);
            let lines = (options.tables * options.rows) as u64;
            batches.push(Batch { body, lines, caller: tenant });
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    (batches, manifests)
}

/// Does something for each of `count` on several connections as `token`; the answers in order.
fn each<T: Send>(
    stage: &Stage,
    what: &'static str,
    (count, token): (usize, &str),
    work: impl Fn(&mut Connection, usize) -> Result<T, Failed> + Sync,
) -> Result<Vec<T>, Failed> {
    let bar = bar(what, count as u64);
    let next = AtomicUsize::new(0);
    let one = || -> Result<Vec<(usize, T)>, Failed> {
        let mut connection = stage.connect(token)?;
        let mut done = Vec::new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            if at >= count {
                return Ok(done);
            }
            done.push((at, work(&mut connection, at)?));
            bar.inc(1);
        }
    };
    let results: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(one)).collect();
        threads.into_iter().map(std::thread::ScopedJoinHandle::join).collect()
    });
    bar.finish_and_clear();
    let mut all = Vec::new();
    for result in results {
        all.append(&mut result.map_err(|_| Failed("a thread panicked".to_owned()))??);
    }
    all.sort_by_key(|(at, _)| *at);
    Ok(all.into_iter().map(|(_, done)| done).collect())
}

/// Makes the tenants on the running server; their tokens.
fn make_tenants(stage: &Stage, args: &Args) -> Result<Vec<String>, Failed> {
    let operator = stage.server.operator_token()?;
    each(stage, "tenants", (args.tenants, &operator), |connection, at| {
        let name = format!("fleet-{at}");
        connection.post_json("/api/v1/tenants", &json!({ "name": name }))?;
        let asked = json!({ "tenant": name, "scopes": ["write", "read"] });
        let made = connection.post_json("/api/v1/tokens", &asked)?;
        let token = made.get("token").and_then(Value::as_str);
        token.map(str::to_owned).ok_or_else(|| Failed(format!("no token in {made}")))
    })
}

/// Asks every tenant.
fn verify(
    stage: &Stage,
    tokens: &[String],
    manifests: &[Vec<Manifest>],
) -> Result<Verdict, Failed> {
    let verdicts = each(stage, "verifying", (tokens.len(), ""), |connection, at| {
        connection.token = tokens.get(at).cloned().unwrap_or_default();
        fleet::check(connection, manifests.get(at).map(Vec::as_slice).unwrap_or_default())
    })?;
    let mut all = Verdict::default();
    for (at, verdict) in verdicts.into_iter().enumerate() {
        all.merge(&format!("tenant fleet-{at}"), verdict);
    }
    Ok(all)
}
