//! The `fairness` run: one tenant's acks alone, and beside a tenant that offers many times what it
//! may write.
//!
//! Owns: the two tenants and the turns, alone and beside by turns so that a slow minute of the
//! machine falls on both. The victim's requests are due at times of their own and an ack counts
//! from then. Every row that either tenant had acked must be there, and no other.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use millrace_benches::{
    figures::{percentile_ms, round},
    fleet::{self, Options},
    load::{Sent, WRITE, post, wait_until},
    manifest::{Manifest, Verdict},
    server::{self, Failed},
    stage::{Common, More, Stage, bar, figures, pass},
};
use serde_json::{Value, json};

/// Bodies that the aggressor sends by turns before their times are moved on.
const BODIES: u64 = 16;

/// What the run takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Seconds of each turn.
    #[arg(long, default_value_t = 10)]
    turn_s: u64,
    /// Turns alone, and as many beside the aggressor.
    #[arg(long, default_value_t = 3)]
    turns: u64,
    /// Rows of each of the victim's requests.
    #[arg(long, default_value_t = 100)]
    victim_rows: usize,
    /// The victim's requests per second.
    #[arg(long, default_value_t = 50)]
    victim_rate: u64,
    /// Rows per second that the aggressor may write.
    #[arg(long, default_value_t = 50_000)]
    budget: u64,
    /// How many times its budget it offers.
    #[arg(long, default_value_t = 10)]
    times: u64,
    /// Rows of each of its requests.
    #[arg(long, default_value_t = 5000)]
    aggressor_rows: usize,
    #[command(flatten)]
    common: Common,
}

/// The victim and what it has been told.
struct Victim {
    options: Options,
    sent: u64,
    manifests: Vec<Manifest>,
}

/// What the aggressor came to.
#[derive(Default)]
struct Aggressor {
    offered: AtomicU64,
    acked_rows: AtomicU64,
    refused: AtomicU64,
    busy: AtomicU64,
    next: AtomicU64,
}

/// The command.
pub(crate) fn run(args: &Args) -> Result<(), Failed> {
    let (mut stage, token) = Stage::prepared(&args.common, "fairness", |data| {
        let token = server::tenant(data, "aggressor")?;
        let budget = args.budget.to_string();
        server::admin(&["tenant", "limits", "aggressor", "--rows-per-s", &budget], data)?;
        Ok(token)
    })?;
    let start_s = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let options = |rows| Options {
        seed: args.common.seed,
        tenants: 2,
        tables: 1,
        rows,
        // Years back: ten seconds from row to row lead far from here.
        start_s: start_s.saturating_sub(20 * 365 * 86_400),
    };
    let mut victim = Victim {
        options: options(args.victim_rows),
        sent: 0,
        manifests: vec![Manifest::default()],
    };
    let aggressor = Aggressor::default();
    stage.mark();
    let begun = Instant::now();
    let bar = bar("turns", 2 * args.turns);
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    for _ in 0..args.turns {
        turn(&stage, args, &mut victim, &mut alone)?;
        bar.inc(1);
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let floods: Vec<_> = (0..args.common.connections.max(1))
                .map(|_| {
                    let work = || {
                        flood(
                            &stage,
                            args,
                            &options(args.aggressor_rows),
                            &token,
                            &aggressor,
                            &over,
                        )
                    };
                    scope.spawn(work)
                })
                .collect();
            let done = turn(&stage, args, &mut victim, &mut beside);
            over.store(true, Ordering::Relaxed);
            for flood in floods {
                flood.join().map_err(|_| Failed("a sender panicked".into()))??;
            }
            done
        })?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    let sent = Sent { acks: beside.clone(), wall: begun.elapsed(), put_off: 0 };
    let mut loaded = stage.settle(sent);
    let verdict = verify(&stage, &victim, &token, &aggressor)?;
    let cost = stage.finish(&loaded)?;
    let acked = aggressor.acked_rows.load(Ordering::Relaxed);
    let rows = acked + victim.manifests.iter().map(Manifest::rows).sum::<u64>();
    let p99 = (percentile_ms(&mut alone, 0.99), percentile_ms(&mut beside, 0.99));
    let beside_s = (args.turns * args.turn_s).max(1) as f64;
    let figure = |count: &AtomicU64| json!(count.load(Ordering::Relaxed));
    let more = More::from_iter([
        ("alone_ms_p50".to_owned(), json!(percentile_ms(&mut alone, 0.5))),
        ("alone_ms_p99".to_owned(), json!(p99.0)),
        ("beside_ms_p50".to_owned(), json!(percentile_ms(&mut beside, 0.5))),
        ("beside_ms_p99".to_owned(), json!(p99.1)),
        ("ratio".to_owned(), json!(round(p99.1 / p99.0.max(0.01), 2))),
        ("victim_requests".to_owned(), json!(alone.len() + beside.len())),
        ("aggressor_budget_rows_per_s".to_owned(), json!(args.budget)),
        ("aggressor_acked_rows_per_s".to_owned(), json!(round(acked as f64 / beside_s, 0))),
        ("aggressor_requests".to_owned(), figure(&aggressor.offered)),
        ("aggressor_over_budget".to_owned(), figure(&aggressor.refused)),
        ("aggressor_busy".to_owned(), figure(&aggressor.busy)),
    ]);
    figures("fairness", rows, &mut loaded, &cost, &verdict, more).print();
    pass(&verdict)
}

/// One turn of the victim: a request whenever one is due.
fn turn(
    stage: &Stage,
    args: &Args,
    victim: &mut Victim,
    acks: &mut Vec<Duration>,
) -> Result<(), Failed> {
    let mut connection = stage.connect(&stage.token)?;
    connection.request("GET", "/health", b"")?;
    let started = Instant::now();
    let every = Duration::from_secs(1) / u32::try_from(args.victim_rate.max(1))?;
    for n in 0..u32::try_from(args.turn_s * args.victim_rate)? {
        let body = fleet::body(&victim.options, 0, victim.sent, &mut victim.manifests);
        victim.sent += 1;
        let due = started + every * n;
        wait_until(due);
        post(&mut connection, &body)?;
        acks.push(due.elapsed());
    }
    Ok(())
}

/// One connection of the aggressor: offers its share of many times the budget, and does not care
/// what becomes of it.
fn flood(
    stage: &Stage,
    args: &Args,
    options: &Options,
    token: &str,
    aggressor: &Aggressor,
    over: &AtomicBool,
) -> Result<(), Failed> {
    let mut connection = stage.connect(token)?;
    let rate = (args.budget * args.times) as f64
        / (args.aggressor_rows.max(1) * args.common.connections.max(1)) as f64;
    let started = Instant::now();
    let mut bodies: Vec<Vec<u8>> = Vec::new();
    let mut sent = 0u32;
    while !over.load(Ordering::Relaxed) {
        // Made ahead, and again only when the last were acked: making them is not the load.
        if bodies.is_empty() {
            let first = aggressor.next.fetch_add(BODIES, Ordering::Relaxed);
            let one = |round| fleet::body(options, 1, round, &mut [Manifest::default()]);
            bodies = (first..first + BODIES).map(one).collect();
        }
        wait_until(started + Duration::from_secs_f64(f64::from(sent) / rate));
        sent += 1;
        aggressor.offered.fetch_add(1, Ordering::Relaxed);
        let Some(body) = bodies.last() else { continue };
        let (status, answer) = connection.request("POST", WRITE, body)?;
        match status {
            200..300 => {
                bodies.pop();
                aggressor.acked_rows.fetch_add(args.aggressor_rows as u64, Ordering::Relaxed);
            }
            429 if String::from_utf8_lossy(&answer).contains("over_budget") => {
                aggressor.refused.fetch_add(1, Ordering::Relaxed);
            }
            429 => {
                aggressor.busy.fetch_add(1, Ordering::Relaxed);
            }
            _ => {
                let text = String::from_utf8_lossy(&answer).into_owned();
                return Err(Failed(format!("the aggressor was answered {status}: {text}")));
            }
        }
    }
    Ok(())
}

fn verify(
    stage: &Stage,
    victim: &Victim,
    token: &str,
    aggressor: &Aggressor,
) -> Result<Verdict, Failed> {
    let mut verdict = fleet::check(&mut stage.connect(&stage.token)?, &victim.manifests)?;
    let acked = aggressor.acked_rows.load(Ordering::Relaxed);
    if acked > 0 {
        let sql = format!("SELECT count(*) AS n FROM {}", fleet::table(0));
        let rows = stage.connect(token)?.ask(&sql)?;
        let found = rows.first().and_then(|r| r.get("n")).and_then(Value::as_u64).unwrap_or(0);
        verdict.lost += acked.saturating_sub(found);
        verdict.doubled += found.saturating_sub(acked);
    }
    Ok(verdict)
}
