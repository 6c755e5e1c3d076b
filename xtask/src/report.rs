//! What the person at the terminal sees: steps with their time, and one closing line.
//!
//! Owns: running a child process while its output passes through, counting tests in that output.
//! Never: hides output. A failing step does not stop the ones after it, unless they need it.

use std::{
    fmt, io,
    io::{BufRead, BufReader, Write},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// Why a command could not do its work; printed to the terminal as it is.
#[derive(Debug)]
pub(crate) struct Problem(pub(crate) String);

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<io::Error> for Problem {
    fn from(e: io::Error) -> Self {
        Self(e.to_string())
    }
}

/// What every command returns.
pub(crate) type Outcome = Result<(), Problem>;

/// Tests seen in the output of one step.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Count {
    /// Tests that passed.
    pub(crate) passed: u64,
    /// Tests that failed.
    pub(crate) failed: u64,
}

/// Reads the number in front of `word`: `12` in `… 12 passed …`.
fn number_before(line: &str, word: &str) -> Option<u64> {
    let head = line.get(..line.find(word)?)?.trim_end();
    let digits = head.rfind(|c: char| !c.is_ascii_digit()).map_or(head, |i| {
        let start = i + head[i..].chars().next().map_or(1, char::len_utf8);
        &head[start..]
    });
    digits.parse().ok()
}

impl Count {
    /// Adds what one line of a test runner's output says: nextest's summary, `cargo test`'s
    /// result lines, Python's unittest.
    pub(crate) fn read(&mut self, line: &str) {
        let line = line.trim();
        if line.starts_with("Summary [") || line.starts_with("test result:") {
            self.passed += number_before(line, " passed").unwrap_or(0);
            self.failed += number_before(line, " failed").unwrap_or(0);
            self.failed += number_before(line, " timed out").unwrap_or(0);
        } else if line.starts_with("Ran ") && line.contains(" test") {
            self.passed += number_before(line, " test").unwrap_or(0);
        } else if line.starts_with("FAILED (") {
            // unittest counts its failures among the tests it ran.
            let of = |word: &str| {
                let from = line.find(word)? + word.len();
                let rest = line.get(from..)?;
                let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
                rest.get(..end)?.parse::<u64>().ok()
            };
            let bad = of("failures=").unwrap_or(0) + of("errors=").unwrap_or(0);
            self.failed += bad;
            self.passed = self.passed.saturating_sub(bad);
        } else if line.starts_with("OK (skipped=") || line.contains(", skipped=") {
            // Skipped tests are neither; the runner's own line names them.
        }
    }
}

/// A run of several steps.
#[derive(Debug)]
pub(crate) struct Report {
    title: &'static str,
    started: Instant,
    planned: usize,
    done: Vec<(String, Duration, bool, Count)>,
}

impl Report {
    /// A report over `planned` steps.
    pub(crate) fn new(title: &'static str, planned: usize) -> Self {
        Self { title, started: Instant::now(), planned, done: Vec::new() }
    }

    /// Runs one step that is not a process.
    pub(crate) fn step(&mut self, name: &str, work: impl FnOnce() -> Outcome) -> bool {
        let started = self.head(name);
        let outcome = work();
        if let Err(problem) = &outcome {
            eprintln!("{problem}");
        }
        self.tail(name, started, outcome.is_ok(), Count::default())
    }

    /// Runs one step that is a process whose output passes through and whose tests are counted.
    pub(crate) fn process(&mut self, name: &str, command: &mut Command) -> bool {
        let started = self.head(name);
        let (fine, count) = match watched(command) {
            Ok(seen) => seen,
            Err(e) => {
                let program = command.get_program().to_string_lossy();
                eprintln!("cannot start `{program}`: {e}");
                (false, Count::default())
            }
        };
        self.tail(name, started, fine, count)
    }

    fn head(&self, name: &str) -> Instant {
        println!("\n== {} {}/{}: {name}", self.title, self.done.len() + 1, self.planned);
        Instant::now()
    }

    fn tail(&mut self, name: &str, started: Instant, fine: bool, mut count: Count) -> bool {
        if !fine && count.failed == 0 {
            // The step itself failed: it counts as one failure even if no test said so.
            count.failed = 1;
        }
        let took = started.elapsed();
        println!("-- {name}: {} in {}", if fine { "ok" } else { "FAILED" }, seconds(took));
        self.done.push((name.to_owned(), took, fine, count));
        fine
    }

    /// Prints the table of steps and the closing line `N passed, N failed`. A step that is not a
    /// test runner counts as one check.
    pub(crate) fn close(self) -> Outcome {
        println!("\n{:<44} {:>9}  result", self.title, "time");
        let mut total = Count::default();
        for (name, took, fine, count) in &self.done {
            let tests = match (fine, *count) {
                (_, c) if c.passed + c.failed > 0 => {
                    format!("{} passed, {} failed", c.passed, c.failed)
                }
                (true, _) => "ok".to_owned(),
                (false, _) => "FAILED".to_owned(),
            };
            println!("{name:<44} {:>9}  {tests}", seconds(*took));
            total.passed += count.passed.max(u64::from(*fine && count.passed == 0));
            total.failed += count.failed;
        }
        println!("{:<44} {:>9}", "all", seconds(self.started.elapsed()));
        println!("\n{} passed, {} failed", total.passed, total.failed);
        if total.failed == 0 {
            Ok(())
        } else {
            let bad: Vec<&str> = self.done.iter().filter(|d| !d.2).map(|d| d.0.as_str()).collect();
            Err(Problem(format!("failed: {}", bad.join(", "))))
        }
    }
}

fn seconds(d: Duration) -> String {
    if d.as_secs() >= 60 {
        format!("{} min {:02} s", d.as_secs() / 60, d.as_secs() % 60)
    } else {
        format!("{:.1} s", d.as_secs_f64())
    }
}

/// Runs a process, passing its output through line by line, and counts the tests it reports.
fn watched(command: &mut Command) -> io::Result<(bool, Count)> {
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let stdout = child.stdout.take();
    let stderr = child.stderr.take();
    let count = std::thread::scope(|scope| {
        let errors = scope.spawn(move || stderr.map(|s| pass(s, io::stderr())));
        let mut count = stdout.map(|s| pass(s, io::stdout())).unwrap_or_default();
        if let Ok(Some(more)) = errors.join() {
            count.passed += more.passed;
            count.failed += more.failed;
        }
        count
    });
    Ok((child.wait()?.success(), count))
}

fn pass(from: impl io::Read, mut to: impl Write) -> Count {
    let mut count = Count::default();
    let mut reader = BufReader::new(from);
    let mut line = Vec::new();
    while matches!(reader.read_until(b'\n', &mut line), Ok(n) if n > 0) {
        count.read(&String::from_utf8_lossy(&line));
        // A closed terminal must not stop the tests.
        drop(to.write_all(&line));
        line.clear();
    }
    drop(to.flush());
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(lines: &[&str]) -> (u64, u64) {
        let mut count = Count::default();
        for line in lines {
            count.read(line);
        }
        (count.passed, count.failed)
    }

    #[test]
    fn tests_are_counted_in_the_output_of_every_runner_we_use() {
        let nextest =
            "     Summary [   4.155s] 31 tests run: 29 passed (1 slow), 2 failed, 1 skipped";
        assert_eq!(counted(&[nextest]), (29, 2));
        let libtest = "test result: ok. 7 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out";
        assert_eq!(counted(&[libtest, libtest]), (14, 0));
        assert_eq!(counted(&["Ran 5 tests in 1.2s", "FAILED (failures=1, errors=1)"]), (3, 2));
        assert_eq!(counted(&["nothing here", "3 passed on the street"]), (0, 0));
    }
}
