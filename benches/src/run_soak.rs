//! The `soak` run: live, late, device and small-tenant writers at once, checked all the time,
//! while the server is killed or stopped every so often.
//!
//! Owns: the lanes of the mix, when they check, when the server goes down. It goes down between
//! requests of every lane, so every ack that a client ever got must hold afterwards.
//! CPU includes that of the checking queries, unlike in the other runs.

use std::{
    sync::{
        Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use millrace_benches::{
    figures::round,
    fleet,
    flight::Device,
    lane::{FleetLane, FloorLane, Lane, Place, Way},
    load::{Sent, wait_until},
    manifest::Verdict,
    server::{self, Failed},
    shopfloor,
    stage::{Common, More, Stage, bar, figures, pass},
};
use serde_json::json;

/// Machines of a floor lane.
const MACHINES: usize = 50;

/// What the run takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How long: 90s, 15m, 2h.
    #[arg(long = "for", value_name = "DURATION", default_value = "10m", value_parser = duration)]
    length: Duration,
    /// The server is ended and started again so often, by turns with a kill and gracefully.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    restart_every: Option<Duration>,
    /// Rows of a chapter, after which a lane goes on in a new table.
    #[arg(long, default_value_t = 200_000)]
    chapter_rows: u64,
    /// Small tenants of the fleet lane.
    #[arg(long, default_value_t = 20)]
    tenants: usize,
    /// Requests of a lane between two of its checks.
    #[arg(long, default_value_t = 10)]
    check_every: u64,
    #[command(flatten)]
    common: Common,
}

fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is not a duration like 90s, 15m or 2h");
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(wrong)?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    Ok(Duration::from_secs(number.saturating_mul(seconds)))
}

/// What all lanes share.
#[derive(Default)]
struct Shared {
    /// Read by a lane during a request, written when the server goes down.
    place: RwLock<Place>,
    over: AtomicBool,
    rows: AtomicU64,
    checks: AtomicU64,
    outcome: Mutex<(Vec<Duration>, Verdict)>,
}

impl Shared {
    fn note(&self, acks: &mut Vec<Duration>, place: &str, verdict: Verdict) {
        if !verdict.is_clean() {
            self.over.store(true, Ordering::Relaxed);
        }
        let mut outcome = self.outcome.lock().unwrap_or_else(PoisonError::into_inner);
        outcome.0.append(acks);
        outcome.1.merge(place, verdict);
    }

    /// Sends and checks until it is over.
    fn drive(
        &self,
        lane: &mut dyn Lane,
        args: &Args,
        rows_per_s: Option<f64>,
    ) -> Result<(), Failed> {
        let (started, mut rows, mut acks) = (Instant::now(), 0, Vec::new());
        for step in 1u64.. {
            if self.over.load(Ordering::Relaxed) {
                break;
            }
            if let Some(rate) = rows_per_s {
                wait_until(started + Duration::from_secs_f64(rows as f64 / rate));
            }
            let place = self.place.read().unwrap_or_else(PoisonError::into_inner);
            let sent = lane.step(&place)?;
            rows += sent.rows;
            acks.push(sent.ack);
            self.rows.fetch_add(sent.rows, Ordering::Relaxed);
            if step.is_multiple_of(args.check_every.max(1)) {
                let verdict = lane.check(&place)?;
                self.checks.fetch_add(1, Ordering::Relaxed);
                self.note(&mut acks, &lane.name(), verdict);
            }
        }
        self.note(&mut acks, &lane.name(), Verdict::default());
        Ok(())
    }
}

/// The command.
pub(crate) fn run(args: &Args) -> Result<(), Failed> {
    let (mut stage, (tokens, claim)) = Stage::prepared(&args.common, "soak", |data| {
        let tokens = (0..args.tenants).map(|n| server::tenant(data, &format!("small-{n}")));
        Ok((tokens.collect::<Result<Vec<_>, _>>()?, server::claim(data, "bench")?))
    })?;
    let mut lanes = lanes(args, &stage, tokens, &claim)?;
    let seed = args.common.seed;
    eprintln!("soak: {} lanes for {} s, seed {seed}", lanes.len(), args.length.as_secs());
    let shared = Shared::default();
    arrive(&shared, &stage, 0);
    let started = Instant::now();
    let rate = args.common.rows_per_s.map(|rate| rate / lanes.len() as f64);
    let (restarts, results) = std::thread::scope(|scope| {
        let shared = &shared;
        let work: Vec<_> = lanes
            .iter_mut()
            .map(|lane| {
                scope.spawn(move || {
                    let done = shared.drive(lane.as_mut(), args, rate);
                    // One lane that fails ends the soak.
                    shared.over.store(true, Ordering::Relaxed);
                    done
                })
            })
            .collect();
        let restarts = watch(shared, &mut stage, args, started);
        shared.over.store(true, Ordering::Relaxed);
        let results: Vec<_> = work.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        (restarts, results)
    });
    for result in results {
        result.map_err(|_| Failed("a lane panicked".to_owned()))??;
    }
    let mut restarts = restarts?;
    let (acks, mut verdict) = shared.outcome.into_inner().unwrap_or_else(PoisonError::into_inner);
    let sent = Sent { acks, wall: started.elapsed(), put_off: 0 };
    let mut loaded = stage.settle(sent);
    let mut checks = shared.checks.into_inner();
    for when in ["at the end", "after a restart"] {
        let place = here(&stage, restarts);
        for lane in &mut lanes {
            verdict.merge(&format!("{when}, {}", lane.name()), lane.check_all(&place)?);
            checks += 1;
        }
        if when == "at the end" {
            stage.restart(false)?;
            restarts += 1;
        }
    }
    let cost = stage.finish(&loaded)?;
    let more = More::from_iter([
        ("seconds".to_owned(), json!(round(loaded.sent.wall.as_secs_f64(), 1))),
        ("checks".to_owned(), json!(checks)),
        ("restarts".to_owned(), json!(restarts)),
    ]);
    let rows = shared.rows.into_inner();
    figures("soak", rows, &mut loaded, &cost, &verdict, more).print();
    pass(&verdict)
}

/// Shows how it goes and ends the server now and then; how often it did.
fn watch(shared: &Shared, stage: &mut Stage, args: &Args, started: Instant) -> Result<u64, Failed> {
    let bar = bar("soaking", args.length.as_secs());
    let mut restarts = 0;
    while started.elapsed() < args.length && !shared.over.load(Ordering::Relaxed) {
        std::thread::park_timeout(Duration::from_millis(200));
        bar.set_position(started.elapsed().as_secs());
        let due = args.restart_every.map(|every| every * (restarts as u32 + 1));
        if due.is_some_and(|due| started.elapsed() >= due) {
            let mut place = shared.place.write().unwrap_or_else(PoisonError::into_inner);
            restarts += 1;
            stage.restart(restarts % 2 == 1)?;
            *place = here(stage, restarts);
        }
    }
    bar.finish_and_clear();
    Ok(restarts)
}

fn here(stage: &Stage, life: u64) -> Place {
    Place { base: stage.server.base.clone(), ca_pem: stage.ca.clone(), life }
}

fn arrive(shared: &Shared, stage: &Stage, life: u64) {
    *shared.place.write().unwrap_or_else(PoisonError::into_inner) = here(stage, life);
}

/// The mix.
fn lanes(
    args: &Args,
    stage: &Stage,
    tokens: Vec<String>,
    claim: &str,
) -> Result<Vec<Box<dyn Lane>>, Failed> {
    let seconds = (args.chapter_rows / MACHINES as u64).max(1);
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let seed = args.common.seed;
    let batch = args.common.batch.min((args.chapter_rows / 10).max(1) as usize);
    let floor = |name: &str, late_percent, resent_percent, way| {
        let options = shopfloor::Options {
            seed,
            machines: MACHINES,
            seconds,
            start_s: now_s.saturating_sub(seconds),
            late_percent,
            resent_percent,
            table: name.to_owned(),
        };
        FloorLane::new(options, batch, stage.token.clone(), way)
    };
    let device = Device::enrol(&mut stage.connect("")?, claim, "soak")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let small = fleet::Options {
        seed,
        tenants: args.tenants,
        tables: 3,
        rows: 5,
        start_s: now_s.saturating_sub(365 * 24 * 3600),
    };
    Ok(vec![
        Box::new(floor("live", 0.0, 0.0, Way::Line)),
        Box::new(floor("late", 30.0, 5.0, Way::Line)),
        Box::new(floor("device", 0.0, 0.0, Way::Device(device, runtime))),
        Box::new(FleetLane::new(small, tokens)),
    ])
}
