//! Checks of the checkout that a compiler does not make.
//!
//! Owns: module heads, no leftovers, no `mod.rs`, no dead file, links and names in the docs that
//! resolve, words that have no place in this tree.
//! Runs as a command and as this crate's tests, so nobody meets it first in continuous
//! integration.

use std::path::{Component, Path, PathBuf};

use crate::{
    report::{Outcome, Problem},
    tree,
};

/// Marks of unfinished work. Cut in two so that this file does not find itself.
const LEFTOVERS: [&str; 5] = [
    concat!("FIX", "ME"),
    concat!("TO", "DO"),
    concat!("to", "do!("),
    concat!("XX", "X:"),
    concat!("HA", "CK:"),
];

/// Paths of one machine and addresses of private mirrors, which mean nothing to a reader.
const FOREIGN: [&str; 6] = [
    concat!("/wo", "rk/"),
    concat!("/ro", "ot/"),
    concat!("/tm", "p/m/"),
    concat!("artif", "actory"),
    concat!("/opt/", "wheels"),
    concat!("index.crates.io", ":443"),
];

/// Folders whose files are data for tests: hostile on purpose, so words in them mean nothing.
const DATA: [&str; 2] = ["tests/corpus", "tests/sql"];

fn is_data(file: &Path) -> bool {
    DATA.iter().any(|d| file.starts_with(d))
}

/// All findings, one sentence each, with file and line.
fn findings() -> Result<Vec<String>, std::io::Error> {
    let files = tree::files()?;
    let mut found = Vec::new();
    for file in &files {
        if file.file_name().is_some_and(|n| n == "mod.rs") {
            found.push(format!(
                "{}: use `name.rs` beside `name/` instead of mod.rs",
                file.display()
            ));
        }
        let Some(text) = tree::text(file)? else { continue };
        if !is_data(file) {
            words(file, &text, &mut found);
        }
        match file.extension().and_then(|e| e.to_str()) {
            Some("rs") => {
                head(file, &text, &mut found);
                alive(file, &files, &mut found)?;
            }
            Some("md") => links(file, &text, &mut found),
            _ => {}
        }
    }
    code_map(Path::new("docs/architecture.md"), &mut found)?;
    Ok(found)
}

fn words(file: &Path, text: &str, found: &mut Vec<String>) {
    if file.file_name().is_some_and(|n| n == "Cargo.lock") {
        return;
    }
    for (number, line) in text.lines().enumerate() {
        for word in LEFTOVERS.iter().filter(|w| line.contains(**w)) {
            found.push(format!(
                "{}:{}: `{word}` marks unfinished work: finish it, or list it in docs/decisions/gaps.md",
                file.display(),
                number + 1
            ));
        }
        for word in FOREIGN.iter().filter(|w| line.contains(**w)) {
            found.push(format!(
                "{}:{}: `{word}` belongs to one machine, not to the project",
                file.display(),
                number + 1
            ));
        }
    }
}

/// A module says what it owns before it says anything else.
fn head(file: &Path, text: &str, found: &mut Vec<String>) {
    let first = text.lines().find(|l| !l.trim().is_empty()).unwrap_or("");
    if !first.starts_with("//!") {
        found.push(format!(
            "{}:1: no module head: start with `//!` saying what it owns, never does, keeps invariant",
            file.display()
        ));
    }
}

/// Whether some other file declares this one as a module; targets are named by Cargo instead.
fn alive(file: &Path, files: &[PathBuf], found: &mut Vec<String>) -> Result<(), std::io::Error> {
    let stem = file.file_stem().and_then(|s| s.to_str()).unwrap_or("");
    let folder = file.parent().unwrap_or(Path::new(""));
    let manifest = |dir: &Path| files.binary_search(&dir.join("Cargo.toml")).is_ok();
    let is_root = matches!(stem, "lib" | "main" | "build");
    let is_target = ["bin", "tests", "benches", "examples", "micro", "fuzz_targets"]
        .iter()
        .any(|f| folder.file_name().is_some_and(|n| n == *f))
        && folder.ancestors().any(manifest);
    if is_root || is_target {
        return Ok(());
    }
    let mut parents: Vec<PathBuf> =
        ["lib.rs", "main.rs"].iter().map(|root| folder.join(root)).collect();
    parents.push(folder.with_extension("rs"));
    for parent in parents.iter().filter(|p| files.binary_search(p).is_ok()) {
        let text = tree::text(parent)?.unwrap_or_default();
        let declares = text.lines().any(|line| {
            let line = line.trim();
            let line = line.strip_prefix("pub").map_or(line, |l| {
                l.strip_prefix('(')
                    .and_then(|l| l.split_once(')'))
                    .map_or(l, |(_, l)| l)
                    .trim_start()
            });
            line.strip_prefix("mod ").is_some_and(|l| l.trim_end_matches(';').trim() == stem)
        });
        if declares {
            return Ok(());
        }
    }
    found.push(format!("{}: no module declares this file, so it is never built", file.display()));
    Ok(())
}

/// `a/../b` as `b`, without asking the disk.
fn normal(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                out.pop();
            }
            Component::CurDir => {}
            other => out.push(other),
        }
    }
    out
}

/// Relative links of a page lead somewhere.
fn links(file: &Path, text: &str, found: &mut Vec<String>) {
    let mut fenced = false;
    for (number, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        }
        if fenced {
            continue;
        }
        let mut rest = line;
        while let Some(at) = rest.find("](") {
            rest = &rest[at + 2..];
            let Some(end) = rest.find(')') else { break };
            let target = rest[..end].split(['#', ' ']).next().unwrap_or("");
            rest = &rest[end..];
            if target.is_empty() || target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let path = normal(&file.parent().unwrap_or(Path::new("")).join(target));
            if !tree::root().join(&path).exists() {
                found.push(format!(
                    "{}:{}: the link `{target}` leads nowhere",
                    file.display(),
                    number + 1
                ));
            }
        }
    }
}

/// Whether a text in back quotes is meant as a path of this tree.
fn is_path(quoted: &str) -> bool {
    let plain =
        quoted.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '-'));
    let top = [
        "server/",
        "storage/",
        "query/",
        "edge-forwarder/",
        "libs/",
        "tests/",
        "benches/",
        "docs/",
        "xtask/",
        ".ci/",
        ".config/",
        ".cargo/",
    ];
    plain && top.iter().any(|t| quoted.starts_with(t))
}

/// Every file and folder that the code map names exists.
fn code_map(map: &Path, found: &mut Vec<String>) -> Result<(), std::io::Error> {
    let Some(text) = tree::text(map)? else { return Ok(()) };
    for (number, line) in text.lines().enumerate() {
        for quoted in line.split('`').skip(1).step_by(2).filter(|q| is_path(q)) {
            if !tree::root().join(quoted).exists() {
                found.push(format!("{}:{}: `{quoted}` does not exist", map.display(), number + 1));
            }
        }
    }
    Ok(())
}

/// The command.
pub(crate) fn run() -> Outcome {
    let found = findings()?;
    for line in &found {
        println!("{line}");
    }
    println!("tidy: {} findings in {} files", found.len(), tree::files()?.len());
    if found.is_empty() { Ok(()) } else { Err(Problem(format!("{} findings", found.len()))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_is_tidy() {
        let found = findings().unwrap();
        assert!(found.is_empty(), "\n{}", found.join("\n"));
    }

    #[test]
    fn a_file_without_a_head_is_named() {
        let mut found = Vec::new();
        head(Path::new("a.rs"), "\nfn f() {}\n", &mut found);
        head(Path::new("b.rs"), "//! Owns b.\n", &mut found);
        assert_eq!(found.len(), 1);
        assert!(found[0].starts_with("a.rs:1: no module head"));
    }

    #[test]
    fn leftovers_and_machine_paths_are_named_with_their_line() {
        let mut found = Vec::new();
        let text = format!("fine\n// {}: later\nsee {}x\n", LEFTOVERS[0], FOREIGN[0]);
        words(Path::new("a.rs"), &text, &mut found);
        assert!(found[0].starts_with("a.rs:2:") && found[1].starts_with("a.rs:3:"));
    }

    #[test]
    fn a_link_to_nowhere_is_named_and_one_in_a_code_block_is_not() {
        let mut found = Vec::new();
        let page =
            "[a](b/none.md) [w](https://example.org)\n```\n[x](none.md)\n```\n[c](../Cargo.toml#x)";
        links(Path::new("docs/p.md"), page, &mut found);
        assert_eq!(found, ["docs/p.md:1: the link `b/none.md` leads nowhere"]);
    }

    #[test]
    fn only_paths_of_this_tree_are_looked_up_in_the_code_map() {
        assert!(is_path("libs/wal/src/writer.rs"));
        assert!(!is_path("POST /api/v3/write_lp"));
        assert!(!is_path("storage/{series,memtable}"));
    }
}
