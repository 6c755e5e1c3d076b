//! A real server on a port of its own, with its data in a folder that outlives it.
//!
//! Owns: starting, killing and restarting it; making tenants and tokens with its own command
//! line.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;

use crate::{
    http::Client,
    process::{self, Process},
};

/// A data folder with tenants in it, and the server over it, up or down.
#[derive(Debug)]
pub struct World {
    folder: TempDir,
    /// Known after the first start, so that a restart listens where clients look.
    port: Option<u16>,
    server: Option<Server>,
    /// Everything that servers of this world have ever written to their terminal.
    said: Vec<u8>,
    settings: Vec<String>,
    environment: Vec<(String, String)>,
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    /// The process.
    pub process: Process,
    /// `https://127.0.0.1:PORT`.
    pub base: String,
}

/// Finds the first `https://127.0.0.1:PORT` in a text.
fn address(text: &str) -> Option<String> {
    let start = text.find("https://127.0.0.1:")?;
    let tail = text.get(start + "https://127.0.0.1:".len()..)?;
    let port: String = tail.chars().take_while(char::is_ascii_digit).collect();
    // The line may still be on its way: a port is complete when something follows it.
    let complete = tail.len() > port.len();
    (complete && !port.is_empty() && port != "0").then(|| format!("https://127.0.0.1:{port}"))
}

impl World {
    /// An empty folder and no server.
    pub fn empty() -> Self {
        let folder = TempDir::with_prefix("millrace-e2e-").expect("a temporary folder");
        Self {
            folder,
            port: None,
            server: None,
            said: Vec::new(),
            settings: Vec::new(),
            environment: Vec::new(),
        }
    }

    /// A running server with one tenant `acme` and a client that may read and write.
    pub fn with_tenant() -> (Self, Client) {
        let mut world = Self::empty();
        world.tenant("acme");
        let token = world.token("acme", "write,read");
        world.start();
        let client = world.client(Some(&token));
        (world, client)
    }

    /// The folder that holds everything of this world.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The server's data folder.
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Further arguments of `millrace serve`, from the next start on.
    pub fn settings(&mut self, args: &[&str]) {
        self.settings = args.iter().map(|a| (*a).to_owned()).collect();
    }

    /// A further variable of every command's environment.
    pub fn environment(&mut self, name: &str, value: &str) {
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// A command of the `millrace` binary.
    pub fn millrace(&self, args: &[&str]) -> Command {
        let mut command = Command::new(process::binary("millrace"));
        command.args(args).current_dir(self.folder.path()).env_remove("MILLRACE_TOKEN");
        command.envs(self.environment.iter().cloned());
        command
    }

    /// Runs an administrative command: on the folder while the server is down, else over HTTPS
    /// with the operator's token.
    pub fn admin(&self, args: &[&str]) -> String {
        let data = self.data();
        let mut command = self.millrace(args);
        if let Some(server) = &self.server {
            let token =
                std::fs::read_to_string(data.join("operator.token")).expect("operator token");
            command.arg("--url").arg(&server.base).arg("--ca").arg(self.ca_path());
            command.env("MILLRACE_TOKEN", token.trim());
        } else {
            command.arg("--data-dir").arg(data);
        }
        process::run(&format!("millrace {}", args.join(" ")), &mut command)
    }

    /// Creates a tenant.
    pub fn tenant(&self, name: &str) {
        self.admin(&["tenant", "create", name]);
    }

    /// Creates a token and returns its secret text.
    pub fn token(&self, tenant: &str, scope: &str) -> String {
        let said = self.admin(&["token", "create", "--tenant", tenant, "--scope", scope, "--json"]);
        token_in(&said).unwrap_or_else(|| panic!("no token in: {said}"))
    }

    /// Creates a claim code for a new device.
    pub fn claim(&self, tenant: &str) -> String {
        let said = self.admin(&["device", "claim", "--tenant", tenant, "--json"]);
        let json: serde_json::Value =
            serde_json::from_str(&said).unwrap_or_else(|e| panic!("not JSON ({e}): {said}"));
        let code = json.get("code").or_else(|| json.get("claim_code")).and_then(|c| c.as_str());
        code.unwrap_or_else(|| panic!("no claim code in: {said}")).to_owned()
    }

    /// Starts the server and waits until it listens.
    pub fn start(&mut self) -> &Server {
        let process = self.launch();
        let base = process.wait_for("its address", address);
        self.port = base.rsplit(':').next().and_then(|p| p.parse().ok());
        self.server.insert(Server { process, base })
    }

    /// Starts the server without waiting for anything.
    pub fn launch(&self) -> Process {
        assert!(self.server.is_none(), "the server is up already");
        let listen = format!("127.0.0.1:{}", self.port.unwrap_or(0));
        let mut command = self.millrace(&["serve", "--listen", &listen]);
        command.arg("--data-dir").arg(self.data()).args(&self.settings);
        Process::start("millrace serve", &mut command)
    }

    /// The running server.
    pub fn server(&self) -> &Server {
        self.server.as_ref().expect("the server is up")
    }

    /// kill -9.
    pub fn kill9(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.process.kill9();
            self.said.extend_from_slice(&server.process.output());
        }
    }

    /// SIGTERM; the server must end with status 0.
    pub fn stop(&mut self) {
        if let Some(mut server) = self.server.take() {
            let status = server.process.terminate();
            self.said.extend_from_slice(&server.process.output());
            assert!(
                status.success(),
                "graceful shutdown ended with {status}:\n{}",
                server.process.text()
            );
        }
    }

    /// Everything that servers of this world have written to their terminal.
    pub fn said(&self) -> Vec<u8> {
        let mut all = self.said.clone();
        if let Some(server) = &self.server {
            all.extend_from_slice(&server.process.output());
        }
        all
    }

    /// The file with the development CA that the server made.
    pub fn ca_path(&self) -> PathBuf {
        self.data().join("tls").join("ca.pem")
    }

    /// The development CA.
    pub fn ca(&self) -> String {
        std::fs::read_to_string(self.ca_path()).expect("the server made a development CA")
    }

    /// Where PostgreSQL clients connect, if the settings have `--pg-listen`.
    pub fn pg(&self) -> std::net::SocketAddr {
        let said = String::from_utf8_lossy(&self.said()).into_owned();
        let at = said.rsplit("PostgreSQL clients connect to ").next().unwrap_or_default();
        let at = at.split_whitespace().next().and_then(|a| a.parse().ok());
        at.unwrap_or_else(|| panic!("no address for PostgreSQL in: {said}"))
    }

    /// A client of the running server.
    pub fn client(&self, token: Option<&str>) -> Client {
        Client::new(&self.server().base, &self.ca(), token)
    }

    /// The operator's own token.
    pub fn operator_token(&self) -> String {
        let text = std::fs::read_to_string(self.data().join("operator.token"));
        text.expect("the server made an operator token").trim().to_owned()
    }
}

/// The first token in a text.
pub fn token_in(text: &str) -> Option<String> {
    let start = text.find("mrt_")?;
    let tail = text.get(start..)?;
    Some(tail.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_' || *c == '-').collect())
}
