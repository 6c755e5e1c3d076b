//! MTConnect agents over HTTP, versions 1.3 to 2.x: streamed, or asked every so often.
//!
//! Owns: the token (run of the agent, next number), which is stored in one step with the rows
//! before it, so a restart goes on behind the last stored observation.
//! Never: asks for a number twice after it is stored; leaves a number out without counting it.
//! Invariant: E8 each number of a run of the agent is a row, not wanted, or inside a gap (unless a
//! path is given: then the agent leaves out numbers by itself).

pub mod document;
pub mod multipart;
pub mod rows;
pub mod token;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use millrace_platform::net::Dialer;

use super::{
    Sink,
    http::{Http, HttpError},
    peer::Peer,
    rate::Rate,
};
use crate::{
    backoff::Backoff,
    gap::{Cause, Gap},
    mapping::{
        Mapping,
        row::{Units, escaped},
        time::rfc3339,
    },
};
use document::{Document, DocumentError, Header, Observation};
use multipart::{PartError, Parts};
use rows::Made;
use token::Token;

/// First and longest pause after a failure.
const AGAIN: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));
/// How long an agent may take for an answer.
const ANSWER: Duration = Duration::from_secs(30);
/// The agents' clock is told this often.
const SKEW_EVERY: Duration = Duration::from_secs(3600);

/// An agent and what to take from it.
#[derive(Debug, Clone, PartialEq)]
pub struct Agent {
    /// The source's name is `mtconnect-` and this.
    pub name: String,
    /// Where.
    pub peer: Peer,
    /// One device of it; all, if it is not given.
    pub device: Option<String>,
    /// What of it, as XPath, percent-encoded already.
    pub path: Option<String>,
    /// Streamed, not asked.
    pub stream: bool,
    /// Between two parts of the stream, or two requests.
    pub interval: Duration,
    /// A stream says at least this often that it lives.
    pub heartbeat: Duration,
    /// Observations of one document at most.
    pub count: u32,
    /// Bytes of a document at most.
    pub document_max: usize,
    /// Rows per second at most.
    pub rows_per_s: u64,
    /// Where it goes.
    pub mapping: Mapping,
}

/// Why a round ended.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Http(#[from] HttpError),
    #[error(transparent)]
    Document(#[from] DocumentError),
    #[error(transparent)]
    Part(#[from] PartError),
    #[error("the agent refused: {0}")]
    Refused(String),
    #[error("the agent's answer (status {0}) is no document of an agent")]
    Status(u16),
}

impl Failure {
    /// Whether the document is at fault, so that asking for less of it may help.
    fn is_of_the_document(&self) -> bool {
        matches!(
            self,
            Self::Document(_)
                | Self::Part(PartError::TooLong(_))
                | Self::Http(HttpError::TooLong(_))
        )
    }
}

/// What a document of a stream or a poll meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// There is more to ask for at once.
    More,
    /// All of the agent's buffer is read.
    UpToDate,
    /// The agent has to be asked where it is.
    Resync,
}

struct Reader<'a> {
    sink: &'a Sink,
    agent: &'a Agent,
    http: Http,
    token: Option<Token>,
    /// Units by data item, and of which run of the agent.
    units: Option<(u64, BTreeMap<String, String>)>,
    told: Units,
    /// Observations to ask for; fewer after a document that does not read.
    count: u32,
    skew_told: Option<Duration>,
}

/// Where a document was asked from, and what its observations became.
#[derive(Default)]
struct Taken {
    lines: Vec<String>,
    /// The token behind each line.
    after: Vec<u64>,
    gaps: Vec<Gap>,
    refused: (u64, String),
}

impl Reader<'_> {
    fn now_ns(&self) -> i64 {
        self.sink.clock.now_ns()
    }

    /// A document's status and bytes.
    async fn bytes(&self, what: &str) -> Result<(u16, bytes::Bytes), Failure> {
        let device = self.agent.device.as_ref().map(|d| format!("/{d}")).unwrap_or_default();
        let answer = self.http.get(&format!("{device}/{what}"), ANSWER).await?;
        let status = answer.status;
        Ok((status, answer.whole(self.agent.document_max, ANSWER).await?))
    }

    async fn document(&self, what: &str) -> Result<Document, Failure> {
        let (status, body) = self.bytes(what).await?;
        // Errors have a status of their own in some versions; the document says more.
        match document::read(&body) {
            Ok(document) => Ok(document),
            Err(_) if status != 200 => Err(Failure::Status(status)),
            Err(e) => Err(e.into()),
        }
    }

    fn query(&self, rest: &str) -> String {
        match (&self.agent.path, rest) {
            (None, "") => String::new(),
            (None, rest) => format!("?{rest}"),
            (Some(path), "") => format!("?path={path}"),
            (Some(path), rest) => format!("?path={path}&{rest}"),
        }
    }

    /// The units of this run of the agent. Without them rows have none, which is no reason to
    /// lose them.
    async fn probe(&mut self, instance: u64) {
        if self.units.as_ref().is_some_and(|(of, _)| *of == instance) {
            return;
        }
        match self.document("probe").await {
            Ok(Document::Devices(_, units)) => self.units = Some((instance, units)),
            Ok(_) => self.units = Some((instance, BTreeMap::new())),
            Err(error) => tracing::warn!(source = self.sink.name, %error, "no probe of the agent"),
        }
    }

    /// Where the agent is, and its current values; none of them if one cannot be read.
    async fn current(&self) -> Result<(Header, Vec<Observation>), Failure> {
        let (status, body) = self.bytes(&format!("current{}", self.query(""))).await?;
        match document::read(&body) {
            Ok(Document::Streams(header, observations)) => Ok((header, observations)),
            Ok(Document::Error(errors)) => Err(refused(&errors)),
            Ok(Document::Devices(..)) => Err(DocumentError::Content("no streams").into()),
            Err(_) if status != 200 => Err(Failure::Status(status)),
            Err(e) => match document::read_header(&body) {
                Some(header) => Ok((header, Vec::new())),
                None => Err(e.into()),
            },
        }
    }

    /// Asks where the agent is, and goes on from what it still has: the first time without a
    /// gap, otherwise with one that counts what it has no more.
    async fn resync(&mut self) -> Result<(), Failure> {
        let (header, observations) = self.current().await?;
        self.probe(header.instance).await;
        let now = self.now_ns();
        let fresh = |next| Token { instance: header.instance, next, last_ns: now };
        let mut taken = Taken::default();
        let begin = match self.token {
            // What is older than the buffer: the last value of each item.
            None => {
                self.old(&header, observations, 0, &mut taken);
                fresh(header.first)
            }
            Some(token) if token.instance != header.instance || token.next > header.next => {
                taken.gaps.push(token.restarted(&self.sink.name, header.instance, now));
                self.old(&header, observations, 0, &mut taken);
                fresh(header.first)
            }
            Some(token) if token.next < header.first => {
                let found = self.old(&header, observations, token.next, &mut taken);
                let detail = format!(
                    "the agent's buffer begins at {}; {found} of these were still current values and are stored",
                    header.first
                );
                let mut gap = token.lost(&self.sink.name, header.first - 1, now, &detail);
                gap.rows -= found.min(gap.rows);
                taken.gaps.push(gap);
                fresh(header.first)
            }
            Some(token) => token,
        };
        self.skew(&header, &mut taken);
        self.finish(taken, begin).await;
        Ok(())
    }

    /// Takes current values from `least` on that are no longer in the agent's buffer. How many.
    fn old(
        &mut self,
        header: &Header,
        observations: Vec<Observation>,
        least: u64,
        taken: &mut Taken,
    ) -> u64 {
        let mut found = 0;
        for o in observations {
            let wanted = o.sequence().is_some_and(|s| s >= least && s < header.first);
            if wanted {
                let before = (taken.lines.len(), taken.refused.0);
                self.one(&o, header.first, taken);
                // One that is not wanted is no loss either.
                found += u64::from(before.1 == taken.refused.0);
            }
        }
        found
    }

    /// One observation; the token behind it is `after`.
    fn one(&mut self, o: &Observation, after: u64, taken: &mut Taken) {
        let none = BTreeMap::new();
        let units = self.units.as_ref().map_or(&none, |(_, units)| units);
        match rows::row(o, &self.agent.mapping, units, &mut self.told, self.sink.clock.now_ns()) {
            Made::Row(lines) => {
                taken.after.extend(lines.iter().map(|_| after));
                taken.lines.extend(lines);
            }
            Made::Skipped => {}
            Made::Refused(why) => taken.refused = (taken.refused.0 + 1, why),
        }
    }

    /// How far the agent's clock is from ours, once in a while.
    fn skew(&mut self, header: &Header, taken: &mut Taken) {
        let now = self.sink.clock.monotonic();
        if self.skew_told.is_some_and(|at| now.saturating_sub(at) < SKEW_EVERY) {
            return;
        }
        let Some(theirs) = rfc3339(&header.created) else { return };
        self.skew_told = Some(now);
        let ours = self.now_ns();
        #[expect(clippy::cast_precision_loss, reason = "seconds for people")]
        let seconds = (theirs - ours) as f64 / 1e9;
        let name = escaped(&self.sink.name);
        taken.lines.push(format!("edge_skew,source={name} seconds={seconds} {ours}\n"));
        taken.after.push(header.next);
    }

    /// Makes what was taken durable, together with the token behind it.
    async fn finish(&mut self, mut taken: Taken, end: Token) {
        let now = self.now_ns();
        let (count, why) = std::mem::take(&mut taken.refused);
        if count > 0 {
            taken.gaps.push(Gap::new(&self.sink.name, Cause::Rejected, now, count, &why));
        }
        let begin = self.token.filter(|t| t.instance == end.instance).unwrap_or(end);
        let after = &taken.after;
        let position = |rows: usize| {
            let next = match rows {
                all if all >= after.len() => end.next,
                0 => begin.next,
                rows => after.get(rows - 1).copied().unwrap_or(begin.next),
            };
            Some(Token { next, last_ns: now, ..end }.encode())
        };
        if !taken.lines.is_empty() || !taken.gaps.is_empty() {
            self.sink.store(&taken.lines, &taken.gaps, &position).await;
        }
        self.token = Some(Token { last_ns: now, ..end });
    }

    /// Takes a document that was asked for from the token on.
    async fn take(&mut self, document: Document) -> Result<Next, Failure> {
        let Some(token) = self.token else { return Ok(Next::Resync) };
        let (header, mut observations) = match document {
            Document::Streams(header, observations) => (header, observations),
            Document::Error(errors) => {
                let gone = errors.iter().any(|(code, _)| code == "OUT_OF_RANGE");
                return if gone { Ok(Next::Resync) } else { Err(refused(&errors)) };
            }
            Document::Devices(..) => return Err(DocumentError::Content("no streams").into()),
        };
        if header.instance != token.instance || header.next < token.next {
            return Ok(Next::Resync);
        }
        let now = self.now_ns();
        let mut taken = Taken::default();
        let mut begin = token.next;
        let filtered = self.agent.path.is_some() || self.agent.device.is_some();
        observations.retain(|o| o.sequence().is_some_and(|s| s >= token.next && s < header.next));
        observations.sort_by_key(Observation::sequence);
        let numbers: BTreeSet<u64> =
            observations.iter().filter_map(Observation::sequence).collect();
        // Some agents begin at what they have without saying that it is not what was asked for.
        let lowest = numbers.first().copied().unwrap_or(header.next);
        if header.first > begin && lowest >= header.first {
            let detail = format!("the agent's buffer begins at {}", header.first);
            taken.gaps.push(token.lost(&self.sink.name, header.first - 1, now, &detail));
            begin = header.first;
        }
        let due = header.next.saturating_sub(begin);
        let missing = due.saturating_sub(numbers.len() as u64);
        if missing > 0 && !filtered {
            let detail = format!("the agent's answer lacks {missing} of these numbers");
            let begun = Token { next: begin, ..token };
            let mut gap = begun.lost(&self.sink.name, header.next - 1, now, &detail);
            gap.rows = missing;
            taken.gaps.push(gap);
        }
        for o in &observations {
            let after = o.sequence().map_or(token.next, |s| s + 1);
            self.one(o, after, &mut taken);
        }
        self.skew(&header, &mut taken);
        self.finish(taken, Token { next: header.next, ..token }).await;
        Ok(if header.next <= header.last { Next::More } else { Next::UpToDate })
    }

    /// A document with a single number that does not read: the number is counted, and passed.
    async fn pass(&mut self, why: &Failure) {
        let Some(token) = self.token else { return };
        let now = self.now_ns();
        let mut gap = token.lost(&self.sink.name, token.next, now, &why.to_string());
        gap.cause = Cause::Rejected;
        let taken = Taken { gaps: vec![gap], ..Taken::default() };
        self.finish(taken, Token { next: token.next + 1, ..token }).await;
    }

    fn from(&self, more: &str) -> String {
        let next = self.token.map_or(0, |t| t.next);
        self.query(&format!("from={next}&count={}{more}", self.count))
    }

    /// Asks once. A document that does not read is asked for in smaller pieces.
    async fn poll(&mut self) -> Result<Next, Failure> {
        let asked = self.document(&format!("sample{}", self.from(""))).await;
        let done = match asked {
            Ok(document) => self.take(document).await,
            Err(e) => Err(e),
        };
        match done {
            Err(e) if e.is_of_the_document() && self.count > 1 => {
                self.count = (self.count / 4).max(1);
                tracing::warn!(source = self.sink.name, error = %e, count = self.count, "asking for less");
                Ok(Next::More)
            }
            Err(e) if e.is_of_the_document() => {
                // Is there a number at all? Otherwise the agent itself is broken.
                let (header, _) = self.current().await?;
                let there = self.token.is_some_and(|t| {
                    t.instance == header.instance && t.next >= header.first && t.next < header.next
                });
                if !there {
                    return Ok(Next::Resync);
                }
                self.pass(&e).await;
                self.count = self.agent.count;
                Ok(Next::More)
            }
            Ok(next) => {
                self.count = self.count.saturating_mul(2).min(self.agent.count);
                Ok(next)
            }
            Err(e) => Err(e),
        }
    }

    /// Reads a stream to its end.
    async fn stream(&mut self, rate: &mut Rate, worked: &mut bool) -> Result<Next, Failure> {
        let millis = self.agent.heartbeat.as_millis();
        let more = format!("&interval={}&heartbeat={millis}", self.agent.interval.as_millis());
        let device = self.agent.device.as_ref().map(|d| format!("/{d}")).unwrap_or_default();
        let path = format!("{device}/sample{}", self.from(&more));
        let mut answer = self.http.get(&path, ANSWER).await?;
        let Some(boundary) = multipart::boundary(&answer.content_type) else {
            // An agent that does not stream, or an error.
            let body = answer.whole(self.agent.document_max, ANSWER).await?;
            return self.take(document::read(&body)?).await;
        };
        let mut parts = Parts::new(&boundary, self.agent.document_max);
        let silence = self.agent.heartbeat * 2 + Duration::from_secs(1);
        loop {
            while let Some(part) = parts.next_part()? {
                let before = self.token.map_or(0, |t| t.next);
                let next = self.take(document::read(&part)?).await?;
                if next == Next::Resync {
                    return Ok(next);
                }
                *worked = true;
                let rows = self.token.map_or(0, |t| t.next).saturating_sub(before);
                self.wait(rate, rows).await;
            }
            match answer.piece(silence).await? {
                Some(piece) => parts.push(&piece),
                None => return Ok(Next::More),
            }
        }
    }

    async fn wait(&self, rate: &mut Rate, rows: u64) {
        let pause = rate.take(rows, self.sink.clock.monotonic());
        if !pause.is_zero() {
            self.sink.clock.sleep(pause).await;
        }
    }

    /// Until something fails.
    async fn follow(&mut self, rate: &mut Rate, worked: &mut bool) -> Result<(), Failure> {
        self.resync().await?;
        *worked = true;
        let mut reading = true;
        loop {
            let before = self.token.map_or(0, |t| t.next);
            // Small pieces, and what was missed, are asked for; then the stream goes on.
            let streams = self.agent.stream && !reading;
            let next = if streams {
                match self.stream(rate, worked).await {
                    Err(e) if e.is_of_the_document() => {
                        reading = true;
                        continue;
                    }
                    done => done?,
                }
            } else {
                let next = self.poll().await?;
                let now = self.token.map_or(0, |t| t.next);
                self.wait(rate, now.saturating_sub(before)).await;
                next
            };
            *worked = true;
            match next {
                Next::Resync => {
                    let stood = self.token;
                    self.resync().await?;
                    let place = |t: Option<Token>| t.map(|t| (t.instance, t.next));
                    if place(stood) == place(self.token) {
                        self.sink.clock.sleep(self.agent.interval.max(AGAIN.0)).await;
                    }
                }
                Next::More if streams => {
                    // It was closed by the agent: not at once again, if it gave nothing.
                    if self.token.map_or(0, |t| t.next) == before {
                        self.sink.clock.sleep(self.agent.interval.max(AGAIN.0)).await;
                    }
                    reading = true;
                }
                Next::More => {}
                Next::UpToDate if self.agent.stream && !streams => reading = false,
                Next::UpToDate => self.sink.clock.sleep(self.agent.interval).await,
            }
        }
    }
}

fn refused(errors: &[(String, String)]) -> Failure {
    let said: Vec<String> = errors.iter().map(|(code, text)| format!("{code}: {text}")).collect();
    Failure::Refused(said.join("; "))
}

/// Reads for ever.
pub async fn run(sink: Sink, agent: Agent, dialer: Arc<dyn Dialer>) {
    let http = Http { peer: agent.peer.clone(), dialer, clock: Arc::clone(&sink.clock) };
    let mut rate = Rate::new(agent.rows_per_s);
    let mut backoff = Backoff::new(AGAIN.0, AGAIN.1);
    let token = sink.queue.position(&sink.name).and_then(|p| Token::decode(&p));
    let mut reader = Reader {
        sink: &sink,
        agent: &agent,
        http,
        token,
        units: None,
        told: Units::default(),
        count: agent.count,
        skew_told: None,
    };
    loop {
        let mut worked = false;
        if let Err(error) = reader.follow(&mut rate, &mut worked).await {
            tracing::warn!(source = sink.name, %error, "the agent cannot be read now");
        }
        if worked {
            backoff.reset();
        }
        sink.clock.sleep(backoff.pause(sink.entropy.as_ref())).await;
    }
}

#[cfg(test)]
mod tests;
