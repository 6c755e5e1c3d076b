//! The fuzz targets, each for so many seconds, by cargo-fuzz.
//!
//! Owns: the pinned version of the tool, which targets there are (those of `fuzz/Cargo.toml`), and
//! that what libFuzzer finds interesting stays out of the checkout.
//! Never: hides a finding. An input that fails is printed with the command that replays it.

use std::{
    collections::VecDeque,
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use crate::{
    need,
    report::{Outcome, Problem},
    tree,
};

const VERSION: &str = "0.13.2";
/// Longest input, bytes: frames, manifests and batches of this size reach all of the code.
const LONGEST: usize = 16 * 1024;
/// Memory of one target, MiB: what claims more than its input justifies is a finding.
const MEMORY_MIB: u32 = 2048;

/// What `cargo xtask fuzz` takes.
#[derive(clap::Args)]
pub(crate) struct FuzzArgs {
    /// Seconds of each target.
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Only these targets; all without it.
    targets: Vec<String>,
}

/// The names of the `[[bin]]`s of `fuzz/Cargo.toml`.
fn targets() -> Result<Vec<String>, Problem> {
    let text = tree::text("fuzz/Cargo.toml".as_ref())?.unwrap_or_default();
    let bins = text.split("[[bin]]").skip(1);
    let name = |bin: &str| {
        let line = bin.lines().find(|l| l.trim_start().starts_with("name"))?;
        Some(line.split('"').nth(1)?.to_owned())
    };
    Ok(bins.filter_map(name).collect())
}

struct Fuzzer {
    program: PathBuf,
    seconds: u32,
}

impl Fuzzer {
    /// The tool, with its build and its corpora in our target folder. Sanitisers need switches
    /// that the stable compiler only takes when told that it may.
    fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(["fuzz", verb])
            .current_dir(tree::root())
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_TARGET_DIR", need::target().join("fuzz"))
            .stdin(Stdio::null());
        command
    }

    fn start(&self, target: &str) -> Result<Child, Problem> {
        let corpus = need::target().join("fuzz").join("corpus").join(target);
        fs::create_dir_all(&corpus)?;
        let log = need::target().join("fuzz").join(format!("{target}.log"));
        let log = fs::File::create(log)?;
        let mut command = self.command("run");
        command
            .arg(target)
            .arg(&corpus)
            .arg(tree::root().join("fuzz").join("seeds").join(target))
            .arg("--")
            .arg(format!("-max_total_time={}", self.seconds))
            .arg(format!("-max_len={LONGEST}"))
            .arg(format!("-rss_limit_mb={MEMORY_MIB}"))
            .arg("-print_final_stats=1")
            .stdout(log.try_clone()?)
            .stderr(log);
        Ok(command.spawn()?)
    }

    /// Waits for the target, says how many inputs it ran, and shows everything it said if it failed.
    fn end(&self, target: &str, mut child: Child) -> Result<bool, Problem> {
        let fine = child.wait()?.success();
        let log = need::target().join("fuzz").join(format!("{target}.log"));
        let said = String::from_utf8_lossy(&fs::read(log)?).into_owned();
        let runs = said
            .lines()
            .find_map(|l| l.strip_prefix("stat::number_of_executed_units:"))
            .and_then(|n| n.trim().parse::<u64>().ok());
        match runs {
            Some(runs) if fine && runs > 0 => println!("{target}: {runs} inputs, nothing found"),
            _ => {
                println!("{said}");
                println!("{target}: FAILED; fuzz/README.md says how to replay and keep the input");
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// The command: the targets are built together, then run, one for each core at a time.
pub(crate) fn run(args: &FuzzArgs) -> Outcome {
    let known = targets()?;
    if let Some(unknown) = args.targets.iter().find(|t| !known.contains(t)) {
        return Err(Problem(format!("no fuzz target `{unknown}`; there are {}", known.join(", "))));
    }
    let wanted = if args.targets.is_empty() { known } else { args.targets.clone() };
    let program = need::cargo_tool("cargo-fuzz", VERSION)?;
    let fuzzer = Fuzzer { program, seconds: args.seconds };
    if !fuzzer.command("build").status()?.success() {
        return Err(Problem("the fuzz targets do not build".into()));
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    println!(
        "{} targets, {} each, {cores} at a time",
        wanted.len(),
        humane(Duration::from_secs(args.seconds.into()))
    );
    let (mut running, mut failed) = (VecDeque::new(), 0u64);
    for target in &wanted {
        if running.len() == cores
            && let Some((name, child)) = running.pop_front()
        {
            failed += u64::from(!fuzzer.end(name, child)?);
        }
        running.push_back((target, fuzzer.start(target)?));
    }
    for (name, child) in running {
        failed += u64::from(!fuzzer.end(name, child)?);
    }
    println!("{} passed, {failed} failed", wanted.len() as u64 - failed);
    if failed == 0 {
        Ok(())
    } else {
        Err(Problem(format!("{failed} fuzz targets found something")))
    }
}

fn humane(time: Duration) -> String {
    let s = time.as_secs();
    if s < 120 { format!("{s} s") } else { format!("{} min", s / 60) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_has_seeds_and_a_line_in_the_readme() {
        let readme = tree::text("fuzz/README.md".as_ref()).unwrap().unwrap();
        let targets = targets().unwrap();
        assert!(targets.len() >= 6, "{targets:?}");
        for target in targets {
            let seeds = tree::root().join("fuzz").join("seeds").join(&target);
            assert!(fs::read_dir(&seeds).is_ok_and(|s| s.count() > 0), "no seeds for {target}");
            assert!(readme.contains(&format!("| `{target}` |")), "{target} is not in the table");
        }
    }
}
