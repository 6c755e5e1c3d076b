//! `millrace-edge check`: what is wrong on this device, and what to do about it.
//!
//! Owns: the looks and their words. Never: opens the queue, so that it may run beside the
//! forwarder; shows a secret; takes longer than some seconds for one look.

mod sources;

use std::{path::PathBuf, sync::Arc, time::Duration};

use millrace_platform::{clock::Clock, disk::Disk, durable, net::Dialer};
use serde::Serialize;

use crate::{
    identity::{Identity, IdentityError},
    intake::Room,
    source::SourceKind,
    status,
    uplink::{ConnectError, Connection},
};

/// How long one look at the network may take.
const PATIENCE: Duration = Duration::from_secs(10);
const DAY_NS: i64 = 24 * 3600 * 1_000_000_000;
/// 2026-01-01: no device of this version has seen an earlier day.
const EARLIEST_NS: i64 = 1_767_225_600_000_000_000;
/// A certificate of 90 days should have been renewed before.
const CERTIFICATE_DAYS: i64 = 20;
/// Seconds that a clock may be off.
const SKEW_S: i64 = 5;
/// Less free space than this will soon be none.
const FREE_MIN: u64 = 256 << 20;
/// A sync that takes longer holds rows up.
const SYNC_SLOW: Duration = Duration::from_millis(200);
/// The running forwarder writes its status at least every 30 s.
const STATUS_OLD_NS: i64 = 60 * 1_000_000_000;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Fine,
    /// It works, but not for ever.
    Warning,
    /// It does not work.
    Wrong,
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// clock, disk, identity, certificate, server, forwarder or a source's name.
    pub area: String,
    /// How bad it is.
    pub level: Level,
    /// What was found.
    pub said: String,
    /// What to do; empty if nothing.
    #[serde(rename = "do")]
    pub advice: String,
}

impl Finding {
    fn fine(area: &str, said: impl Into<String>) -> Self {
        let (area, said) = (area.to_owned(), said.into());
        Self { area, level: Level::Fine, said, advice: String::new() }
    }

    fn warning(area: &str, said: impl Into<String>, advice: &str) -> Self {
        let (advice, level) = (advice.to_owned(), Level::Warning);
        Self { advice, level, ..Self::fine(area, said) }
    }

    fn wrong(area: &str, said: impl Into<String>, advice: &str) -> Self {
        let (advice, level) = (advice.to_owned(), Level::Wrong);
        Self { advice, level, ..Self::fine(area, said) }
    }
}

/// What is looked at, and through what.
pub struct Ground {
    /// The disk.
    pub disk: Arc<dyn Disk>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// The network.
    pub dialer: Arc<dyn Dialer>,
    /// The data directory.
    pub data_dir: PathBuf,
}

/// Findings for people.
pub fn shown(found: &[Finding]) -> String {
    let one = |f: &Finding| {
        let mark = match f.level {
            Level::Fine => "fine   ",
            Level::Warning => "warning",
            Level::Wrong => "WRONG  ",
        };
        let advice =
            if f.advice.is_empty() { String::new() } else { format!("\n         -> {}", f.advice) };
        format!("{mark}  {}: {}{advice}", f.area, f.said)
    };
    found.iter().map(one).collect::<Vec<_>>().join("\n")
}

/// Looks at everything.
pub async fn all(ground: &Ground, kinds: &[SourceKind]) -> Vec<Finding> {
    let mut found = vec![clock(ground.clock.now_ns()), disk(ground)];
    match Identity::load(ground.disk.as_ref(), &ground.data_dir) {
        Ok(identity) => {
            found.push(Finding::fine("identity", format!("device {}", identity.device)));
            found.push(certificate(identity.not_after_ns, ground.clock.now_ns()));
            found.extend(server(ground, &identity).await);
            found.push(forwarder(ground));
        }
        Err(e) => {
            let advice = match &e {
                IdentityError::NotEnrolled => {
                    "make a claim code on the server (`millrace device claim`) and enrol"
                }
                _ => "give the file its owner and mode 0600 back, or enrol in a new folder",
            };
            found.push(Finding::wrong("identity", e.to_string(), advice));
        }
    }
    for kind in kinds {
        found.push(sources::look(ground, kind).await);
    }
    found
}

fn clock(now_ns: i64) -> Finding {
    if now_ns < EARLIEST_NS {
        let said = "the clock says a day before this version was made";
        return Finding::wrong(
            "clock",
            said,
            "set it, or let it be set (chrony, systemd-timesyncd); certificates fail until then",
        );
    }
    Finding::fine("clock", "plausible")
}

fn disk(ground: &Ground) -> Finding {
    let dir = &ground.data_dir;
    let disk = ground.disk.as_ref();
    if !disk.exists(dir).unwrap_or(false) {
        let said = format!("{} is not there", dir.display());
        return Finding::wrong("disk", said, "enrol, or give the right --data-dir");
    }
    let (probe, start) = (dir.join("check.tmp"), ground.clock.monotonic());
    if let Err(e) = durable::replace(disk, &probe, &[0; 4096]) {
        let said = format!("{} cannot be written: {e}", dir.display());
        let advice =
            "it must belong to the forwarder's user, be mounted for writing, and have room";
        return Finding::wrong("disk", said, advice);
    }
    let took = ground.clock.monotonic().saturating_sub(start);
    if let Err(e) = disk.remove(&probe) {
        let said = format!("{} cannot be removed: {e}", probe.display());
        return Finding::wrong("disk", said, "remove it by hand");
    }
    let free = disk.free_bytes(dir).unwrap_or(u64::MAX);
    let said = format!("{} MiB free, a synced write takes {} ms", free >> 20, took.as_millis());
    if free < FREE_MIN {
        return Finding::warning(
            "disk",
            said,
            "make room, or rows of sources that cannot wait become gaps",
        );
    }
    if took > SYNC_SLOW {
        return Finding::warning(
            "disk",
            said,
            "each commit waits for that; another disk is faster",
        );
    }
    Finding::fine("disk", said)
}

fn certificate(not_after_ns: i64, now_ns: i64) -> Finding {
    let days = not_after_ns.saturating_sub(now_ns).div_euclid(DAY_NS);
    if not_after_ns <= now_ns {
        let said = format!("it ended {} days ago", -days);
        let advice = "enrol again in a new folder; if it should still be good, the clock is wrong";
        return Finding::wrong("certificate", said, advice);
    }
    let said = format!("good for {days} more days");
    if days < CERTIFICATE_DAYS {
        return Finding::warning(
            "certificate",
            said,
            "the forwarder must reach its server to renew it",
        );
    }
    Finding::fine("certificate", said)
}

/// What to do about a connection that did not come to be.
fn advice(e: &ConnectError) -> &'static str {
    let text = e.to_string().to_lowercase();
    let has = |words: &[&str]| words.iter().any(|w| text.contains(w));
    match e {
        ConnectError::Url(_) => "correct `url` in identity.json",
        ConnectError::Tls(_) => {
            "the files of the data directory are damaged; enrol in a new folder"
        }
        ConnectError::Refused => "ask the tenant's admin; `millrace device list` shows the device",
        _ if has(&["lookup", "resolve", "name or service"]) => {
            "the name is not known: look at the resolver of this machine, or the name"
        }
        _ if has(&["unknownissuer", "unknown issuer", "badsignature"]) => {
            "the server's certificate is from another CA than at enrolment: something intercepts TLS, or the server was made anew"
        }
        _ if has(&["notvalidyet", "expired"]) => {
            "the server's certificate is not good now: look at both clocks"
        }
        _ if has(&["notvalidforname"]) => {
            "the server's certificate names another host: use that name at enrolment"
        }
        _ if has(&["refused"]) => "nothing listens there: is the server up, is the port right?",
        _ => "look at cable, route and firewall: the device dials out to this one port",
    }
}

async fn server(ground: &Ground, identity: &Identity) -> Vec<Finding> {
    let url = &identity.url;
    let open = async {
        let connection = Connection::open(identity, Arc::clone(&ground.dialer)).await?;
        let before = ground.clock.now_ns();
        let date = connection.date().await;
        let Ok(stream) = "check".parse() else { return Ok((date, before)) };
        // Any stream will do: a device that may not ask is revoked or unknown.
        connection.floor(&stream, 1).await?;
        Ok::<_, ConnectError>((date, before))
    };
    let asked = tokio::select! {
        asked = open => asked,
        () = ground.clock.sleep(PATIENCE) => {
            let why = format!("no answer within {} s", PATIENCE.as_secs());
            Err(ConnectError::Reach(why))
        }
    };
    let (date, now) = match asked {
        Ok(done) => done,
        Err(e) => return vec![Finding::wrong("server", format!("{url}: {e}"), advice(&e))],
    };
    let mut found = vec![Finding::fine("server", format!("{url} knows this device"))];
    if let Some(date) = date {
        let ahead = (now - date) / 1_000_000_000;
        let said = format!("{ahead} s ahead of the server's");
        found.push(if ahead.abs() > SKEW_S {
            Finding::warning("clock", said, "let it be set (chrony, systemd-timesyncd)")
        } else {
            Finding::fine("clock", said)
        });
    }
    found
}

/// The running forwarder, by its own words.
fn forwarder(ground: &Ground) -> Finding {
    let Ok(status) = status::read(ground.disk.as_ref(), &ground.data_dir) else {
        return Finding::warning("forwarder", "it has never run in this folder", "start it");
    };
    let age = ground.clock.now_ns().saturating_sub(status.time_ns);
    let waits = format!("{} rows wait", status.rows_pending);
    if age > STATUS_OLD_NS {
        let said = format!("it does not run; {waits}");
        return Finding::warning("forwarder", said, "start it: systemctl start millrace-edge");
    }
    if status.room != Room::Ok {
        let said = format!("it takes no rows: {}; {waits}", status.room.name());
        return Finding::wrong("forwarder", said, "make room, or let the server take rows");
    }
    if !status.connected {
        let why = status.last_error.unwrap_or_else(|| "not said".to_owned());
        return Finding::wrong(
            "forwarder",
            format!("it delivers nothing: {why}; {waits}"),
            "see server",
        );
    }
    if status.put_aside > 0 {
        let said = format!("{} messages were refused by the server", status.put_aside);
        return Finding::warning("forwarder", said, "millrace-edge quarantine list");
    }
    Finding::fine("forwarder", format!("it runs and delivers; {waits}"))
}

#[cfg(test)]
mod tests;
