//! A child process whose output is kept and can be waited for.
//!
//! Owns: reading both of its streams on threads, so that a full pipe never blocks it.
//! Never: sleeps. Waiting is for a line, an exit, or a deadline that fails the test.

use std::{
    io::{BufRead, BufReader, Read, Write},
    path::PathBuf,
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// How long anything may take before the test gives up: generous, because two cores may be busy
/// with a build.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// The binary of this build, found beside the test executable.
pub fn binary(name: &str) -> PathBuf {
    let mut folder = std::env::current_exe().expect("a test has an executable");
    folder.pop();
    if folder.ends_with("deps") {
        folder.pop();
    }
    let path = folder.join(name);
    assert!(
        path.exists(),
        "{} is missing: build it first with `cargo build --workspace`",
        path.display()
    );
    path
}

#[derive(Debug, Default)]
struct Output {
    text: Vec<u8>,
    open_streams: usize,
}

/// A running child.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    output: Arc<(Mutex<Output>, Condvar)>,
    stdin: Option<ChildStdin>,
}

impl Process {
    /// Starts a command with its streams captured.
    pub fn start(name: &str, command: &mut Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|e| panic!("cannot start {name}: {e}"));
        let output =
            Arc::new((Mutex::new(Output { text: Vec::new(), open_streams: 2 }), Condvar::new()));
        let streams: [Box<dyn Read + Send>; 2] = [
            Box::new(child.stdout.take().expect("stdout is piped")),
            Box::new(child.stderr.take().expect("stderr is piped")),
        ];
        for stream in streams {
            let output = Arc::clone(&output);
            std::thread::spawn(move || collect(stream, &output));
        }
        let stdin = child.stdin.take();
        Self { name: name.to_owned(), child, output, stdin }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Everything it has written so far, both streams, as they came.
    pub fn output(&self) -> Vec<u8> {
        self.lock().text.clone()
    }

    /// [`Self::output`] as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.output()).into_owned()
    }

    /// Waits until `find` sees in the output what it looks for.
    pub fn wait_for<T>(&self, what: &str, find: impl Fn(&str) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        let mut output = self.lock();
        loop {
            let text = String::from_utf8_lossy(&output.text).into_owned();
            if let Some(found) = find(&text) {
                return found;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if output.open_streams == 0 || left.is_zero() {
                drop(output);
                panic!("{} did not say {what}; it said:\n{text}", self.name);
            }
            let waited = self.output.1.wait_timeout(output, left);
            output = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Writes to its standard input; false if it no longer reads.
    pub fn write(&mut self, bytes: &[u8]) -> bool {
        self.stdin.as_mut().is_some_and(|s| s.write_all(bytes).and_then(|()| s.flush()).is_ok())
    }

    /// Closes its standard input.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// kill -9, and waits until the kernel is done with it.
    pub fn kill9(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }

    /// Asks it to end (SIGTERM) and waits.
    pub fn terminate(&mut self) -> ExitStatus {
        drop(Command::new("kill").arg("-TERM").arg(self.id().to_string()).status());
        self.wait()
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        let mut output = self.lock();
        // Its streams close when it ends; nothing else holds them.
        while output.open_streams > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                drop(output);
                panic!("{} did not end; it said:\n{}", self.name, self.text());
            }
            let waited = self.output.1.wait_timeout(output, left);
            output = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(output);
        self.child.wait().expect("a child can be waited for")
    }

    fn lock(&self) -> MutexGuard<'_, Output> {
        // A test that has failed elsewhere still wants to show what was said.
        self.output.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill9();
        if std::thread::panicking() {
            eprintln!("--- what {} said:\n{}---", self.name, self.text());
        }
    }
}

fn collect(stream: impl Read, output: &(Mutex<Output>, Condvar)) {
    let mut reader = BufReader::new(stream);
    let mut line = Vec::new();
    while matches!(reader.read_until(b'\n', &mut line), Ok(n) if n > 0) {
        if let Ok(mut output) = output.0.lock() {
            output.text.append(&mut line);
        }
        output.1.notify_all();
    }
    if let Ok(mut output) = output.0.lock() {
        output.open_streams -= 1;
    }
    output.1.notify_all();
}

/// Runs a command to its end and returns its standard output; panics with everything it said if
/// it fails.
pub fn run(name: &str, command: &mut Command) -> String {
    let (fine, out, err) = attempt(command);
    assert!(fine, "{name} failed:\n{out}{err}");
    out
}

/// Runs a command to its end: success, standard output, standard error.
pub fn attempt(command: &mut Command) -> (bool, String, String) {
    let output = command.stdin(Stdio::null()).output().expect("the command starts");
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    (output.status.success(), text(&output.stdout), text(&output.stderr))
}
