//! The fifteen queries of TSBS cpu-only, as SQL, with seeded hosts and times.
//!
//! Owns: what each asks. Names are the suite's own, so that figures can be set beside others'.

use crate::{
    random::Random,
    tsbs::{FIELDS, START_S, TABLE},
};

/// One kind of query.
#[derive(Debug, Clone, Copy)]
pub struct Query {
    /// The suite's name for it.
    pub name: &'static str,
    sql: fn(&mut Picker) -> String,
}

/// Picks hosts and times inside the data.
#[derive(Debug)]
pub struct Picker {
    random: Random,
    hosts: usize,
    seconds: u64,
}

impl Picker {
    /// Picks from so many hosts and hours.
    pub fn new(seed: u64, hosts: usize, hours: f64) -> Self {
        Self { random: Random::seeded(seed), hosts, seconds: (hours * 3600.0) as u64 }
    }

    /// `hostname = 'host_7'`, or a list of `n` different ones.
    fn hosts(&mut self, n: usize) -> String {
        let mut names = Vec::new();
        while names.len() < n.min(self.hosts) {
            let name = format!("'host_{}'", self.random.next_u64() % self.hosts as u64);
            if !names.contains(&name) {
                names.push(name);
            }
        }
        match names.as_slice() {
            [one] => format!("hostname = {one}"),
            many => format!("hostname IN ({})", many.join(", ")),
        }
    }

    /// A window of so many hours (or of all, if there are fewer) at a random place.
    fn window(&mut self, hours: u64) -> String {
        let length = (hours * 3600).min(self.seconds);
        let free = self.seconds - length;
        let start = START_S + if free == 0 { 0 } else { self.random.next_u64() % free };
        format!("time >= {} AND time < {}", at(start), at(start + length))
    }
}

fn at(seconds: u64) -> String {
    format!("to_timestamp_seconds({seconds})")
}

/// `max(usage_user) AS usage_user, …` of the first `n` fields.
fn each(function: &str, n: usize) -> String {
    let columns: Vec<String> =
        FIELDS.iter().take(n).map(|f| format!("{function}({f}) AS {f}")).collect();
    columns.join(", ")
}

fn per_minute(p: &mut Picker, fields: usize, hosts: usize, hours: u64) -> String {
    let (hosts, window) = (p.hosts(hosts), p.window(hours));
    format!(
        "SELECT date_bin(INTERVAL '1 minute', time) AS minute, {} FROM {TABLE} \
         WHERE {hosts} AND {window} GROUP BY minute ORDER BY minute",
        each("max", fields)
    )
}

fn max_all(p: &mut Picker, hosts: usize) -> String {
    let (hosts, window) = (p.hosts(hosts), p.window(8));
    format!(
        "SELECT date_bin(INTERVAL '1 hour', time) AS hour, {} FROM {TABLE} \
         WHERE {hosts} AND {window} GROUP BY hour ORDER BY hour",
        each("max", FIELDS.len())
    )
}

fn double_groupby(p: &mut Picker, fields: usize) -> String {
    format!(
        "SELECT date_bin(INTERVAL '1 hour', time) AS hour, hostname, {} FROM {TABLE} \
         WHERE {} GROUP BY hour, hostname ORDER BY hour, hostname",
        each("avg", fields),
        p.window(12)
    )
}

/// All of them, in the suite's order.
pub const ALL: [Query; 15] = [
    Query { name: "single-groupby-1-1-1", sql: |p| per_minute(p, 1, 1, 1) },
    Query { name: "single-groupby-1-1-12", sql: |p| per_minute(p, 1, 1, 12) },
    Query { name: "single-groupby-1-8-1", sql: |p| per_minute(p, 1, 8, 1) },
    Query { name: "single-groupby-5-1-1", sql: |p| per_minute(p, 5, 1, 1) },
    Query { name: "single-groupby-5-1-12", sql: |p| per_minute(p, 5, 1, 12) },
    Query { name: "single-groupby-5-8-1", sql: |p| per_minute(p, 5, 8, 1) },
    Query { name: "cpu-max-all-1", sql: |p| max_all(p, 1) },
    Query { name: "cpu-max-all-8", sql: |p| max_all(p, 8) },
    Query { name: "double-groupby-1", sql: |p| double_groupby(p, 1) },
    Query { name: "double-groupby-5", sql: |p| double_groupby(p, 5) },
    Query { name: "double-groupby-all", sql: |p| double_groupby(p, FIELDS.len()) },
    Query {
        name: "high-cpu-1",
        sql: |p| {
            let (host, window) = (p.hosts(1), p.window(12));
            format!("SELECT * FROM {TABLE} WHERE usage_user > 90 AND {window} AND {host}")
        },
    },
    Query {
        name: "high-cpu-all",
        sql: |p| format!("SELECT * FROM {TABLE} WHERE usage_user > 90 AND {}", p.window(12)),
    },
    Query {
        name: "lastpoint",
        sql: |_| {
            format!("SELECT DISTINCT ON (hostname) * FROM {TABLE} ORDER BY hostname, time DESC")
        },
    },
    Query {
        name: "groupby-orderby-limit",
        sql: |p| {
            let until = at(START_S + p.seconds / 2 + p.random.next_u64() % (p.seconds / 2).max(1));
            format!(
                "SELECT date_bin(INTERVAL '1 minute', time) AS minute, max(usage_user) AS usage_user \
                 FROM {TABLE} WHERE time < {until} GROUP BY minute ORDER BY minute DESC LIMIT 5"
            )
        },
    },
];

impl Query {
    /// The next text of this kind.
    pub fn sql(&self, picker: &mut Picker) -> String {
        (self.sql)(picker)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_lie_inside_the_data_and_hosts_exist() {
        let mut picker = Picker::new(1, 3, 4.0);
        for query in ALL {
            let sql = query.sql(&mut picker);
            for part in sql.split("to_timestamp_seconds(").skip(1) {
                let seconds: u64 = part.split(')').next().unwrap().parse().unwrap();
                assert!((START_S..=START_S + 4 * 3600).contains(&seconds), "{}: {sql}", query.name);
            }
            assert!(!sql.contains("host_3"), "{sql}");
        }
    }
}
