//! One connection after its start-up: statements in, rows out.
//!
//! Owns: prepared statements, portals, and the transaction state that drivers expect to see. There
//! is nothing to commit: every statement reads one snapshot of its own.
//! Never: plans or runs anything but through the query engine, so that its guards, admission and
//! limits hold; keeps a query that its client has left, cancelled, or may not ask any more; waits
//! for a client that does not read longer than [`SLOW_READER`].
//! Invariant: after an error in the extended protocol nothing is done until Sync.

mod extended;
mod portal;
mod simple;
mod statement;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use arrow::datatypes::SchemaRef;
use bytes::BufMut;
use futures::StreamExt;
use millrace_control::{Principal, ReadScope};
use millrace_query::{Params, QueryAnswer, postgres};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};

use self::{
    portal::{Portal, Running},
    statement::Statement,
};
use super::{
    cancel::Place,
    message::{self, Broken, Frontend, Out, put_text},
    refusal::{Reach, Refusal},
    value::{self, Format},
};
use crate::api::State;

/// Bytes that are gathered before they are sent.
const SEND_BYTES: usize = 64 * 1024;
/// How long a client may take to read them.
const SLOW_READER: Duration = Duration::from_secs(60);
/// How long a client may say nothing.
const IDLE_MAX: Duration = Duration::from_secs(3600);
/// Prepared statements of one connection, and portals.
const STATEMENTS_MAX: usize = 256;
const PORTALS_MAX: usize = 64;
/// Statements of one text of the simple protocol.
const SCRIPT_MAX: usize = 100;
/// Bytes of the texts of prepared statements, and of the values of portals.
const KEPT_BYTES_MAX: usize = 4 << 20;

/// As it is told in ReadyForQuery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transaction {
    None,
    Open,
    Failed,
}

/// Why a statement, or the connection, ends early.
enum Stop {
    /// The statement was refused; the connection goes on.
    Refused(Refusal),
    /// The connection ends with this.
    Fatal(Refusal),
    /// The connection has ended.
    Broken(Broken),
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<millrace_query::QueryError> for Stop {
    fn from(e: millrace_query::QueryError) -> Self {
        Self::Refused(e.into())
    }
}

impl From<Broken> for Stop {
    fn from(e: Broken) -> Self {
        Self::Broken(e)
    }
}

impl From<std::io::Error> for Stop {
    fn from(e: std::io::Error) -> Self {
        Self::Broken(e.into())
    }
}

/// Who is connected, and to what.
pub(super) struct Who {
    pub(super) state: Arc<State>,
    pub(super) principal: Principal,
    pub(super) scope: ReadScope,
    pub(super) user: String,
    pub(super) database: String,
    pub(super) place: Place,
}

/// See the module head.
pub(super) struct Session<R, W> {
    who: Who,
    from: BufReader<R>,
    to: W,
    out: Out,
    statements: BTreeMap<String, Arc<Statement>>,
    portals: BTreeMap<String, Portal>,
    transaction: Transaction,
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Session<R, W> {
    pub(super) fn new(who: Who, from: BufReader<R>, to: W) -> Self {
        let (statements, portals) = (BTreeMap::new(), BTreeMap::new());
        let transaction = Transaction::None;
        Self { who, from, to, out: Out::default(), statements, portals, transaction }
    }

    /// Serves until the client goes, or may not go on.
    pub(super) async fn serve(mut self) {
        self.ready();
        let end = loop {
            match self.turn().await {
                Ok(true) => {}
                Ok(false) => return,
                Err(end) => break end,
            }
        };
        let last = match end {
            Stop::Refused(refusal) | Stop::Fatal(refusal) => refusal,
            Stop::Broken(Broken::Gone(_)) => return,
            Stop::Broken(e) => Refusal::new("08P01", e.to_string()),
        };
        last.put(&mut self.out, Reach::Fatal);
        // The client may be gone; then nobody reads it.
        drop(self.flush().await);
    }

    /// One message; whether there may be another.
    async fn turn(&mut self) -> Result<bool, Stop> {
        // What the client has sent already is answered before anything is sent.
        if self.from.buffer().is_empty() {
            self.flush().await?;
        }
        let idle = self.who.state.clock.sleep(IDLE_MAX);
        let message = tokio::select! {
            message = message::next(&mut self.from) => message?,
            () = self.who.state.catalog.withdrawn(&self.who.principal) => {
                return Err(Stop::Fatal(Refusal::withdrawn()));
            }
            () = idle => {
                return Err(Stop::Fatal(Refusal::new("57P05", "nothing was asked for an hour")));
            }
        };
        match message {
            Frontend::Terminate => return Ok(false),
            Frontend::Query(text) => {
                if let Err(refusal) = refused(self.script(&text).await)? {
                    self.fail(&refusal);
                }
                self.portals.clear();
                self.ready();
            }
            Frontend::Sync => {
                // Outside a transaction this ends the one that the statements made.
                if self.transaction == Transaction::None {
                    self.portals.clear();
                }
                self.ready();
            }
            Frontend::Flush => self.flush().await?,
            other => {
                if let Err(refusal) = refused(self.extended(other).await)? {
                    self.fail(&refusal);
                    return self.skip().await;
                }
            }
        }
        Ok(true)
    }

    /// After an error nothing counts until Sync.
    async fn skip(&mut self) -> Result<bool, Stop> {
        loop {
            if self.from.buffer().is_empty() {
                self.flush().await?;
            }
            let idle = self.who.state.clock.sleep(IDLE_MAX);
            let message = tokio::select! {
                message = message::next(&mut self.from) => message?,
                () = idle => {
                    return Err(Stop::Fatal(Refusal::new("57P05", "no Sync came for an hour")));
                }
            };
            match message {
                Frontend::Sync => {
                    self.portals.clear();
                    self.ready();
                    return Ok(true);
                }
                Frontend::Terminate => return Ok(false),
                _ => {}
            }
        }
    }

    fn ready(&mut self) {
        let state = match self.transaction {
            Transaction::None => b'I',
            Transaction::Open => b'T',
            Transaction::Failed => b'E',
        };
        self.out.message(b'Z', |out| out.put_u8(state));
    }

    fn fail(&mut self, refusal: &Refusal) {
        refusal.put(&mut self.out, Reach::Error);
        if self.transaction == Transaction::Open {
            self.transaction = Transaction::Failed;
        }
    }

    async fn flush(&mut self) -> Result<(), Stop> {
        if self.out.buffer.is_empty() {
            return Ok(());
        }
        let buffer = std::mem::take(&mut self.out.buffer);
        let slow = self.who.state.clock.sleep(SLOW_READER);
        let sent = async {
            self.to.write_all(&buffer).await?;
            self.to.flush().await
        };
        tokio::select! {
            sent = sent => sent?,
            () = slow => return Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()),
        }
        Ok(())
    }

    /// Starts a query; ready when its columns are known.
    async fn start(&mut self, sql: &str, params: Params) -> Result<Running, Stop> {
        let state = Arc::clone(&self.who.state);
        let caller = Some(self.caller());
        let asked = state.query.run_for(self.who.scope, &self.who.database, sql, params, caller);
        let answer: QueryAnswer = self.unless_stopped(asked).await??;
        Ok(Running::new(answer))
    }

    /// Waits for something unless the statement is cancelled, the token withdrawn, or the client
    /// gone. One that has sent more already cannot be seen to go, but it will not go unread.
    async fn unless_stopped<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Stop> {
        let who = &self.who;
        let more = !self.from.buffer().is_empty();
        let gone = async {
            if more {
                return std::future::pending().await;
            }
            match self.from.fill_buf().await {
                Ok([]) => std::io::Error::from(std::io::ErrorKind::UnexpectedEof),
                Ok(_) => std::future::pending().await,
                Err(e) => e,
            }
        };
        tokio::select! {
            biased;
            () = who.place.cancelled.notified() => Err(Refusal::cancelled().into()),
            () = who.state.catalog.withdrawn(&who.principal) => {
                Err(Stop::Fatal(Refusal::withdrawn()))
            }
            done = work => Ok(done),
            gone = gone => Err(gone.into()),
        }
    }

    /// Sends rows, `most` of them or all for 0; whether that was all there are.
    async fn send(
        &mut self,
        running: &mut Running,
        formats: &[Format],
        most: u32,
    ) -> Result<bool, Stop> {
        let mut sent = 0;
        loop {
            while let Some(row) = running.row() {
                if most > 0 && sent == most {
                    running.put_back();
                    self.out.bare(b's');
                    return Ok(false);
                }
                put_row(&mut self.out, running.columns(), row, formats)?;
                sent += 1;
                if self.out.buffer.len() > SEND_BYTES {
                    self.flush().await?;
                }
            }
            let Some(rows) = running.rest() else { break };
            // Rows that are there go out while the next ones are made.
            self.flush().await?;
            match self.unless_stopped(rows.next()).await? {
                Some(batch) => running.take(batch?)?,
                None => running.end(),
            }
        }
        self.out.complete(&running.tag());
        Ok(true)
    }
}

/// Takes a refusal out of a result whose other ends end the connection.
fn refused(done: Result<(), Stop>) -> Result<Result<(), Refusal>, Stop> {
    match done {
        Ok(()) => Ok(Ok(())),
        Err(Stop::Refused(refusal)) => Ok(Err(refusal)),
        Err(other) => Err(other),
    }
}

/// The format of column `at`: none given is text, one is for all.
fn format_of(formats: &[Format], at: usize) -> Format {
    match formats {
        [] => Format::Text,
        [all] => *all,
        each => each.get(at).copied().unwrap_or(Format::Text),
    }
}

fn describe_rows(out: &mut Out, schema: &SchemaRef, formats: &[Format]) {
    out.message(b'T', |out| {
        out.put_u16(schema.fields().len() as u16);
        for (at, field) in schema.fields().iter().enumerate() {
            let ty = postgres::types::of(field.data_type());
            put_text(out, field.name());
            // Of no table and no column that has a number.
            out.put_u32(0);
            out.put_u16(0);
            out.put_u32(ty.oid);
            out.put_i16(ty.len);
            out.put_i32(-1);
            out.put_u16(u16::from(format_of(formats, at) == Format::Binary));
        }
    });
}

fn put_row(
    out: &mut Out,
    columns: &[arrow::array::ArrayRef],
    row: usize,
    formats: &[Format],
) -> Result<(), Refusal> {
    let mut failed = None;
    out.message(b'D', |out| {
        out.put_u16(columns.len() as u16);
        for (at, column) in columns.iter().enumerate() {
            if let Err(e) = value::put(out, column, row, format_of(formats, at)) {
                failed.get_or_insert(e);
            }
        }
    });
    match failed {
        None => Ok(()),
        Some(e) => Err(Refusal::new("22000", format!("a value cannot be sent: {e}"))),
    }
}
