//! A real forwarder with its folder, up or down.
//!
//! Owns: enrolling it, feeding its standard input, killing and restarting it.

use std::{path::PathBuf, process::Command};

use tempfile::TempDir;

use crate::{
    process::{self, Process},
    server::World,
};

/// An enrolled forwarder.
#[derive(Debug)]
pub struct Forwarder {
    folder: TempDir,
    args: Vec<String>,
    process: Option<Process>,
    said: Vec<u8>,
}

impl Forwarder {
    /// Enrols a new device of `tenant` with the running server. `sources` are arguments of
    /// `millrace-edge run`.
    pub fn enrol(world: &World, tenant: &str, sources: &[&str]) -> Self {
        Self::enrol_with(world, &world.claim(tenant), sources)
    }

    /// Enrols with this claim code.
    pub fn enrol_with(world: &World, code: &str, sources: &[&str]) -> Self {
        let folder = TempDir::with_prefix("millrace-edge-").expect("a temporary folder");
        let forwarder = Self {
            folder,
            args: sources.iter().map(|s| (*s).to_owned()).collect(),
            process: None,
            said: Vec::new(),
        };
        let mut enrol = forwarder.command("enroll");
        enrol.arg(&world.server().base).arg("--claim").arg(code).arg("--ca").arg(world.ca_path());
        process::run("millrace-edge enroll", &mut enrol);
        forwarder
    }

    /// A command of the `millrace-edge` binary on this forwarder's folder.
    pub fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(process::binary("millrace-edge"));
        command.arg(verb).arg("--data-dir").arg(self.folder());
        command
    }

    /// The id of the device that it is.
    pub fn device(&self) -> String {
        let path = self.folder().join("identity.json");
        let text = std::fs::read_to_string(path).expect("it is enrolled");
        let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        json["device"].as_str().expect("an id").to_owned()
    }

    /// The forwarder's own folder: identity and queue.
    pub fn folder(&self) -> PathBuf {
        self.folder.path().join("edge")
    }

    /// Starts it.
    pub fn start(&mut self) {
        let mut command = self.command("run");
        command.args(&self.args);
        self.process = Some(Process::start("millrace-edge run", &mut command));
    }

    /// The running process.
    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("the forwarder is up")
    }

    /// kill -9.
    pub fn kill9(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill9();
            self.said.extend_from_slice(&process.output());
        }
    }

    /// Everything that it has ever written to its terminal.
    pub fn said(&self) -> Vec<u8> {
        let mut all = self.said.clone();
        if let Some(process) = &self.process {
            all.extend_from_slice(&process.output());
        }
        all
    }
}
