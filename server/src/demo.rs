//! `millrace demo`: the main job on this machine, from nothing to an answer.
//!
//! Starts the real server and the real forwarder as processes of this same binary, with TLS, a
//! tenant and an enrolled device, and asks SQL over what the forwarder streams. `--for` ends by
//! itself and succeeds only if every row that was acknowledged is there, once.

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::Duration,
};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use millrace_platform::{
    clock::{Clock, SystemClock},
    disk::{Disk, RealDisk},
    durable,
    entropy::{OsEntropy, random_bytes},
};
use serde_json::{Value, json};

use crate::cli::{Failure, Remote, say};

/// Arguments of `millrace demo`.
#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// End after this long (30s, 2m) with status 0 only if rows sent equal rows queried.
    #[arg(long = "for", value_name = "TIME", value_parser = seconds)]
    length: Option<Duration>,
    /// Folder for the demo's data; a new temporary one by default, removed at the end.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let (number, unit) = match text.strip_suffix('m') {
        Some(minutes) => (minutes, 60),
        None => (text.strip_suffix('s').unwrap_or(text), 1),
    };
    let n: u64 = number.parse().map_err(|_| format!("`{text}` is not a time like 30s or 2m"))?;
    Ok(Duration::from_secs(n.saturating_mul(unit).max(5)))
}

/// A child that ends with us.
struct Running(Child);

impl Running {
    /// SIGTERM, then wait.
    fn stop(&mut self) {
        let pid = self.0.id().to_string();
        drop(Command::new("kill").args(["-TERM", &pid]).status());
        drop(self.0.wait());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            drop(self.0.kill());
            drop(self.0.wait());
        }
    }
}

/// Asks SQL in a format.
type Ask<'a> = dyn Fn(&str, &str) -> Result<Vec<u8>, Failure> + 'a;

struct Demo {
    dir: PathBuf,
    binary: PathBuf,
    progress: ProgressBar,
}

/// Runs the demo.
pub(crate) fn run(args: DemoArgs) -> Result<(), Failure> {
    let (dir, temporary) = match args.data_dir {
        Some(dir) => (dir, false),
        None => {
            let name = format!("millrace-demo-{}", hex_of(random_bytes::<6>(&OsEntropy)));
            (std::env::temp_dir().join(name), true)
        }
    };
    RealDisk.create_dir_all(&dir)?;
    let progress = ProgressBar::new_spinner();
    progress.set_style(ProgressStyle::with_template("{spinner} {msg}")?);
    progress.enable_steady_tick(Duration::from_millis(120));
    let demo = Demo { dir: dir.clone(), binary: std::env::current_exe()?, progress };
    let done = demo.play(args.length);
    demo.progress.finish_and_clear();
    if temporary {
        remove(&dir);
    }
    done
}

#[expect(clippy::disallowed_methods, reason = "removes the demo's own temporary folder")]
fn remove(dir: &Path) {
    drop(std::fs::remove_dir_all(dir));
}

fn hex_of(bytes: [u8; 6]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

impl Demo {
    fn server_dir(&self) -> PathBuf {
        self.dir.join("server")
    }

    fn edge_dir(&self) -> PathBuf {
        self.dir.join("edge")
    }

    fn ca(&self) -> PathBuf {
        self.server_dir().join("tls").join("ca.pem")
    }

    /// Runs one command of this binary to its end; its standard output.
    fn command(&self, args: &[&str]) -> Result<String, Failure> {
        let output = Command::new(&self.binary).args(args).stdin(Stdio::null()).output()?;
        if !output.status.success() {
            let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(Failure(why));
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Starts the server and waits for its address.
    fn server(&self) -> Result<(Running, String), Failure> {
        let log = log_file(&self.dir.join("server.log"))?;
        let mut child = Command::new(&self.binary)
            .args(["serve", "--listen", "127.0.0.1:0", "--data-dir"])
            .arg(self.server_dir())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()?;
        let stdout = child.stdout.take();
        let running = Running(child);
        let (tell, told) = mpsc::sync_channel(1);
        std::thread::spawn(move || {
            for line in
                stdout.into_iter().flat_map(|s| BufReader::new(s).lines()).map_while(Result::ok)
            {
                if let Some(at) = line.find("https://") {
                    let url = line
                        .get(at..)
                        .and_then(|l| l.split_whitespace().next())
                        .unwrap_or_default();
                    drop(tell.try_send(url.to_owned()));
                }
            }
        });
        match told.recv_timeout(Duration::from_secs(60)) {
            Ok(url) => Ok((running, url)),
            Err(_) => Err(Failure(format!(
                "the server did not start; see {}",
                self.dir.join("server.log").display()
            ))),
        }
    }

    fn forwarder(&self) -> Result<Running, Failure> {
        let log = log_file(&self.dir.join("edge.log"))?;
        let child = Command::new(&self.binary)
            .args(["edge", "run", "--source", "host-metrics", "--interval", "1", "--data-dir"])
            .arg(self.edge_dir())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        Ok(Running(child))
    }

    fn play(&self, length: Option<Duration>) -> Result<(), Failure> {
        let clock = SystemClock::new();
        let say_step = |text: &str| {
            self.progress.set_message(text.to_owned());
            if self.progress.is_hidden() {
                say(text);
            }
        };
        let server_dir = self.server_dir();
        let server_dir = server_dir.to_string_lossy();
        say_step("1/5 making a tenant with its own key, and a token");
        if self.command(&["tenant", "create", "demo", "--data-dir", &server_dir]).is_err() {
            say_step("the folder already holds a demo; it is continued");
        }
        let token = self.command(&[
            "token",
            "create",
            "--tenant",
            "demo",
            "--scope",
            "read,write",
            "--data-dir",
            &server_dir,
        ])?;
        let token_file = self.dir.join("demo.token");
        durable::replace(&RealDisk, &token_file, token.as_bytes())?;
        let enrolled = RealDisk.exists(&self.edge_dir().join("identity.json"))?;
        let claim = if enrolled {
            None
        } else {
            Some(self.command(&[
                "device",
                "claim",
                "--tenant",
                "demo",
                "--data-dir",
                &server_dir,
            ])?)
        };
        say_step("2/5 starting the server (TLS only)");
        let (mut server, url) = self.server()?;
        if let Some(claim) = claim {
            say_step("3/5 enrolling a forwarder: its key is made here and stays here");
            let mut enroll = Command::new(&self.binary);
            enroll.args(["edge", "enroll", &url, "--ca"]).arg(self.ca());
            enroll.arg("--data-dir").arg(self.edge_dir());
            // The claim code is a secret until it is used: by environment, not by argument.
            enroll.env("MILLRACE_CLAIM", claim.trim()).stdin(Stdio::null());
            let done = enroll.output()?;
            if !done.status.success() {
                return Err(Failure(String::from_utf8_lossy(&done.stderr).trim().to_owned()));
            }
        }
        say_step("4/5 streaming this machine's metrics through the forwarder");
        let mut forwarder = self.forwarder()?;
        let remote = Remote {
            url: Some(url.clone()),
            ca: Some(self.ca()),
            token_file: Some(token_file.clone()),
        };
        let client = remote.client()?;
        let ask = |sql: &str, format: &str| {
            client
                .post("/api/v3/query_sql", &json!({ "db": "default", "q": sql, "format": format }))
        };
        let started = clock.monotonic();
        let warm = Duration::from_secs(4);
        while clock.monotonic().saturating_sub(started) < warm
            || ask("SELECT count(*) FROM host_load", "json").is_err()
        {
            if clock.monotonic().saturating_sub(started) > Duration::from_secs(60) {
                return Err(Failure(format!(
                    "no rows arrived; see {}",
                    self.dir.join("edge.log").display()
                )));
            }
            wait(Duration::from_millis(200));
        }
        say_step("5/5 asking SQL over them");
        let table = ask(
            "SELECT cpu, count(*) AS samples, round(100.0 * (max(user_ms) + max(system_ms) - min(user_ms) - min(system_ms)) \
             / NULLIF(max(user_ms) + max(system_ms) + max(idle_ms) - min(user_ms) - min(system_ms) - min(idle_ms), 0), 1) AS busy_percent, \
             max(time) AS latest FROM host_cpu GROUP BY cpu ORDER BY cpu",
            "pretty",
        )?;
        self.progress.suspend(|| self.show(&String::from_utf8_lossy(&table), &url, &token_file));
        match length {
            None => {
                self.progress.set_message("running; Ctrl-C ends the demo");
                // The children get the same Ctrl-C and end in order.
                drop(forwarder.0.wait());
                drop(server.0.wait());
                Ok(())
            }
            Some(length) => {
                while clock.monotonic().saturating_sub(started) < length {
                    self.progress
                        .set_message(format!("streaming; ends after {} s", length.as_secs()));
                    wait(Duration::from_millis(200));
                }
                forwarder.stop();
                let verdict = self.compare(&ask);
                server.stop();
                verdict
            }
        }
    }

    /// Rows that the forwarder had acknowledged against rows that SQL counts.
    fn compare(&self, ask: &Ask<'_>) -> Result<(), Failure> {
        let status = millrace_platform::disk::read_file(
            &RealDisk,
            &self.edge_dir().join("status.json"),
            1 << 20,
        )?;
        let status: Value = serde_json::from_slice(&status)?;
        let acked = status.get("rows_acked").and_then(Value::as_u64).unwrap_or(0);
        let tables = ask(
            "SELECT table_name FROM information_schema.tables WHERE table_schema = 'default'",
            "json",
        )?;
        let tables: Value = serde_json::from_slice(&tables)?;
        let mut found = 0;
        for table in tables.as_array().into_iter().flatten() {
            let name = table.get("table_name").and_then(Value::as_str).unwrap_or_default();
            let answer = ask(&format!("SELECT count(*) AS n FROM \"{name}\""), "json")?;
            let answer: Value = serde_json::from_slice(&answer)?;
            found += answer.pointer("/0/n").and_then(Value::as_u64).unwrap_or(0);
        }
        let verdict =
            format!("rows acknowledged to the forwarder: {acked}, rows that SQL counts: {found}");
        // Rows whose ack was on its way when the forwarder stopped are stored but not counted here.
        if acked == 0 || found < acked {
            return Err(Failure(format!("{verdict}: the demo failed")));
        }
        let sent = status.get("rows_queued").and_then(Value::as_u64).unwrap_or(0);
        if found > sent {
            return Err(Failure(format!("{verdict}, rows sent: {sent}: rows were doubled")));
        }
        say(&format!("{verdict}, rows sent: {sent}"));
        if sent != found {
            return Err(Failure(format!("{sent} rows were sent and {found} are there")));
        }
        Ok(())
    }

    fn show(&self, table: &str, url: &str, token_file: &Path) {
        let (ca, token) = (self.ca(), token_file.display());
        let ca = ca.display();
        say(&format!(
            "\nBusy CPUs of this machine, by SQL over rows that came through the forwarder:\n{}\n\
             Ask for yourself:\n\
             \n  millrace sql --url {url} --ca {ca} --token-file {token} 'SELECT * FROM host_memory ORDER BY time DESC LIMIT 5'\n\
             \n  curl --cacert {ca} -H \"Authorization: Bearer $(cat {token})\" -G {url}/api/v3/query_sql --data-urlencode 'q=SHOW TABLES' -d format=pretty\n\
             \n  python3 -c \"from influxdb_client_3 import InfluxDBClient3 as C; print(C(host='{url}', token=open('{token}').read(), database='default', ssl_ca_cert='{ca}').query('SELECT * FROM host_load LIMIT 5').to_pandas())\"\n",
            table.trim_end()
        ));
    }
}

#[expect(clippy::disallowed_methods, reason = "a child's log is a plain file of the demo")]
fn log_file(path: &Path) -> Result<Stdio, Failure> {
    Ok(std::fs::File::create(path)?.into())
}

#[expect(clippy::disallowed_methods, reason = "the demo paces itself for a person watching")]
fn wait(time: Duration) {
    std::thread::sleep(time);
}

/// The forwarder as a hidden subcommand: the demo's child process.
pub(crate) fn forwarder(args: Vec<String>) -> std::process::ExitCode {
    millrace_edge::cli::run_from(args)
}
