//! Eleven years of retention on a simulated machine: plans that change, holds, late rows, clocks
//! that jump, power cuts; beside a model that says what must still be there and what must be gone.
//!
//! The model knows the rule in its plainest form: what queries show is the longest limit that
//! counted at any moment of the last 30 days, what is stored that of the last 37.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures::executor::block_on;
use millrace_platform::{
    clock::Clock,
    disk::Disk,
    sim::{SimClock, SimDisk, SimEntropy, disk::Faults},
};
use millrace_protocol::{
    batch::{FieldColumn, RefusalCode, SeriesKey, TableBatch},
    ids::TenantId,
    value::{FieldType, FieldValues},
};

use super::{seeds, wire, world::test_keys};
use crate::{
    EngineConfig, EngineLimits, Origin, Shard, TenantSnapshot, WriteRequest,
    planted::{self, Bug},
    retention::{DAY_NS, Holds, MARGIN_NS, Rules, Terms},
};

const TENANT: TenantId = TenantId([5; 16]);
const TABLES: [&str; 2] = ["cpu", "press"];
const DAYS: i64 = 11 * 365;
const START_NS: i64 = 20_000 * DAY_NS;
const HOUR_NS: i64 = DAY_NS / 24;
/// Plans, in days.
const PLANS: [Option<i64>; 5] = [Some(60), Some(180), Some(730), Some(3650), None];

/// One row: its table, its time.
type Key = (&'static str, i64);

/// What counted from when on, and for which table less.
#[derive(Debug, Clone)]
struct Plan {
    from_ns: i64,
    days: Option<i64>,
    press: Option<i64>,
}

impl Plan {
    /// Days that a table is kept; `None` for ever.
    fn keeps(&self, table: &str) -> Option<i64> {
        match (self.days, self.press.filter(|_| table == "press")) {
            (Some(plan), Some(own)) => Some(plan.min(own)),
            (plan, own) => plan.or(own),
        }
    }
}

struct Years {
    seed: u64,
    dice: SimEntropy,
    disk: SimDisk,
    clock: SimClock,
    shard: Option<Shard>,
    opens: u64,
    /// True time.
    now: i64,
    /// How wrong the wall clock is.
    error_ns: i64,
    /// Since when it has been right again.
    right_since: i64,
    plans: Vec<Plan>,
    held: BTreeSet<&'static str>,
    /// When a table was held last.
    released: BTreeMap<&'static str, i64>,
    /// Rows that were acknowledged and have never been out of their limit.
    owed: BTreeSet<Key>,
    /// Rows that were out of their limit, of a table that was not held then: they may be gone.
    free: BTreeSet<Key>,
    trace: Vec<String>,
    stats: BTreeMap<&'static str, u64>,
}

impl Years {
    fn seeded(seed: u64) -> Self {
        let first = Plan { from_ns: START_NS, days: Some(730), press: None };
        let mut years = Self {
            seed,
            dice: SimEntropy::seeded(seed),
            disk: SimDisk::new(),
            clock: SimClock::at(START_NS),
            shard: None,
            opens: 0,
            now: START_NS,
            error_ns: 0,
            right_since: START_NS - 10 * DAY_NS,
            plans: vec![first],
            held: BTreeSet::new(),
            released: BTreeMap::new(),
            owed: BTreeSet::new(),
            free: BTreeSet::new(),
            trace: Vec::new(),
            stats: BTreeMap::new(),
        };
        years.open();
        years
    }

    fn day(&self) -> i64 {
        (self.now - START_NS) / DAY_NS
    }

    fn fail(&self, what: &str) -> ! {
        let last: Vec<_> = self.trace.iter().rev().take(12).rev().collect();
        panic!("seed {}, day {}, after {last:?}: {what}", self.seed, self.day())
    }

    fn note(&mut self, kind: &'static str, detail: &str) {
        self.trace.push(format!("day {}: {kind} {detail}", self.day()));
        *self.stats.entry(kind).or_default() += 1;
    }

    fn shard(&mut self) -> &mut Shard {
        self.shard.as_mut().expect("the shard is open")
    }

    fn open(&mut self) {
        self.disk.set_faults(Faults::default());
        self.opens += 1;
        let limits = EngineLimits {
            merge_files: 2,
            segment_bytes: 64 << 10,
            checkpoint_every: 8,
            // As often as not the tenant sleeps when it is due.
            idle_after: Duration::from_secs(86_400 * (1 - self.seed % 2) * 1000),
            ..EngineLimits::default()
        };
        let config = EngineConfig {
            disk: Arc::new(self.disk.clone()),
            clock: Arc::new(self.clock.clone()),
            entropy: Arc::new(SimEntropy::seeded(self.seed * 100_000 + self.opens)),
            dir: PathBuf::from("/data"),
            keys: test_keys(),
            limits,
        };
        let shard = block_on(Shard::open(config)).unwrap_or_else(|e| self.fail(&e.to_string()));
        self.shard = Some(shard);
        self.tell_rules();
    }

    /// What the catalogue says, in the engine's words.
    fn tell_rules(&mut self) {
        let name = |table: &str| ("default".to_owned(), table.to_owned());
        let terms = self.plans.iter().map(|plan| Terms {
            from_ns: plan.from_ns,
            keep_ns: plan.days.map(|d| d * DAY_NS),
            tables: plan.press.iter().map(|d| (name("press"), d * DAY_NS)).collect(),
        });
        let all = self.held.len() == TABLES.len();
        let tables = self.held.iter().map(|t| name(t)).collect();
        let rules = Rules { terms: terms.collect(), holds: Holds { all, tables } };
        self.shard().set_retention(TENANT, rules);
    }

    /// The longest limit of the last `days` days, ns; `None` for ever.
    fn longest(&self, table: &str, at: i64, days: i64) -> Option<i64> {
        let mut longest = 0;
        for (n, plan) in self.plans.iter().enumerate() {
            let end = self.plans.get(n + 1).map_or(i64::MAX, |next| next.from_ns);
            if plan.from_ns <= at && end > at - days * DAY_NS {
                longest = longest.max(plan.keeps(table)? * DAY_NS);
            }
        }
        Some(longest)
    }

    /// Rows from here on are shown at a moment.
    fn shown_from(&self, table: &str, at: i64) -> i64 {
        self.longest(table, at, 30).map_or(i64::MIN, |limit| at - limit)
    }

    fn stored_from(&self, table: &str, at: i64) -> i64 {
        self.longest(table, at, 37).map_or(i64::MIN, |limit| at - limit)
    }

    /// Rows whose limit has passed may go from now on.
    fn age(&mut self) {
        for table in TABLES {
            let from = self.stored_from(table, self.now);
            if self.held.contains(table) {
                continue;
            }
            let gone: Vec<Key> =
                self.owed.range((table, i64::MIN)..(table, from)).copied().collect();
            for key in gone {
                self.owed.remove(&key);
                self.free.insert(key);
            }
        }
    }

    fn pass_time(&mut self, ns: i64) {
        self.now += ns;
        self.clock.advance(Duration::from_nanos(ns as u64));
        self.age();
    }

    fn set_error(&mut self, ns: i64) {
        self.error_ns = ns;
        self.clock.set_wall_ns(self.now + ns);
        if ns == 0 {
            self.right_since = self.now;
        }
    }

    /// Whether the clock has been right for so long that everything due must be done.
    fn settled(&self) -> bool {
        self.error_ns == 0 && self.now - self.right_since > DAY_NS
    }

    fn write(&mut self, table: &'static str, time: i64) {
        let mut field = FieldColumn::new("v", FieldType::I64);
        let FieldValues::I64(values) = &mut field.values else { unreachable!("made above") };
        values.push(time);
        field.present.push(true);
        let batch = TableBatch {
            table: table.to_owned(),
            time: vec![time],
            series: vec![0],
            series_keys: vec![SeriesKey::from_sorted([("host", "a")])],
            fields: vec![field],
            line: vec![1],
        };
        let request = WriteRequest {
            tenant: TENANT,
            database: "default".into(),
            origin: Origin::Plain,
            tables: vec![batch],
            sender: Default::default(),
        };
        let receipt = match self.shard().write(vec![request]).remove(0) {
            Ok(receipt) => receipt,
            Err(e) => self.fail(&format!("a write fails: {e}")),
        };
        let from = self.shown_from(table, self.now);
        match (receipt.rows(), receipt.refusals().first().map(|r| r.code)) {
            (1, _) => {
                if self.settled() && time < from {
                    self.fail(&format!("a row {} ns out of retention was taken", from - time));
                }
                self.owed.insert((table, time));
                self.free.remove(&(table, time));
            }
            (0, Some(RefusalCode::OutOfRetention)) => {
                if time >= from {
                    self.fail("a row within its limit was refused");
                }
                *self.stats.entry("rows refused").or_default() += 1;
            }
            // A wall clock that is behind.
            (0, Some(RefusalCode::OutOfWindow)) if self.error_ns < 0 => {}
            other => self.fail(&format!("{other:?}")),
        }
    }

    fn flush(&mut self) {
        let done = block_on(self.shard().flush());
        if done.is_err() && !self.dark() {
            self.fail(&format!("a flush fails: {done:?}"));
        }
    }

    fn dark(&self) -> bool {
        self.disk.exists(Path::new("/data")).is_err()
    }

    /// What the maintenance thread does every few minutes; an operator answers the fuse.
    fn retain(&mut self) {
        for _ in 0..8 {
            let report = match block_on(self.shard().retain()) {
                Ok(report) => report,
                Err(_) if self.dark() => return,
                Err(e) => self.fail(&format!("a pass fails: {e}")),
            };
            *self.stats.entry("files dropped").or_default() += report.files;
            if report.blocked > 0 {
                *self.stats.entry("fuse").or_default() += 1;
                let asked = self.shard().confirm_retention(TENANT);
                if asked.is_none_or(|b| b.files == 0 || b.bytes > b.bytes_all) {
                    self.fail(&format!("the fuse asks for {asked:?}"));
                }
            } else if !report.more {
                return;
            }
        }
        self.fail("the fuse asks again and again");
    }

    fn crash(&mut self, after: u64) {
        let cut_after = Some(self.disk.ops() + after);
        self.disk.set_faults(Faults { cut_after, ..Faults::default() });
        self.flush();
        if !self.dark() {
            self.retain();
        }
        self.shard = None;
        self.disk.power_cycle(&self.dice);
        self.open();
    }

    fn snapshot(&mut self) -> TenantSnapshot {
        self.shard().snapshot(TENANT).expect("fixed keys are there")
    }

    /// Times of the rows of a table; `stored` also those that are not shown.
    fn times(&self, snapshot: &TenantSnapshot, table: &str, stored: bool) -> BTreeSet<i64> {
        let Some(found) = snapshot.databases.get("default").and_then(|d| d.get(table)) else {
            return BTreeSet::new();
        };
        let mut found = crate::TableSnapshot::clone(found);
        if stored {
            found.shown_from = i64::MIN;
        }
        let rows = wire::read(0, table, &Arc::new(found), |all| all);
        let rows = rows.unwrap_or_else(|e| self.fail(&e));
        rows.keys().map(|cell| cell.3).collect()
    }

    fn check(&mut self) {
        let snapshot = self.snapshot();
        for table in TABLES {
            let stored = self.times(&snapshot, table, true);
            let owed: BTreeSet<i64> =
                self.owed.range((table, i64::MIN)..=(table, i64::MAX)).map(|k| k.1).collect();
            if let Some(time) = owed.difference(&stored).next() {
                let age = (self.now - time) as f64 / DAY_NS as f64;
                self.fail(&format!("EARLY: a row of {table}, {age:.2} days old, is gone"));
            }
            self.check_shown(&snapshot, table, &stored);
            if self.settled() {
                self.check_due(&snapshot, table);
            }
        }
    }

    /// Queries show what is stored from the limit on, and nothing else.
    fn check_shown(&self, snapshot: &TenantSnapshot, table: &'static str, stored: &BTreeSet<i64>) {
        let shown = self.times(snapshot, table, false);
        let from = self.shown_from(table, self.now);
        // Trusted time may be behind, and ahead by the margin.
        let must: BTreeSet<i64> = stored.range(from.saturating_add(MARGIN_NS)..).copied().collect();
        if let Some(time) = must.difference(&shown).next() {
            self.fail(&format!("a row of {table} within its limit is hidden: {}", time - from));
        }
        let right = self.error_ns == 0 && self.settled();
        if right && shown.iter().any(|time| *time < from) {
            self.fail(&format!("a row of {table} is shown past its limit"));
        }
        if right && stored.range(from..).any(|time| !shown.contains(time)) {
            self.fail(&format!("the limit of {table} is not exact"));
        }
    }

    /// Files that are past their limit as a whole are gone within a day.
    fn check_due(&self, snapshot: &TenantSnapshot, table: &str) {
        let day_ago = self.now - DAY_NS;
        if self.held.contains(table) || self.released.get(table).is_some_and(|at| *at > day_ago) {
            return;
        }
        let from = self.stored_from(table, day_ago);
        let found = snapshot.databases.get("default").and_then(|d| d.get(table));
        if let Some(file) = found.and_then(|t| t.files().iter().find(|f| f.t_max < from)) {
            let late = (from - file.t_max) as f64 / DAY_NS as f64;
            self.fail(&format!("a file of {table} is {late:.2} days overdue"));
        }
    }

    fn change_plan(&mut self) {
        let mut next = self.plans.last().expect("there is always one").clone();
        // The server stamps plans with trusted time, which is never ahead.
        next.from_ns = self.shard().clock_state().now_ns.max(next.from_ns + 1);
        match self.dice.below(3) {
            0 => {
                next.press = match self.dice.below(3) {
                    0 => None,
                    1 => Some(30),
                    // Longer than most plans: must count as the plan's.
                    _ => Some(1000),
                };
            }
            _ => next.days = PLANS[self.dice.below(PLANS.len() as u64) as usize],
        }
        self.note("plan", &format!("{:?} press {:?}", next.days, next.press));
        self.plans.push(next);
        self.tell_rules();
        self.retain();
    }

    fn change_hold(&mut self) {
        let table = TABLES[self.dice.below(2) as usize];
        if self.held.remove(table) {
            self.released.insert(table, self.now);
        } else {
            self.held.insert(table);
        }
        self.note("hold", &format!("{:?}", self.held));
        self.tell_rules();
    }

    /// Something that happens to clocks.
    fn clock_event(&mut self) {
        if self.error_ns != 0 {
            self.note("clock right", "");
            self.set_error(0);
            if self.shard().clock_state().wrong() {
                self.shard().believe_clock();
            }
            return;
        }
        let year = 365 * DAY_NS;
        let error = [10 * year, -10 * year, 5 * HOUR_NS, -3 * DAY_NS, 40 * DAY_NS]
            [self.dice.below(5) as usize];
        self.note("clock wrong", &format!("{} h", error / HOUR_NS));
        self.set_error(error);
    }

    /// The server is off for a while.
    fn off(&mut self) {
        let hours = [1, 6, 100][self.dice.below(3) as usize];
        self.note("off", &format!("{hours} h"));
        self.flush();
        self.shard = None;
        self.disk.kill_process();
        self.pass_time(hours * HOUR_NS);
        self.open();
        if self.error_ns == 0 && self.shard().clock_state().wrong() {
            self.note("clock confirmed", "");
            self.shard().believe_clock();
        }
        if self.error_ns == 0 {
            self.right_since = self.now;
        }
    }

    fn event(&mut self) {
        match self.dice.below(600) {
            0..=5 => self.change_plan(),
            6..=9 => self.change_hold(),
            10..=13 => self.clock_event(),
            14..=17 => self.off(),
            18..=23 => {
                let after = self.dice.below(60);
                self.note("crash", &after.to_string());
                self.crash(after);
            }
            24..=60 => {
                // Late rows, some of them too late.
                let table = TABLES[self.dice.below(2) as usize];
                let back = [10, 100, 500, 2000][self.dice.below(4) as usize];
                let back = DAY_NS * self.dice.below(back) as i64 + self.dice.below(1000) as i64;
                self.write(table, self.now - back);
            }
            // A wrong clock is noticed sooner or later.
            61..=70 if self.error_ns != 0 => self.clock_event(),
            _ => {}
        }
    }

    /// Moments of this day at which something is to become hidden.
    fn moments(&self) -> Vec<i64> {
        let hides = self.plans.iter().skip(1).map(|p| p.from_ns + 30 * DAY_NS);
        let drops = self.plans.iter().skip(1).map(|p| p.from_ns + 37 * DAY_NS);
        let mut all: Vec<i64> = hides
            .chain(drops)
            .filter(|at| (self.now + 1..self.now + DAY_NS).contains(at))
            .collect();
        all.sort_unstable();
        all
    }

    fn run(&mut self, days: i64) {
        for _ in 0..days {
            let midnight = self.now + DAY_NS;
            self.event();
            for table in TABLES {
                if self.dice.below(3) == 0 {
                    self.write(
                        table,
                        self.now + self.error_ns.min(0) - self.dice.below(1000) as i64,
                    );
                }
            }
            for at in self.moments() {
                // A moment before and at it: the grace is exact.
                self.pass_time((at - 1 - self.now).max(0));
                self.retain();
                self.check();
                self.pass_time(at - self.now);
                self.check();
                self.retain();
            }
            self.pass_time((midnight - self.now).max(0));
            if self.day() % 10 == 0 {
                self.flush();
                while block_on(self.shard().compact_once()).unwrap_or(false) {}
            }
            self.retain();
            if self.day() % 60 == 0 {
                self.check();
            }
        }
        self.check();
    }

    /// Nothing more comes, holds end, the shortest plan counts: space and metadata return.
    fn end(&mut self) {
        self.set_error(0);
        self.shard().believe_clock();
        self.held.clear();
        let mut last = self.plans.last().expect("there is always one").clone();
        (last.from_ns, last.days, last.press) = (self.now.max(last.from_ns + 1), Some(1), None);
        self.plans.push(last);
        self.tell_rules();
        self.flush();
        for day in 0..45 {
            if day == 40 {
                // Series leave while the tenant sleeps.
                self.shard = None;
                self.disk.kill_process();
                self.open();
            }
            self.pass_time(DAY_NS);
            if self.shard().clock_state().wrong() {
                self.shard().believe_clock();
            }
            self.flush();
            self.retain();
        }
        self.check();
        let now = Clock::monotonic(&self.clock);
        block_on(self.shard().sweep(now, Duration::ZERO)).expect("left-over objects go");
        let left: Vec<_> =
            self.disk.paths().into_iter().filter(|p| p.starts_with("/data/data")).collect();
        if !left.is_empty() {
            self.fail(&format!("space does not return: {left:?}"));
        }
    }
}

fn years(seed: u64, days: i64) -> BTreeMap<&'static str, u64> {
    let mut years = Years::seeded(seed);
    years.run(days);
    years.end();
    years.stats
}

fn run(seed: u64) {
    let stats = years(seed, DAYS);
    println!("seed {seed}, {DAYS} days: {stats:?}; 0 early, 0 overdue, every grace exact");
    for kind in ["plan", "hold", "clock wrong", "off", "crash", "files dropped", "rows refused"] {
        assert!(stats.get(kind).is_some_and(|n| *n > 0), "{kind} never happened: {stats:?}");
    }
}

#[test]
fn r1_r2_eleven_years_drop_nothing_early_and_everything_within_a_day() {
    for seed in 0..seeds::times(2) {
        run(seed * 2);
    }
}

#[test]
fn r1_r2_eleven_years_of_a_tenant_that_mostly_sleeps() {
    for seed in 0..seeds::times(2) {
        run(seed * 2 + 1);
    }
}

/// Two years of it, until one fails.
fn caught(bug: Bug) {
    let quiet = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let at = (0..40).find(|seed| {
        std::panic::catch_unwind(|| planted::with(bug, || years(*seed, 800))).is_err()
    });
    std::panic::set_hook(quiet);
    match at {
        Some(seed) => println!("{bug:?}: caught at seed {seed}"),
        None => panic!("{bug:?}: not caught"),
    }
}

#[test]
fn r1_a_hold_that_is_ignored_is_caught() {
    caught(Bug::HoldIgnored);
}

#[test]
fn r2_a_grace_that_is_skipped_is_caught() {
    caught(Bug::GraceSkipped);
}

#[test]
fn r1_a_clock_that_is_trusted_is_caught() {
    caught(Bug::ClockTrusted);
}

#[test]
fn r1_an_override_that_lengthens_is_caught() {
    caught(Bug::OverrideLengthens);
}
