//! The order of every whole-system run: start, load, settle, verify, stop, report.
//!
//! Owns: what is counted. CPU is the server's own, user and system, from a mark (its start, unless
//! a workload moves it behind its preparations) to the end of the flush at its graceful stop,
//! without the time of the verifying queries. Bytes per row are those of all files but the log.
//! Never: reports success when a query contradicts the manifest.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};
use millrace_platform::metric::Metric;
use serde_json::{Map, Value, json};

use crate::{
    figures::{Figures, percentile_ms, round},
    http::{Connection, tls},
    load::{Batch, Plan, Sent, send_all},
    manifest::Verdict,
    server::{self, Failed, OnDisk, Server},
};

/// What every run takes.
#[derive(Debug, Clone, clap::Args)]
pub struct Common {
    /// Connections that send at the same time.
    #[arg(long, default_value_t = 4)]
    pub connections: usize,
    /// Lines per request.
    #[arg(long, default_value_t = 10_000)]
    pub batch: usize,
    /// Same seed, same rows.
    #[arg(long, default_value_t = 42)]
    pub seed: u64,
    /// Rows per second of all connections; acks then count from when a batch was due. As fast as
    /// it goes if not given.
    #[arg(long)]
    pub rows_per_s: Option<f64>,
    /// Where the data goes; a temporary folder beside the executable if not given.
    #[arg(long)]
    pub data_dir: Option<PathBuf>,
    /// A further option of the server, for instance --serve=--memtable-mib=256; may be repeated.
    #[arg(long, value_name = "OPTION", allow_hyphen_values = true)]
    pub serve: Vec<String>,
}

/// A server that runs over a folder with one tenant, `bench`.
#[derive(Debug)]
pub struct Stage {
    /// Kept until the end of the run, then removed.
    _temporary: tempfile::TempDir,
    /// The folder.
    pub data: PathBuf,
    /// The tenant's token: write and read.
    pub token: String,
    /// The server.
    pub server: Server,
    /// Its CA, PEM.
    pub ca: String,
    /// Started again with them.
    options: Vec<String>,
    mark: Duration,
    /// CPU and peak memory of servers that ran here before.
    earlier: (Duration, f64),
}

/// What a load came to once the server was idle again.
#[derive(Debug)]
pub struct Loaded {
    /// The sending.
    pub sent: Sent,
    cpu_at_last_ack: Duration,
    cpu_settled: Duration,
    rss_mib: f64,
}

/// What the whole run cost.
#[derive(Debug)]
pub struct Cost {
    cpu: Duration,
    disk: OnDisk,
    write_amplification: Option<f64>,
}

/// What a run reports beside the common figures.
pub type More = Map<String, Value>;

impl Stage {
    /// Starts a server over a new folder; `name` keeps several runs of one command apart.
    pub fn open(common: &Common, name: &str) -> Result<Self, Failed> {
        Self::prepared(common, name, |_| Ok(())).map(|(stage, ())| stage)
    }

    /// The same; `prepare` works on the folder before the server starts.
    pub fn prepared<T>(
        common: &Common,
        name: &str,
        prepare: impl FnOnce(&Path) -> Result<T, Failed>,
    ) -> Result<(Self, T), Failed> {
        // The executable's own disk: /tmp is often memory, which would make a sync free.
        let beside = std::env::current_exe()?;
        let beside = beside.parent().map_or_else(|| ".".into(), Path::to_path_buf);
        let temporary = tempfile::Builder::new().prefix("bench-").tempdir_in(beside)?;
        let folder = common.data_dir.clone().unwrap_or_else(|| temporary.path().join("data"));
        let data = folder.join(name);
        std::fs::create_dir_all(&folder)?;
        let token = server::tenant(&data, "bench")?;
        let made = prepare(&data)?;
        let server = Server::start(&data, &common.serve)?;
        let ca = server.ca()?;
        let stage = Self {
            _temporary: temporary,
            data,
            token,
            server,
            ca,
            options: common.serve.clone(),
            mark: Duration::ZERO,
            earlier: (Duration::ZERO, 0.0),
        };
        Ok((stage, made))
    }

    /// Ends the server, by a kill or gracefully, and starts it again on the same folder.
    pub fn restart(&mut self, kill: bool) -> Result<(), Failed> {
        self.earlier.1 = self.rss_mib();
        let cpu = if kill { self.server.kill()? } else { self.server.stop()? };
        self.earlier.0 += cpu;
        self.server = Server::start(&self.data, &self.options)?;
        Ok(())
    }

    /// What the server is given from the next start on.
    pub fn options(&mut self, options: &[String]) {
        self.options = options.to_vec();
    }

    fn cpu(&self) -> Duration {
        (self.earlier.0 + self.server.cpu()).saturating_sub(self.mark)
    }

    fn rss_mib(&self) -> f64 {
        self.server.rss_mib().max(self.earlier.1)
    }

    /// From here on CPU counts.
    pub fn mark(&mut self) {
        self.mark += self.cpu();
    }

    /// A connection that speaks for `token`.
    pub fn connect(&self, token: &str) -> Result<Connection, Failed> {
        Connection::open(&self.server.base, &tls(&self.ca)?, token)
    }

    /// Sends everything, with a progress bar.
    pub fn load(
        &self,
        common: &Common,
        tokens: &[String],
        batches: &[Batch],
    ) -> Result<Sent, Failed> {
        let bar = bar("loading", batches.iter().map(|b| b.lines).sum());
        let plan = Plan {
            base: &self.server.base,
            ca_pem: &self.ca,
            tokens,
            connections: common.connections,
            rows_per_s: common.rows_per_s,
        };
        let sent = send_all(&plan, batches, &|lines| bar.inc(lines));
        bar.finish_and_clear();
        sent
    }

    /// Waits until the server has digested the load.
    pub fn settle(&self, sent: Sent) -> Loaded {
        let cpu_at_last_ack = self.cpu();
        let seconds = sent.wall.as_secs_f64();
        eprintln!("loaded in {seconds:.1} s; waiting until the server is idle");
        self.server.settle();
        let cpu_settled = self.cpu();
        eprintln!("verifying");
        Loaded { sent, cpu_at_last_ack, cpu_settled, rss_mib: self.rss_mib() }
    }

    /// Stops the server; what everything cost.
    pub fn finish(&mut self, loaded: &Loaded) -> Result<Cost, Failed> {
        let written = self.written()?;
        let before = server::on_disk(&self.data).stored_bytes;
        let verified = self.server.cpu();
        let whole = self.server.stop()?;
        let disk = server::on_disk(&self.data);
        let last_flush = disk.stored_bytes.saturating_sub(before);
        Ok(Cost {
            cpu: loaded.cpu_settled + whole.saturating_sub(verified),
            disk,
            write_amplification: written.and_then(|(flushed, merged)| {
                let flushed = (flushed + last_flush) as f64;
                (flushed > 0.0).then(|| round((flushed + merged as f64) / flushed, 2))
            }),
        })
    }

    /// Starts the server again after [`Self::finish`] and lets it come to rest; its memory then,
    /// MiB: what everything that is stored costs while nobody asks for it.
    pub fn rest_mib(&mut self) -> Result<f64, Failed> {
        self.server = Server::start(&self.data, &self.options)?;
        self.server.settle();
        Ok(self.server.rss_now_mib())
    }

    /// Bytes of column files written so far by flushes and by merges; `None` if the server has
    /// been started again, which sets its counters to zero.
    fn written(&self) -> Result<Option<(u64, u64)>, Failed> {
        if !self.earlier.0.is_zero() {
            return Ok(None);
        }
        let mut connection = self.connect(&self.server.operator_token()?)?;
        let (status, text) = connection.request("GET", "/metrics", b"")?;
        if status != 200 {
            return Err(Failed(format!("/metrics was answered {status}")));
        }
        Ok(Some(written(&String::from_utf8_lossy(&text))))
    }
}

fn written(metrics: &str) -> (u64, u64) {
    let name = Metric::FileBytesWritten.name();
    let of = |cause: &str| {
        let cause = format!("cause=\"{cause}\"");
        let lines = metrics.lines().filter(|l| l.starts_with(name) && l.contains(&cause));
        let value = |l: &str| l.rsplit(' ').next().and_then(|n| n.parse::<f64>().ok());
        lines.filter_map(value).map(|n| n as u64).sum()
    };
    (of("flush"), of("compaction"))
}

/// The figures of a run of `rows` distinct rows.
pub fn figures(
    bench: &str,
    rows: u64,
    loaded: &mut Loaded,
    cost: &Cost,
    verdict: &Verdict,
    more: More,
) -> Figures {
    let count = rows.max(1) as f64;
    let per_million = |cpu: Duration| round(cpu.as_secs_f64() / (count / 1e6), 3);
    let mut all = Map::from_iter([
        ("wrong".to_owned(), json!(verdict.wrong)),
        ("cpu_s_per_mrow_at_last_ack".to_owned(), json!(per_million(loaded.cpu_at_last_ack))),
        ("log_bytes_per_row".to_owned(), json!(round(cost.disk.log_bytes as f64 / count, 2))),
        ("stored_files".to_owned(), json!(cost.disk.stored_files)),
        ("write_amplification".to_owned(), json!(cost.write_amplification)),
        ("put_off".to_owned(), json!(loaded.sent.put_off)),
        ("optimised".to_owned(), json!(!cfg!(debug_assertions))),
    ]);
    all.extend(more);
    Figures {
        bench: bench.to_owned(),
        rows,
        rows_per_s: round(count / loaded.sent.wall.as_secs_f64().max(1e-9), 0),
        cpu_s_per_mrow: per_million(cost.cpu),
        bytes_per_row: round(cost.disk.stored_bytes as f64 / count, 2),
        ack_ms_p50: percentile_ms(&mut loaded.sent.acks, 0.5),
        ack_ms_p99: percentile_ms(&mut loaded.sent.acks, 0.99),
        rss_mib: loaded.rss_mib,
        lost: verdict.lost,
        doubled: verdict.doubled,
        more: all,
    }
}

impl Cost {
    /// Bytes of all files but the log, per `count` of something.
    pub fn stored_per(&self, count: u64) -> f64 {
        round(self.disk.stored_bytes as f64 / count.max(1) as f64, 3)
    }
}

/// An error if a query contradicted the manifest.
pub fn pass(verdict: &Verdict) -> Result<(), Failed> {
    if verdict.is_clean() { Ok(()) } else { Err(Failed(verdict.to_string())) }
}

/// A progress bar over rows.
pub fn bar(what: &'static str, total: u64) -> ProgressBar {
    let style = ProgressStyle::with_template(
        "{msg:10} {bar:40} {human_pos} of {human_len}, {per_sec}, {eta} left",
    );
    let bar = ProgressBar::new(total).with_message(what);
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_written_are_summed_by_cause_over_all_labels() {
        let name = Metric::FileBytesWritten.name();
        let text = format!(
            "# TYPE {name} counter\n{name}{{cause=\"flush\"}} 100\n\
             {name}{{cause=\"compaction\",table=\"a\"}} 30\n\
             {name}{{cause=\"compaction\",table=\"b\"}} 5\nother 7\n"
        );
        assert_eq!(written(&text), (100, 35));
        assert_eq!(written("other 7\n"), (0, 0), "no flush yet");
    }
}
