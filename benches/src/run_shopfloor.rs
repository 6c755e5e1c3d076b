//! The `shopfloor` and `backfill` runs: machines at 1 Hz, in order, or partly hours to weeks late.
//!
//! Owns: what they report beyond the common figures. Rows are counted once however often they
//! were sent, so what a repetition costs is part of the cost of its row.

use std::time::{SystemTime, UNIX_EPOCH};

use millrace_benches::{
    figures::{Figures, round},
    load::Batch,
    manifest::{Kind, Verdict},
    server::Failed,
    shopfloor::{COLUMNS, Filled, Options, SERIES_TAG, ShopFloor, TABLE},
    stage::{Common, More, Stage, bar, figures, pass},
    verify::{self, Table},
};
use serde_json::json;

/// How much of a shop floor.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Size {
    /// Machines, each with one row a second.
    #[arg(long, default_value_t = 200)]
    machines: usize,
    /// Hours of data.
    #[arg(long, default_value_t = 4.0)]
    hours: f64,
    /// Time of the first row, seconds since the Unix epoch: with the same seed the same bytes.
    /// The data ends now if not given.
    #[arg(long)]
    start: Option<u64>,
    #[command(flatten)]
    common: Common,
}

/// What `shopfloor` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct ShopFloorArgs {
    #[command(flatten)]
    size: Size,
}

/// What `backfill` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct BackfillArgs {
    #[command(flatten)]
    size: Size,
    /// Of all rows, late: one run each, every one with a server of its own.
    #[arg(long, value_name = "PERCENT", value_delimiter = ',', default_value = "0,30")]
    late: Vec<f64>,
    /// Of all rows, sent twice.
    #[arg(long, value_name = "PERCENT", default_value_t = 5.0)]
    resent: f64,
}

/// `shopfloor`.
pub(crate) fn run(args: &ShopFloorArgs) -> Result<(), Failed> {
    let size = &args.size;
    let (figures, verdict) = once("shopfloor", size, start_s(size)?, 0.0, 0.0)?;
    figures.print();
    pass(&verdict)
}

/// `backfill`: a line of figures for each share; those after a share of 0 say `late_ratio`.
pub(crate) fn run_backfill(args: &BackfillArgs) -> Result<(), Failed> {
    let start_s = start_s(&args.size)?;
    let mut in_order = None;
    let mut all = Verdict::default();
    for late in &args.late {
        let (mut figures, verdict) = once("backfill", &args.size, start_s, *late, args.resent)?;
        if *late == 0.0 {
            in_order = Some(figures.cpu_s_per_mrow);
        } else if let Some(base) = in_order.filter(|base| *base > 0.0) {
            let ratio = round(figures.cpu_s_per_mrow / base, 3);
            figures.more.insert("late_ratio".to_owned(), json!(ratio));
        }
        figures.print();
        all.merge(&format!("{late} % late"), verdict);
    }
    pass(&all)
}

fn seconds(size: &Size) -> u64 {
    (size.hours * 3600.0).round().max(1.0) as u64
}

fn start_s(size: &Size) -> Result<u64, Failed> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    Ok(size.start.unwrap_or_else(|| now.saturating_sub(seconds(size))))
}

fn generate(floor: &mut ShopFloor, batch: usize) -> (Vec<Batch>, Filled) {
    let bar = bar("generating", floor.total_rows());
    let (mut batches, mut all) = (Vec::new(), Filled::default());
    loop {
        let mut body = Vec::with_capacity(batch * 400);
        let filled = floor.fill(&mut body, batch);
        if filled.lines == 0 {
            bar.finish_and_clear();
            return (batches, all);
        }
        all.lines += filled.lines;
        all.resent += filled.resent;
        all.late += filled.late;
        batches.push(Batch { body, lines: filled.lines, caller: 0 });
        bar.inc(filled.lines - filled.resent);
    }
}

/// One run: generate, load, settle, verify, stop.
fn once(
    bench: &str,
    size: &Size,
    start_s: u64,
    late: f64,
    resent: f64,
) -> Result<(Figures, Verdict), Failed> {
    let common = &size.common;
    let mut floor = ShopFloor::new(Options {
        seed: common.seed,
        machines: size.machines,
        seconds: seconds(size),
        start_s,
        late_percent: late,
        resent_percent: resent,
        table: TABLE.to_owned(),
    });
    eprintln!(
        "{bench}: {} rows of {} machines, {late} % late, {resent} % sent twice, seed {}, start {start_s}",
        floor.total_rows(),
        size.machines,
        common.seed
    );
    let (batches, filled) = generate(&mut floor, common.batch);
    let sent_bytes: usize = batches.iter().map(|b| b.body.len()).sum();
    let mut stage = Stage::open(common, &format!("{bench}-{late}"))?;
    let sent = stage.load(common, std::slice::from_ref(&stage.token), &batches)?;
    drop(batches);
    let mut loaded = stage.settle(sent);
    let manifest = floor.manifest();
    let table = Table { name: TABLE, series_tag: SERIES_TAG, columns: &COLUMNS };
    let verdict = verify::check(&mut stage.connect(&stage.token)?, &table, manifest)?;
    let cost = stage.finish(&loaded)?;

    let rows = manifest.rows();
    let share = |n: u64| round(n as f64 * 100.0 / rows.max(1) as f64, 2);
    let floats = manifest.values(&COLUMNS, |k| matches!(k, Kind::Decimal(_)));
    let numbers = manifest.values(&COLUMNS, |k| k != Kind::Text);
    let more = More::from_iter([
        ("machines".to_owned(), json!(size.machines)),
        ("hours".to_owned(), json!(size.hours)),
        ("connections".to_owned(), json!(common.connections)),
        ("batch".to_owned(), json!(common.batch)),
        ("late_percent".to_owned(), json!(share(filled.late))),
        ("resent_percent".to_owned(), json!(share(filled.resent))),
        ("sent_bytes_per_row".to_owned(), json!(round(sent_bytes as f64 / rows as f64, 1))),
        ("bytes_per_float_value".to_owned(), json!(cost.stored_per(floats))),
        ("bytes_per_number".to_owned(), json!(cost.stored_per(numbers))),
    ]);
    Ok((figures(bench, rows, &mut loaded, &cost, &verdict, more), verdict))
}
