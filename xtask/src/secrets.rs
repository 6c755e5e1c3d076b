//! Looks for secrets in the checkout.
//!
//! Owns: which detectors run, what was looked at and found harmless (`xtask/secrets.allow`), and
//! the proof that the scanner is awake: a planted secret must be found before anything else.
//! Never: prints what it found, only where.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

use crate::{
    need,
    report::{Outcome, Problem},
    tree,
};

const ALLOW: &str = "xtask/secrets.allow";

/// Detectors that cannot tell a key from a checksum or an address.
const OFF: [&str; 2] = ["HexHighEntropyString", "IPPublicDetector"];

/// Where something that looks like a secret stands.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Finding {
    file: String,
    line: u64,
    kind: String,
    /// SHA-1 of the secret, by which the allow list names it.
    print: String,
}

/// Runs the detectors over files given by name, relative to `folder`.
fn detect(python: &Path, folder: &Path, files: &[PathBuf]) -> Result<Vec<Finding>, Problem> {
    let mut found = Vec::new();
    // The argument list of a process is bounded.
    for some in files.chunks(500) {
        let mut scan = Command::new(python);
        scan.args(["-m", "detect_secrets", "scan", "--no-verify"]);
        for plugin in OFF {
            scan.args(["--disable-plugin", plugin]);
        }
        let output = scan.args(some).current_dir(folder).output()?;
        if !output.status.success() {
            return Err(Problem(String::from_utf8_lossy(&output.stderr).into_owned()));
        }
        let report: Value = serde_json::from_slice(&output.stdout)
            .map_err(|e| Problem(format!("the scanner's answer is not JSON: {e}")))?;
        let by_file = report["results"].as_object().cloned().unwrap_or_default();
        for (file, entries) in by_file {
            for entry in entries.as_array().into_iter().flatten() {
                let text = |key: &str| entry[key].as_str().unwrap_or_default().to_owned();
                found.push(Finding {
                    file: file.clone(),
                    line: entry["line_number"].as_u64().unwrap_or(0),
                    kind: text("type"),
                    print: text("hashed_secret"),
                });
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Our own tokens: the prefix and enough characters behind it to be one.
fn own_tokens(file: &Path, text: &str) -> Vec<Finding> {
    let mark = concat!("mr", "t_");
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        for tail in line.split(mark).skip(1) {
            let fits = |c: &char| c.is_ascii_alphanumeric() || *c == '_' || *c == '-';
            let token: Vec<char> = tail.chars().take_while(fits).collect();
            let kinds: BTreeSet<&char> = token.iter().collect();
            // Docs and tests show `mrt_…`, a short example or zeroes; a real one is long and random.
            if token.len() >= 50 && kinds.len() >= 10 {
                found.push(Finding {
                    file: file.display().to_string(),
                    line: number as u64 + 1,
                    kind: "Millrace token".to_owned(),
                    print: String::new(),
                });
            }
        }
    }
    found
}

/// A secret that every scanner must know, put together here so that this file holds none.
fn planted() -> String {
    format!("aws_access_key_id = {}{}\n", "AKIA", "Z7Q4PLANTEDK3YXX")
}

fn awake(python: &Path) -> Outcome {
    let folder = need::target().join("planted-secret");
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("planted.txt"), planted())?;
    let found = detect(python, &folder, &[PathBuf::from("planted.txt")])?;
    if found.iter().any(|f| f.kind.contains("AWS")) {
        Ok(())
    } else {
        Err(Problem("the scanner did not find a planted secret: its silence means nothing".into()))
    }
}

/// The SHA-1 prints that somebody looked at; every line says why it is harmless.
fn allowed() -> Result<BTreeSet<String>, Problem> {
    let text = tree::text(ALLOW.as_ref())?.unwrap_or_default();
    let mut prints = BTreeSet::new();
    for line in text.lines().filter(|l| !l.trim().is_empty() && !l.starts_with('#')) {
        let Some((print, why)) = line.split_once(' ') else {
            return Err(Problem(format!("{ALLOW}: `{line}` gives no reason")));
        };
        if why.trim().is_empty() {
            return Err(Problem(format!("{ALLOW}: `{print}` gives no reason")));
        }
        prints.insert(print.to_owned());
    }
    Ok(prints)
}

/// The command.
pub(crate) fn run() -> Outcome {
    let python = need::python()?;
    awake(&python)?;
    let files: Vec<PathBuf> = tree::files()?
        .into_iter()
        .filter(|f| f.file_name().is_some_and(|n| n != "Cargo.lock"))
        .collect();
    let mut found = detect(&python, &tree::root(), &files)?;
    for file in &files {
        if let Some(text) = tree::text(file)? {
            found.extend(own_tokens(file, &text));
        }
    }
    let allowed = allowed()?;
    found.retain(|f| !allowed.contains(&f.print));
    for f in &found {
        println!(
            "{}:{}: {}; if it is harmless, add to {ALLOW}: `{} why`",
            f.file, f.line, f.kind, f.print
        );
    }
    println!("secrets: {} findings in {} files; a planted one was found", found.len(), files.len());
    if found.is_empty() { Ok(()) } else { Err(Problem(format!("{} findings", found.len()))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a9_a_token_in_the_tree_is_found_and_a_mention_of_one_is_not() {
        let token = format!("curl -H 'Bearer {}{}'", concat!("mr", "t_"), "a9b8c7d6e5f4".repeat(6));
        let found = own_tokens(Path::new("docs/x.md"), &format!("fine mrt_TOKEN\n{token}\n"));
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].line, found[0].kind.as_str()), (2, "Millrace token"));
    }
}
