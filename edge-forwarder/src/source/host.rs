//! This machine's own metrics, from procfs: load, memory, CPU time, network.
//!
//! Owns: the lines of a sample. Never: waits for room: a moment does not come back, so what cannot
//! be kept is a gap.

use std::{
    fmt::{Arguments, Write},
    time::Duration,
};

use procfs::{Current, CurrentSI, LoadAverage, Meminfo};

use super::Sink;

/// Samples for ever, every `interval`.
pub async fn run(sink: Sink, interval: Duration, host: String) {
    loop {
        let lines = sample(&host, sink.clock.now_ns());
        // What cannot be kept now is a gap: this moment does not come back.
        let kept = sink.lines(lines.as_bytes(), &|_| None, true).await;
        if kept < lines.len() {
            tracing::warn!("a sample was not taken in: the queue's thread does not answer");
        }
        sink.clock.sleep(interval).await;
    }
}

fn escape(tag: &str) -> String {
    tag.replace('\\', "_").replace(',', "\\,").replace('=', "\\=").replace(' ', "\\ ")
}

/// Adds a line; writing to a string cannot fail.
fn put(out: &mut String, line: Arguments<'_>) {
    if out.write_fmt(line).is_ok() {
        out.push('\n');
    }
}

/// One sample as line protocol; what procfs does not tell is left out.
fn sample(host: &str, now: i64) -> String {
    let host = escape(host);
    let mut out = String::new();
    if let Ok(load) = LoadAverage::current() {
        put(
            &mut out,
            format_args!(
                "host_load,host={host} load1={},load5={},load15={},tasks={}i {now}",
                load.one, load.five, load.fifteen, load.max
            ),
        );
    }
    if let Ok(memory) = Meminfo::current() {
        let available = memory.mem_available.unwrap_or(memory.mem_free);
        put(
            &mut out,
            format_args!(
                "host_memory,host={host} total={}u,available={available}u,free={}u,cached={}u {now}",
                memory.mem_total, memory.mem_free, memory.cached
            ),
        );
    }
    if let Ok(stat) = procfs::KernelStats::current() {
        for (cpu, t) in stat.cpu_time.iter().enumerate() {
            put(
                &mut out,
                format_args!(
                    "host_cpu,host={host},cpu={cpu} user_ms={}u,system_ms={}u,idle_ms={}u,iowait_ms={}u {now}",
                    t.user_ms(),
                    t.system_ms(),
                    t.idle_ms(),
                    t.iowait_ms().unwrap_or(0)
                ),
            );
        }
    }
    if let Ok(devices) = procfs::net::dev_status() {
        let mut devices: Vec<_> = devices.into_values().collect();
        devices.sort_by(|a, b| a.name.cmp(&b.name));
        for d in devices {
            let name = escape(&d.name);
            put(
                &mut out,
                format_args!(
                    "host_network,host={host},interface={name} received_bytes={}u,sent_bytes={}u,receive_errors={}u,send_errors={}u {now}",
                    d.recv_bytes, d.sent_bytes, d.recv_errs, d.sent_errs
                ),
            );
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use millrace_protocol::line::{self, LineOptions, Precision};

    use super::*;

    #[test]
    fn a_sample_of_this_machine_is_valid_line_protocol() {
        let text = sample("a b,c", 5);
        let options = LineOptions {
            precision: Precision::Nanosecond,
            default_time_ns: 0,
            default_time_step_ns: 0,
            limits: Default::default(),
            refusals_max: 10,
        };
        let parsed = line::parse(text.as_bytes(), &options);
        assert_eq!(parsed.refused, 0, "{text}\n{:?}", parsed.refusals);
        let names: Vec<&str> = parsed.tables.iter().map(|t| t.table.as_str()).collect();
        assert!(names.contains(&"host_load") && names.contains(&"host_cpu"), "{names:?}");
        assert_eq!(parsed.tables[0].series_keys[0].get("host"), Some("a b,c"));
    }
}
