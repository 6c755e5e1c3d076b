//! Sending batches of line protocol over several connections and timing each answer.
//!
//! Owns: who sends which batch when, and what an ack's time is. Without a pace each connection
//! takes the next batch when it has its answer. With a pace every batch is due at a time of its
//! own and its ack counts from then, so that a server that falls behind is seen to.
//! Never: takes anything but a success for an ack.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use crate::{
    http::{Connection, tls},
    server::Failed,
};

/// Where rows are posted.
pub const WRITE: &str = "/api/v3/write_lp?db=default&precision=nanosecond";
/// How long a batch is offered to a server that says it is busy.
const PATIENCE: Duration = Duration::from_secs(600);
/// How long a busy server is left alone.
const BACK_OFF: Duration = Duration::from_millis(50);

/// One request's worth of rows.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// Line protocol.
    pub body: Vec<u8>,
    /// Its lines.
    pub lines: u64,
    /// Whose it is: the position of a token.
    pub caller: usize,
}

/// What sending came to.
#[derive(Debug, Default)]
pub struct Sent {
    /// Time of each acked request, from its first byte (or from when it was due) to the end of
    /// its answer.
    pub acks: Vec<Duration>,
    /// Wall time from the first byte of all to the last answer.
    pub wall: Duration,
    /// Requests that the server put off as busy and that were sent again.
    pub put_off: u64,
}

/// How to send.
#[derive(Debug)]
pub struct Plan<'a> {
    /// The server.
    pub base: &'a str,
    /// Its CA, PEM.
    pub ca_pem: &'a str,
    /// The tokens of the callers.
    pub tokens: &'a [String],
    /// Connections at the same time.
    pub connections: usize,
    /// Rows per second of all connections together; as fast as it goes if `None`.
    pub rows_per_s: Option<f64>,
}

/// Posts one batch until it is acked whole; how often the server put it off.
pub fn post(connection: &mut Connection, body: &[u8]) -> Result<u64, Failed> {
    let begun = Instant::now();
    let mut put_off = 0;
    loop {
        let (status, answer) = connection.request("POST", WRITE, body)?;
        match status {
            200..300 => return Ok(put_off),
            429 | 503 if begun.elapsed() < PATIENCE => {
                put_off += 1;
                std::thread::park_timeout(BACK_OFF);
            }
            _ => {
                let text = String::from_utf8_lossy(&answer);
                return Err(Failed(format!("a batch was answered {status}: {text}")));
            }
        }
    }
}

/// When each batch is due, from the start.
fn due(batches: &[Batch], rows_per_s: f64) -> Vec<Duration> {
    let mut rows = 0;
    let mut at = |batch: &Batch| {
        let due = Duration::from_secs_f64(rows as f64 / rows_per_s);
        rows += batch.lines;
        due
    };
    batches.iter().map(&mut at).collect()
}

/// Waits until `at`.
pub fn wait_until(at: Instant) {
    while let Some(left) = at.checked_duration_since(Instant::now()).filter(|d| !d.is_zero()) {
        std::thread::park_timeout(left);
    }
}

/// Sends every batch; fails on the first that is not acked whole.
pub fn send_all(
    plan: &Plan<'_>,
    batches: &[Batch],
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Sent, Failed> {
    let tls = tls(plan.ca_pem)?;
    let mut open = Vec::new();
    for _ in 0..plan.connections {
        let mut connection = Connection::open(plan.base, &tls, "")?;
        // The handshake is not part of the load.
        connection.request("GET", "/health", b"")?;
        open.push(connection);
    }
    let due = plan.rows_per_s.map(|rate| due(batches, rate)).unwrap_or_default();
    let next = AtomicUsize::new(0);
    let started = Instant::now();
    let one = |mut connection: Connection| {
        let mut sent = Sent::default();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(batch) = batches.get(at) else { return Ok(sent) };
            let begun = due.get(at).map(|after| started + *after);
            if let Some(begun) = begun {
                wait_until(begun);
            }
            let begun = begun.unwrap_or_else(Instant::now);
            let token = plan.tokens.get(batch.caller).map(String::as_str).unwrap_or_default();
            token.clone_into(&mut connection.token);
            sent.put_off += post(&mut connection, &batch.body)?;
            sent.acks.push(begun.elapsed());
            progress(batch.lines);
        }
    };
    let one = &one;
    let results: Vec<Result<Sent, Failed>> = std::thread::scope(|scope| {
        let work: Vec<_> =
            open.into_iter().map(|connection| scope.spawn(move || one(connection))).collect();
        work.into_iter()
            .map(|w| w.join().unwrap_or_else(|_| Err(Failed("a sender panicked".into()))))
            .collect()
    });
    let mut all = Sent { wall: started.elapsed(), ..Sent::default() };
    for sent in results {
        let mut sent = sent?;
        all.acks.append(&mut sent.acks);
        all.put_off += sent.put_off;
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_due_when_the_rows_before_it_are_through() {
        let batches: Vec<Batch> =
            [100, 50, 10].map(|lines| Batch { lines, ..Batch::default() }).into();
        let seconds: Vec<f64> = due(&batches, 100.0).iter().map(Duration::as_secs_f64).collect();
        assert_eq!(seconds, [0.0, 1.0, 1.5]);
    }
}
