//! Lanes of a soak: each sends its own rows one request after the other and knows, between two
//! requests, exactly what a query must find.
//!
//! Owns: the kinds of lanes. A floor lane (in order, late, or as a device through Flight) writes
//! chapters: a new table every so many rows, so that a check stays cheap however long the soak
//! is, and old chapters are asked for again to see what merges did to them. A fleet lane speaks
//! for many small tenants in turn.
//! Never: two lanes in one table; a row counted before its ack.

use std::time::{Duration, Instant};

use crate::{
    fleet,
    flight::{Device, Outgoing, record_batch},
    http::{Connection, tls},
    load::post,
    manifest::{Manifest, Verdict},
    random::Random,
    server::Failed,
    shopfloor::{self, ShopFloor},
    verify::{self, Table},
};

/// Where the server is now; it moves when it is started again.
#[derive(Debug, Clone, Default)]
pub struct Place {
    /// `https://127.0.0.1:PORT`.
    pub base: String,
    /// Its CA, PEM.
    pub ca_pem: String,
    /// How often it was started.
    pub life: u64,
}

/// One request that was acked.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    /// New rows.
    pub rows: u64,
    /// Time to its ack.
    pub ack: Duration,
}

/// Something that sends and can say what must be there.
pub trait Lane: Send {
    /// For people.
    fn name(&self) -> String;
    /// Sends the next request.
    fn step(&mut self, place: &Place) -> Result<Step, Failed>;
    /// Compares what it wrote last, and something that it wrote earlier.
    fn check(&mut self, place: &Place) -> Result<Verdict, Failed>;
    /// Compares everything that it ever wrote.
    fn check_all(&mut self, place: &Place) -> Result<Verdict, Failed>;
}

/// A server may close a connection that has been idle for longer.
const IDLE_MAX: Duration = Duration::from_secs(1);

/// A connection that is opened again when the server has moved, or when it has been idle.
#[derive(Debug, Default)]
struct Line(Option<(u64, Instant, Connection)>);

impl Line {
    fn to(&mut self, place: &Place, token: &str) -> Result<&mut Connection, Failed> {
        let fits = |life: u64, used: Instant| life == place.life && used.elapsed() < IDLE_MAX;
        let open = match self.0.take().filter(|(life, used, _)| fits(*life, *used)) {
            Some((_, _, open)) => open,
            None => Connection::open(&place.base, &tls(&place.ca_pem)?, token)?,
        };
        let (_, _, open) = self.0.insert((place.life, Instant::now(), open));
        token.clone_into(&mut open.token);
        Ok(open)
    }
}

/// How a floor lane's rows travel.
#[derive(Debug)]
pub enum Way {
    /// Line protocol with the token.
    Line,
    /// Flight, as a device; a tenth of all messages is sent twice under the same numbers.
    Device(Device, tokio::runtime::Runtime),
}

/// Machines that write chapter after chapter.
#[derive(Debug)]
pub struct FloorLane {
    /// Of the first chapter; `table` is what all chapters' names begin with.
    options: shopfloor::Options,
    batch: usize,
    token: String,
    way: Way,
    line: Line,
    floor: ShopFloor,
    table: String,
    stream: Option<Outgoing>,
    done: Vec<(String, Manifest)>,
    random: Random,
}

impl FloorLane {
    /// Starts with the first chapter.
    pub fn new(options: shopfloor::Options, batch: usize, token: String, way: Way) -> Self {
        let (floor, table) = chapter(&options, 0);
        let random = Random::at(options.seed, [1, 1]);
        let (line, stream, done) = (Line::default(), None, Vec::new());
        Self { options, batch, token, way, line, floor, table, stream, done, random }
    }

    fn send(&mut self, place: &Place, body: &[u8]) -> Result<(), Failed> {
        let Way::Device(device, runtime) = &self.way else {
            post(self.line.to(place, &self.token)?, body)?;
            return Ok(());
        };
        let batch = record_batch(body)?;
        if self.stream.is_none() {
            self.stream = Some(Outgoing::new(device, &self.table)?);
        }
        let Some(stream) = &mut self.stream else { return Ok(()) };
        let times = if self.random.percent(10.0) { 2 } else { 1 };
        for time in 0..times {
            if time > 0 {
                stream.rewind(batch.num_rows() as u64);
            }
            stream.push(&batch)?;
            let server = (place.base.as_str(), place.ca_pem.as_str());
            runtime.block_on(stream.send(device, server, 1, |_| None, &|_| ()))?;
        }
        Ok(())
    }

    fn ask(&mut self, place: &Place, earlier: Option<usize>) -> Result<Verdict, Failed> {
        let (name, manifest) = match earlier.and_then(|at| self.done.get(at)) {
            Some((name, manifest)) => (name, manifest),
            None => (&self.table, self.floor.manifest()),
        };
        if manifest.rows() == 0 {
            return Ok(Verdict::default());
        }
        let columns = &shopfloor::COLUMNS;
        let table = Table { name, series_tag: shopfloor::SERIES_TAG, columns };
        let mut verdict = Verdict::default();
        let connection = self.line.to(place, &self.token)?;
        verdict.merge(name, verify::check(connection, &table, manifest)?);
        Ok(verdict)
    }
}

fn chapter(options: &shopfloor::Options, number: usize) -> (ShopFloor, String) {
    let table = format!("{}_{number}", options.table);
    let seed = Random::at(options.seed, [0, number as u64]).next_u64();
    let floor =
        ShopFloor::new(shopfloor::Options { seed, table: table.clone(), ..options.clone() });
    (floor, table)
}

impl Lane for FloorLane {
    fn name(&self) -> String {
        self.options.table.clone()
    }

    fn step(&mut self, place: &Place) -> Result<Step, Failed> {
        let mut body = Vec::new();
        let mut filled = self.floor.fill(&mut body, self.batch);
        if filled.lines == 0 {
            let (floor, table) = chapter(&self.options, self.done.len() + 1);
            let floor = std::mem::replace(&mut self.floor, floor);
            let table = std::mem::replace(&mut self.table, table);
            self.done.push((table, floor.manifest().clone()));
            self.stream = None;
            filled = self.floor.fill(&mut body, self.batch);
        }
        let begun = Instant::now();
        self.send(place, &body)?;
        Ok(Step { rows: filled.lines - filled.resent, ack: begun.elapsed() })
    }

    fn check(&mut self, place: &Place) -> Result<Verdict, Failed> {
        let mut verdict = self.ask(place, None)?;
        if !self.done.is_empty() {
            let earlier = self.random.below(self.done.len());
            verdict.merge("earlier", self.ask(place, Some(earlier))?);
        }
        Ok(verdict)
    }

    fn check_all(&mut self, place: &Place) -> Result<Verdict, Failed> {
        let mut verdict = self.ask(place, None)?;
        for earlier in 0..self.done.len() {
            verdict.merge("all", self.ask(place, Some(earlier))?);
        }
        Ok(verdict)
    }
}

/// Small tenants in turn.
#[derive(Debug)]
pub struct FleetLane {
    options: fleet::Options,
    tokens: Vec<String>,
    manifests: Vec<Vec<Manifest>>,
    next: u64,
    line: Line,
    random: Random,
}

impl FleetLane {
    /// One tenant per token.
    pub fn new(options: fleet::Options, tokens: Vec<String>) -> Self {
        let manifests = vec![vec![Manifest::default(); options.tables]; tokens.len()];
        let random = Random::at(options.seed, [2, 2]);
        Self { options, tokens, manifests, next: 0, line: Line::default(), random }
    }

    fn ask(&mut self, place: &Place, tenant: usize) -> Result<Verdict, Failed> {
        let mut verdict = Verdict::default();
        let token = self.tokens.get(tenant).cloned().unwrap_or_default();
        let expected = self.manifests.get(tenant).map(Vec::as_slice).unwrap_or_default();
        let found = fleet::check(self.line.to(place, &token)?, expected)?;
        verdict.merge(&format!("small tenant {tenant}"), found);
        Ok(verdict)
    }
}

impl Lane for FleetLane {
    fn name(&self) -> String {
        "fleet".to_owned()
    }

    fn step(&mut self, place: &Place) -> Result<Step, Failed> {
        let tenants = self.tokens.len().max(1) as u64;
        let (tenant, round) = ((self.next % tenants) as usize, self.next / tenants);
        self.next += 1;
        let (Some(own), Some(token)) = (self.manifests.get_mut(tenant), self.tokens.get(tenant))
        else {
            return Err(Failed("a fleet needs a tenant".to_owned()));
        };
        let body = fleet::body(&self.options, tenant, round, own);
        let begun = Instant::now();
        post(self.line.to(place, token)?, &body)?;
        let rows = (self.options.tables * self.options.rows) as u64;
        Ok(Step { rows, ack: begun.elapsed() })
    }

    fn check(&mut self, place: &Place) -> Result<Verdict, Failed> {
        let tenant = self.random.below(self.tokens.len());
        self.ask(place, tenant)
    }

    fn check_all(&mut self, place: &Place) -> Result<Verdict, Failed> {
        let mut verdict = Verdict::default();
        for tenant in 0..self.tokens.len() {
            verdict.merge("fleet", self.ask(place, tenant)?);
        }
        Ok(verdict)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chapters_have_rows_and_tables_of_their_own() {
        let options = shopfloor::Options {
            seed: 1,
            machines: 2,
            seconds: 5,
            start_s: 1_800_000_000,
            late_percent: 0.0,
            resent_percent: 0.0,
            table: "live".to_owned(),
        };
        let text = |number| {
            let (mut floor, table) = chapter(&options, number);
            let mut body = Vec::new();
            assert_eq!(floor.fill(&mut body, 100).lines, 10);
            (table, String::from_utf8(body).unwrap())
        };
        let ((first, one), (second, two)) = (text(0), text(1));
        assert_eq!((first.as_str(), second.as_str()), ("live_0", "live_1"));
        assert!(one.starts_with("live_0,") && two.starts_with("live_1,"));
        assert_ne!(one.replace("live_0", ""), two.replace("live_1", ""));
        assert_eq!(text(0).1, one);
    }
}
