//! Modbus TCP: registers of a device, read every so often.
//!
//! Owns: the connection, the schedule, and the record of polls that gave nothing.
//! Never: writes to a device; has more than one request on its way; waits for room, because a
//! moment does not come back; catches up polls that were missed.
//! Invariant: E8 every poll of the schedule is a row or counted in a gap `poll_missed`.

pub mod map;

use std::{
    borrow::Cow,
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
use crate::{
    gap::{Cause, Gap},
    mapping::{
        Item, Mapping,
        row::{Rows, Units},
    },
};
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
    /// What to read.
    pub registers: Vec<Register>,
    /// Where it goes.
    pub mapping: Mapping,
}

/// What rules of Modbus devices may name beside captures.
pub const ATTRIBUTES: [&str; 3] = ["field", "area", "address"];

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
    units: Units,
    open: Option<tokio_modbus::client::Context>,
}

impl Poller {
    fn new(device: Device, dialer: Arc<dyn Dialer>, clock: Arc<dyn Clock>) -> Self {
        let reads = map::plan(&device.registers);
        Self { device, dialer, clock, reads, units: Units::default(), open: None }
    }

    fn patience(&self) -> Patience {
        Patience { clock: Arc::clone(&self.clock), timeout: self.device.timeout }
    }

    /// What was read, as rows, new units first; and what no rule could take.
    fn rows(&mut self, image: &Image, now: i64) -> (Vec<String>, Option<String>) {
        let (mut rows, mut lines, mut wrong) = (Rows::default(), Vec::new(), None);
        for r in &self.device.registers {
            let Some(value) = image.value(r) else { continue };
            let address = r.address.to_string();
            let attribute = |name: &str| match name {
                "field" => Some(Cow::Borrowed(r.field.as_str())),
                "area" => Some(Cow::Borrowed(r.area.name())),
                "address" => Some(Cow::Owned(address.clone())),
                _ => None,
            };
            let unit = r.unit.as_deref();
            match self.device.mapping.apply(Item {
                path: &r.field,
                value,
                unit,
                attribute: &attribute,
            }) {
                Ok(Some(mapped)) => {
                    let unit = mapped.unit.clone().unwrap_or_default();
                    lines.extend(self.units.row(&mapped.table, &mapped.field, &unit, now));
                    rows.add(mapped, now);
                }
                Ok(None) => {}
                Err(fault) => wrong = Some(fault.to_string()),
            }
        }
        lines.extend(rows.into_lines());
        (lines, wrong)
    }

    /// Reads everything once. The rows, and what was not read.
    async fn poll(&mut self) -> (Vec<String>, Option<String>) {
        let patience = self.patience();
        let mut device = match self.open.take() {
            Some(device) => device,
            None => {
                let dial = self.dialer.dial(&self.device.host, self.device.port);
                match patience.within(dial).await {
                    Ok(Ok(stream)) => attach_slave(Link(stream), Slave(self.device.unit)),
                    Ok(Err(e)) => return (Vec::new(), Some(e.to_string())),
                    Err(why) => return (Vec::new(), Some(why)),
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
                Err(why) => return (Vec::new(), Some(why)),
            }
        }
        self.open = Some(device);
        let now = self.clock.now_ns();
        let (rows, fault) = self.rows(&image, now);
        let nothing = || "the device gave no number".to_owned();
        let wrong = wrong.or(fault).or_else(|| rows.is_empty().then(nothing));
        (rows, wrong)
    }
}

/// Polls for ever.
pub async fn run(sink: Sink, device: Device, dialer: Arc<dyn Dialer>) {
    let interval = device.interval;
    let mut poller = Poller::new(device, dialer, Arc::clone(&sink.clock));
    let mut missed = Missed::default();
    let mut due = sink.clock.monotonic();
    loop {
        let (rows, wrong) = poller.poll().await;
        if sink.rows(&rows, &|_| None, true).await < rows.len() {
            missed.add(1, &sink, "the queue's thread does not answer".to_owned());
        }
        match wrong {
            // A row with holes is a row; its holes are named without a count.
            Some(why) => missed.add(u64::from(rows.is_empty()), &sink, why),
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
