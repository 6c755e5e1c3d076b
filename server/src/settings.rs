//! Settings: as given, and as resolved with every problem named at once.

use std::{
    net::{SocketAddr, ToSocketAddrs},
    path::PathBuf,
    time::Duration,
};

use millrace_control::Limits;
use millrace_storage::retention::Fuse;

use crate::{ingest::budget::RawBudget, root_key::RootKey};

/// Settings as they come from the command line.
#[derive(Debug, Clone, clap::Args)]
pub struct RawSettings {
    /// Folder that holds everything: keys, log, files, certificates. Made if missing.
    #[arg(long, value_name = "DIR", env = "MILLRACE_DATA_DIR")]
    pub data_dir: PathBuf,
    /// Address and port to listen on, TLS only; port 0 picks a free one.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8443")]
    pub listen: String,
    /// Address and port for PostgreSQL clients (psql, Grafana, BI), TLS only; without it there are
    /// none. Port 0 picks a free one.
    #[arg(long, value_name = "ADDR")]
    pub pg_listen: Option<String>,
    /// Server certificate chain, PEM; without it a development CA is made.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// Private key of the certificate, PEM.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// PKCS#11 library of the HSM that is to hold the root key; the choice counts for the life of
    /// the data directory. Without it the key is a file in the data directory.
    #[arg(long, value_name = "FILE", requires = "pkcs11_token", requires = "pkcs11_pin_file")]
    pub pkcs11_module: Option<PathBuf>,
    /// Label of the token in that HSM.
    #[arg(long, value_name = "LABEL", requires = "pkcs11_module")]
    pub pkcs11_token: Option<String>,
    /// File with the token's PIN, readable by its owner only.
    #[arg(long, value_name = "FILE", requires = "pkcs11_module")]
    pub pkcs11_pin_file: Option<PathBuf>,
    /// Memory for bodies, rows not yet in files, flushes and merges together, MiB (64 to
    /// 1048576); writers wait at half of it. Without it a quarter of the machine's memory, or of
    /// the control group's if that is less. Queries have their own (--query-mib).
    #[arg(long, value_name = "MIB", env = "MILLRACE_MEMORY_MIB")]
    pub memory_mib: Option<usize>,
    /// Memory for rows not yet in files, MiB (1 to 65536), if it is to be another than follows
    /// from --memory-mib, which still bounds it. A flush starts at a third of it.
    #[arg(long, value_name = "MIB")]
    pub memtable_mib: Option<usize>,
    /// Seconds that a query may run (1 to 3600).
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub query_timeout: u64,
    /// Memory of one query, MiB (16 to 65536).
    #[arg(long, value_name = "MIB", default_value_t = 512)]
    pub query_mib: usize,
    /// Per cent of a tenant's bytes that retention may drop at once beyond what ageing explains; more
    /// waits for `millrace plan confirm` (0 to 100).
    #[arg(long, value_name = "PERCENT", default_value_t = 10)]
    pub drop_fuse_percent: u64,
    /// Files that it may drop at once beyond what ageing explains.
    #[arg(long, value_name = "FILES", default_value_t = 1000)]
    pub drop_fuse_files: u64,
    /// Days after which files have been rewritten without deleted rows (1 to 365).
    #[arg(long, value_name = "DAYS", default_value_t = 30)]
    pub erase_within_days: u64,
    #[command(flatten)]
    pub budget: RawBudget,
}

/// Settings that fit together.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The data directory.
    pub data_dir: PathBuf,
    /// Where to listen.
    pub listen: SocketAddr,
    /// Where PostgreSQL clients connect, if they may.
    pub pg_listen: Option<SocketAddr>,
    /// Certificate and key files, if given.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// Where the root key is, if said.
    pub root_key: Option<RootKey>,
    /// Bytes of everything that grows with ingest: the budget.
    pub memory_bytes: usize,
    /// Bytes of memtables at most, if said.
    pub memtable_bytes: Option<usize>,
    /// Seconds of a query at most.
    pub query_timeout_s: u64,
    /// Bytes of a query at most.
    pub query_bytes: usize,
    /// What a tenant may write that has no limits of its own.
    pub tenant_limits: Limits,
    /// What retention may drop beyond ageing.
    pub fuse: Fuse,
    /// When files have been rewritten without deleted rows.
    pub erase_within: Duration,
}

/// One thing that is wrong with the settings.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("--{name}: {problem}")]
pub struct SettingProblem {
    /// The option.
    pub name: &'static str,
    /// What is wrong and what would be right.
    pub problem: String,
}

/// The smallest budget, MiB: half of it takes the largest body and the batch made from it.
const MEMORY_MIB_MIN: u64 = 64;
/// The budget where nothing says how much memory there is, MiB.
const MEMORY_MIB_UNKNOWN: u64 = 1024;

impl RawSettings {
    /// Resolves, or names every problem. `usable` is the memory that the process may use, bytes.
    pub fn resolve(self, usable: Option<u64>) -> Result<Settings, Vec<SettingProblem>> {
        let mut problems = Vec::new();
        let mut range = |name, value: u64, low: u64, high: u64| {
            if !(low..=high).contains(&value) {
                let problem = format!("{value} is not between {low} and {high}");
                problems.push(SettingProblem { name, problem });
            }
        };
        let quarter = usable.map_or(MEMORY_MIB_UNKNOWN, |bytes| (bytes >> 20) / 4);
        let memory_mib = match self.memory_mib {
            Some(mib) => mib as u64,
            None => quarter.clamp(MEMORY_MIB_MIN, 1 << 20),
        };
        range("memory-mib", memory_mib, MEMORY_MIB_MIN, 1 << 20);
        if let Some(mib) = self.memtable_mib {
            range("memtable-mib", mib as u64, 1, 65536);
        }
        range("query-timeout", self.query_timeout, 1, 3600);
        range("query-mib", self.query_mib as u64, 16, 65536);
        range("drop-fuse-percent", self.drop_fuse_percent, 0, 100);
        range("erase-within-days", self.erase_within_days, 1, 365);
        let listen = self.listen.to_socket_addrs().ok().and_then(|mut a| a.next());
        if listen.is_none() {
            let problem = format!("`{}` is not an address and port like 0.0.0.0:8443", self.listen);
            problems.push(SettingProblem { name: "listen", problem });
        }
        let pg_listen = self.pg_listen.as_ref().and_then(|text| {
            let found = text.to_socket_addrs().ok().and_then(|mut a| a.next());
            if found.is_none() {
                let problem = format!("`{text}` is not an address and port like 0.0.0.0:5432");
                problems.push(SettingProblem { name: "pg-listen", problem });
            }
            found
        });
        let root_key = match (self.pkcs11_module, self.pkcs11_token, self.pkcs11_pin_file) {
            (Some(module), Some(token), Some(pin_file)) => {
                Some(RootKey::Pkcs11 { module, token, pin_file })
            }
            _ => None,
        };
        match listen {
            Some(listen) if problems.is_empty() => Ok(Settings {
                data_dir: self.data_dir,
                listen,
                pg_listen,
                tls: self.tls_cert.zip(self.tls_key),
                root_key,
                memory_bytes: (memory_mib as usize) << 20,
                memtable_bytes: self.memtable_mib.map(|mib| mib << 20),
                query_timeout_s: self.query_timeout,
                query_bytes: self.query_mib << 20,
                tenant_limits: self.budget.limits(),
                fuse: Fuse { percent: self.drop_fuse_percent, files: self.drop_fuse_files },
                erase_within: Duration::from_secs(self.erase_within_days * 24 * 3600),
            }),
            _ => Err(problems),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw() -> RawSettings {
        RawSettings {
            data_dir: "d".into(),
            listen: "127.0.0.1:0".into(),
            pg_listen: None,
            tls_cert: None,
            tls_key: None,
            pkcs11_module: None,
            pkcs11_token: None,
            pkcs11_pin_file: None,
            memory_mib: None,
            memtable_mib: None,
            query_timeout: 30,
            query_mib: 100,
            drop_fuse_percent: 10,
            drop_fuse_files: 1000,
            erase_within_days: 30,
            budget: RawBudget::default(),
        }
    }

    #[test]
    fn every_problem_is_named_at_once() {
        let raw = RawSettings {
            listen: "nowhere".into(),
            pg_listen: Some("5432".into()),
            memory_mib: Some(63),
            memtable_mib: Some(0),
            query_timeout: 0,
            ..raw()
        };
        let names: Vec<&str> = raw.resolve(None).unwrap_err().iter().map(|p| p.name).collect();
        assert_eq!(names, ["memory-mib", "memtable-mib", "query-timeout", "listen", "pg-listen"]);
    }

    #[test]
    fn the_budget_is_a_quarter_of_what_there_is_unless_it_is_said() {
        let mib = |usable: Option<u64>, said: Option<usize>| {
            let raw = RawSettings { memory_mib: said, ..raw() };
            raw.resolve(usable).unwrap().memory_bytes >> 20
        };
        assert_eq!(mib(Some(8 << 30), None), 2048);
        assert_eq!(mib(Some(8 << 30), Some(512)), 512);
        assert_eq!(mib(Some(100 << 20), None), 64, "never less than works");
        assert_eq!(mib(None, None), 1024);
    }
}
