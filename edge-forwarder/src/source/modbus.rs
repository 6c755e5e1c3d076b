//! Modbus TCP: registers of a device, read every so often.
//!
//! Owns: the connection, the schedule, and the record of polls that gave nothing.
//! Never: writes to a device; has more than one request on its way; waits for room, because a
//! moment does not come back; catches up polls that were missed.
//! Invariant: E8 every poll of the schedule is a row or counted in a gap `poll_missed`.

pub mod map;

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use millrace_platform::{
    clock::Clock,
    net::{Dialer, Stream},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_modbus::{
    client::{Reader, tcp::attach_slave},
    slave::Slave,
};

use super::Sink;
use crate::gap::{Cause, Gap};
use map::{Area, Image, Read, Register};

/// Missed polls become a gap this often while a device does not answer.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// A device and its mapping.
#[derive(Debug, Clone, PartialEq)]
pub struct Device {
    /// The source's name is `modbus-` and this.
    pub name: String,
    /// Host name or address.
    pub host: String,
    /// Normally 502.
    pub port: u16,
    /// The unit behind a gateway.
    pub unit: u8,
    /// From one poll to the next.
    pub interval: Duration,
    /// How long one request may take.
    pub timeout: Duration,
    /// The table.
    pub table: String,
    /// Tags of every row.
    pub tags: BTreeMap<String, String>,
    /// What to read.
    pub registers: Vec<Register>,
}

/// A dialled stream, with the name that the client wants of it.
struct Link(Box<dyn Stream>);

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Link")
    }
}

impl AsyncRead for Link {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Link {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// Polls that gave no row and are not recorded yet.
#[derive(Debug, Default)]
struct Missed {
    any: bool,
    polls: u64,
    from_ns: i64,
    why: String,
    since: Duration,
}

impl Missed {
    fn add(&mut self, polls: u64, sink: &Sink, why: String) {
        if !self.any {
            self.any = true;
            (self.from_ns, self.since) = (sink.clock.now_ns(), sink.clock.monotonic());
        }
        self.polls += polls;
        self.why = why;
    }

    /// Records them, if there are any, at once or when they have waited.
    fn tell(&mut self, sink: &Sink, now: bool) {
        let waited = sink.clock.monotonic().saturating_sub(self.since);
        if !self.any || !(now || waited >= TELL_EVERY) {
            return;
        }
        let missed = std::mem::take(self);
        let end = sink.clock.now_ns();
        let mut gap = Gap::new(&sink.name, Cause::PollMissed, end, missed.polls, &missed.why);
        gap.from_ns = missed.from_ns.min(end);
        sink.queue.note(gap);
    }
}

/// How long something may take.
struct Patience {
    clock: Arc<dyn Clock>,
    timeout: Duration,
}

impl Patience {
    async fn within<T>(&self, work: impl Future<Output = T>) -> Result<T, String> {
        tokio::select! {
            done = work => Ok(done),
            () = self.clock.sleep(self.timeout) => {
                Err(format!("no answer within {} ms", self.timeout.as_millis()))
            }
        }
    }

    /// One request. An exception of the device is an answer; all else ends the connection.
    async fn read(
        &self,
        device: &mut tokio_modbus::client::Context,
        read: &Read,
    ) -> Result<Result<Vec<u16>, String>, String> {
        let (at, count) = (read.address, read.count);
        let bits = |read: Vec<bool>| read.into_iter().map(u16::from).collect();
        let answer = match read.area {
            Area::Holding => self.within(device.read_holding_registers(at, count)).await?,
            Area::Input => self.within(device.read_input_registers(at, count)).await?,
            Area::Coil => self.within(device.read_coils(at, count)).await?.map(|r| r.map(bits)),
            Area::Discrete => {
                self.within(device.read_discrete_inputs(at, count)).await?.map(|r| r.map(bits))
            }
        };
        answer.map(|a| a.map_err(|e| format!("{read}: {e}"))).map_err(|e| e.to_string())
    }
}

struct Poller {
    device: Device,
    dialer: Arc<dyn Dialer>,
    clock: Arc<dyn Clock>,
    reads: Vec<Read>,
    head: String,
    open: Option<tokio_modbus::client::Context>,
}

impl Poller {
    fn new(device: Device, dialer: Arc<dyn Dialer>, clock: Arc<dyn Clock>) -> Self {
        let mut head = map::escaped(&device.table);
        for (name, value) in device.tags.iter().filter(|(_, value)| !value.is_empty()) {
            head.push_str(&format!(",{}={}", map::escaped(name), map::escaped(value)));
        }
        let reads = map::plan(&device.registers);
        Self { device, dialer, clock, reads, head, open: None }
    }

    fn patience(&self) -> Patience {
        Patience { clock: Arc::clone(&self.clock), timeout: self.device.timeout }
    }

    /// Reads everything once. The row, and what was not read.
    async fn poll(&mut self) -> (Option<String>, Option<String>) {
        let patience = self.patience();
        let mut device = match self.open.take() {
            Some(device) => device,
            None => {
                let dial = self.dialer.dial(&self.device.host, self.device.port);
                match patience.within(dial).await {
                    Ok(Ok(stream)) => attach_slave(Link(stream), Slave(self.device.unit)),
                    Ok(Err(e)) => return (None, Some(e.to_string())),
                    Err(why) => return (None, Some(why)),
                }
            }
        };
        let (mut image, mut wrong) = (Image::default(), None);
        for read in &self.reads {
            match patience.read(&mut device, read).await {
                Ok(Ok(words)) => image.put(read, words),
                Ok(Err(exception)) => wrong = Some(exception),
                // An answer that comes late would be taken for that of the next request, so the
                // connection goes, and with it this poll.
                Err(why) => return (None, Some(why)),
            }
        }
        self.open = Some(device);
        let now = self.clock.now_ns();
        let row = map::row(&self.head, &self.device.registers, &image, now);
        let nothing = || "the device gave no number".to_owned();
        let wrong = wrong.or_else(|| row.is_none().then(nothing));
        (row, wrong)
    }
}

/// One row per unit that is configured, so that who reads the table finds them.
fn units(device: &Device, now_ns: i64) -> String {
    let with = device.registers.iter().filter_map(|r| Some((r, r.unit.as_deref()?)));
    with.map(|(r, unit)| {
        let text = unit.replace(['"', '\\', '\n', '\r'], "_");
        let (table, field) = (map::escaped(&device.table), map::escaped(&r.field));
        format!("edge_units,field={field},table={table} unit=\"{text}\" {now_ns}\n")
    })
    .collect()
}

/// Polls for ever.
pub async fn run(sink: Sink, device: Device, dialer: Arc<dyn Dialer>) {
    let interval = device.interval;
    let described = units(&device, sink.clock.now_ns());
    sink.lines(described.as_bytes(), &|_| None, true).await;
    let mut poller = Poller::new(device, dialer, Arc::clone(&sink.clock));
    let mut missed = Missed::default();
    let mut due = sink.clock.monotonic();
    loop {
        let (row, wrong) = poller.poll().await;
        if let Some(row) = &row
            && sink.lines(row.as_bytes(), &|_| None, true).await < row.len()
        {
            missed.add(1, &sink, "the queue's thread does not answer".to_owned());
        }
        match wrong {
            // A row with holes is a row; its holes are named without a count.
            Some(why) => missed.add(u64::from(row.is_none()), &sink, why),
            None => missed.tell(&sink, true),
        }
        due += interval;
        let now = sink.clock.monotonic();
        let late = now.saturating_sub(due).as_nanos() / interval.as_nanos().max(1);
        if let Ok(late @ 1..) = u32::try_from(late) {
            missed.add(u64::from(late), &sink, format!("{late} polls were not done in time"));
            due += interval * late;
        }
        missed.tell(&sink, false);
        sink.clock.sleep(due.saturating_sub(now)).await;
    }
}

#[cfg(test)]
mod tests;
