//! A server as a child process, and what procfs says about it.
//!
//! Owns: starting the server that is linked into the benchmark itself (the child is this same
//! executable, called by the name `millrace`), its tenant and token, its CPU time and memory.

use std::{
    io::{BufRead, BufReader, Read},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

/// The name under which the executable is the server.
pub const AS_SERVER: &str = "millrace";

/// A run that cannot go on; printed as it is.
#[derive(Debug)]
pub struct Failed(pub String);

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl<E: std::error::Error> From<E> for Failed {
    fn from(e: E) -> Self {
        Self(e.to_string())
    }
}

/// A running server over a data folder.
#[derive(Debug)]
pub struct Server {
    child: Child,
    /// `https://127.0.0.1:PORT`.
    pub base: String,
    data: PathBuf,
}

fn command(args: &[&str], data: &Path) -> Result<Command, Failed> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg0(AS_SERVER).args(args).arg("--data-dir").arg(data);
    Ok(command)
}

/// Runs an administrative command on the stopped server's folder.
pub fn admin(args: &[&str], data: &Path) -> Result<String, Failed> {
    let output = command(args, data)?.stdin(Stdio::null()).output()?;
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        let said = format!("{}{}", text(&output.stdout), text(&output.stderr));
        Err(Failed(format!("millrace {}: {said}", args.join(" "))))
    }
}

/// Runs an administrative command with `--json` and takes one member of its answer.
fn admin_text(args: &[&str], data: &Path, member: &str) -> Result<String, Failed> {
    let said = admin(&[args, &["--json"]].concat(), data)?;
    let answer: serde_json::Value = serde_json::from_str(&said)?;
    let text = answer.get(member).and_then(|m| m.as_str());
    text.map(str::to_owned).ok_or_else(|| Failed(format!("no {member} in what {args:?} said")))
}

/// Makes a tenant and returns a token that may write and read.
pub fn tenant(data: &Path, name: &str) -> Result<String, Failed> {
    admin(&["tenant", "create", name], data)?;
    admin_text(&["token", "create", "--tenant", name, "--scope", "write,read"], data, "token")
}

/// Makes a claim code for a device of a tenant.
pub fn claim(data: &Path, tenant: &str) -> Result<String, Failed> {
    admin_text(&["device", "claim", "--tenant", tenant], data, "code")
}

impl Server {
    /// Starts it with these further options and waits until it says where it listens. Its log goes
    /// beside the folder.
    pub fn start(data: &Path, options: &[String]) -> Result<Self, Failed> {
        // The queries that verify a run may take long; their time is not a figure.
        let fixed = ["serve", "--listen", "127.0.0.1:0", "--query-timeout", "3600"];
        let mut child = command(&fixed, data)?
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let (found, address) = mpsc::sync_channel(2);
        let streams: [Option<Box<dyn Read + Send>>; 2] = [
            child.stdout.take().map(|s| Box::new(s) as _),
            child.stderr.take().map(|s| Box::new(s) as _),
        ];
        let log = data.with_extension("log");
        for stream in streams.into_iter().flatten() {
            let found = found.clone();
            let mut log = std::fs::OpenOptions::new().create(true).append(true).open(&log)?;
            std::thread::spawn(move || {
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    if let Some(at) = line.find("https://127.0.0.1:") {
                        let tail = line.get(at..).unwrap_or_default();
                        let end = tail.get(8..).and_then(|t| {
                            t.find(|c: char| !c.is_ascii_digit() && c != '.' && c != ':')
                        });
                        let url = tail.get(..end.map_or(tail.len(), |e| e + 8));
                        found.try_send(url.unwrap_or_default().to_owned()).ok();
                    }
                    std::io::Write::write_all(&mut log, format!("{line}\n").as_bytes()).ok();
                }
            });
        }
        let base = address.recv_timeout(Duration::from_secs(60)).map_err(|_| {
            Failed(format!("the server did not start; its log is {}", log.display()))
        })?;
        Ok(Self { child, base, data: data.to_path_buf() })
    }

    /// The development CA, PEM.
    pub fn ca(&self) -> Result<String, Failed> {
        Ok(std::fs::read_to_string(self.data.join("tls").join("ca.pem"))?)
    }

    /// CPU time of the server so far, user and system, of all threads, living and ended.
    pub fn cpu(&self) -> Duration {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()));
        let text = text.unwrap_or_default();
        // The name stands in brackets and may hold anything; the fields after it are counted.
        let fields: Vec<&str> =
            text.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |n: usize| fields.get(n).and_then(|f| f.parse::<u64>().ok()).unwrap_or(0);
        // utime and stime are fields 14 and 15 of the page; USER_HZ is 100 on every Linux.
        Duration::from_millis((ticks(11) + ticks(12)) * 10)
    }

    /// The operator's token of this server.
    pub fn operator_token(&self) -> Result<String, Failed> {
        Ok(std::fs::read_to_string(self.data.join("operator.token"))?.trim().to_owned())
    }

    /// Peak resident memory, MiB.
    pub fn rss_mib(&self) -> f64 {
        self.status_mib("VmHWM:")
    }

    /// Resident memory now, MiB.
    pub fn rss_now_mib(&self) -> f64 {
        self.status_mib("VmRSS:")
    }

    fn status_mib(&self, name: &str) -> f64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        let text = text.unwrap_or_default();
        let line = text.lines().find_map(|l| l.strip_prefix(name));
        let kib: f64 = line
            .and_then(|l| l.split_whitespace().next())
            .and_then(|n| n.parse().ok())
            .unwrap_or(0.0);
        crate::figures::round(kib / 1024.0, 1)
    }

    /// Waits until the server has been idle (below 2 % of a core) for three seconds: flushes and
    /// merges that follow the load belong to its cost.
    pub fn settle(&self) {
        let deadline = Instant::now() + Duration::from_secs(600);
        let mut quiet = 0;
        let mut before = self.cpu();
        while quiet < 6 && Instant::now() < deadline {
            std::thread::park_timeout(Duration::from_millis(500));
            let now = self.cpu();
            quiet =
                if now.saturating_sub(before) <= Duration::from_millis(10) { quiet + 1 } else { 0 };
            before = now;
        }
    }

    /// Ends it as a power cut would end the process; the CPU time of its whole life.
    pub fn kill(&mut self) -> Result<Duration, Failed> {
        let cpu = self.cpu();
        self.child.kill()?;
        self.child.wait()?;
        Ok(cpu)
    }

    /// Ends it gracefully; the CPU time of its whole life.
    pub fn stop(&mut self) -> Result<Duration, Failed> {
        let id = self.child.id();
        Command::new("kill").arg("-TERM").arg(id.to_string()).status()?;
        let deadline = Instant::now() + Duration::from_secs(120);
        // A child that has ended keeps its times until it is waited for.
        let ended = |id: u32| {
            let text = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
            text.rsplit(')').next().is_none_or(|t| t.trim_start().starts_with(['Z', 'X']))
        };
        while !ended(id) {
            if Instant::now() > deadline {
                return Err(Failed("the server did not end within two minutes".into()));
            }
            std::thread::park_timeout(Duration::from_millis(5));
        }
        let cpu = self.cpu();
        let status = self.child.wait()?;
        if status.success() {
            Ok(cpu)
        } else {
            Err(Failed(format!("the server ended with {status}")))
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// What lies in a data folder.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OnDisk {
    /// Bytes of the log (`wal` folders).
    pub log_bytes: u64,
    /// Bytes of everything else.
    pub stored_bytes: u64,
    /// Files that are not the log.
    pub stored_files: u64,
}

/// Measures the files below a folder.
pub fn on_disk(folder: &Path) -> OnDisk {
    let mut found = OnDisk::default();
    let mut folders = vec![(folder.to_path_buf(), false)];
    while let Some((folder, in_log)) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            let in_log = in_log || entry.file_name() == "wal";
            if meta.is_dir() {
                folders.push((entry.path(), in_log));
            } else if in_log {
                found.log_bytes += meta.len();
            } else {
                found.stored_bytes += meta.len();
                found.stored_files += 1;
            }
        }
    }
    found
}
