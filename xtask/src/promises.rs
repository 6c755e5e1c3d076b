//! Promise rows and the tests that prove them.
//!
//! Owns: reading docs/promises.md (one row per promise, with what is claimed today) and finding
//! tests by the prefix of their name: `d1_power_cut_…` proves D1, `d1_e9_…` proves both.
//! Never: believes a claim without a test, or a test that names a promise nobody made.

use std::collections::BTreeMap;

use crate::{
    report::{Outcome, Problem},
    tree,
};

const PAGE: &str = "docs/promises.md";

/// How far a row is true today.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Claim {
    /// True as it stands; needs a test.
    Whole,
    /// True in part, and the page says which part; needs a test.
    Part,
    /// Not claimed.
    No,
}

/// One row of the page.
#[derive(Debug, PartialEq, Eq)]
struct Row {
    id: String,
    title: String,
    claim: Claim,
}

/// The rows of every table of the page whose first cell looks like `E9`.
fn rows(page: &str) -> Result<Vec<Row>, Problem> {
    let mut rows = Vec::new();
    for line in page.lines().filter(|l| l.starts_with('|')) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [id, title, claim, ..] = cells[..] else { continue };
        if prefix(&id.to_lowercase()).is_none_or(|p| p.len() != id.len()) {
            continue;
        }
        let claim = match claim.split([' ', ':', ',']).next().unwrap_or("") {
            "yes" => Claim::Whole,
            "part" => Claim::Part,
            "no" => Claim::No,
            other => {
                return Err(Problem(format!(
                    "{PAGE}: {id} is claimed `{other}`: say yes, part or no"
                )));
            }
        };
        rows.push(Row { id: id.to_owned(), title: title.to_owned(), claim });
    }
    Ok(rows)
}

/// The promise id at the start of a name: `e9` of `e9_survives`, `d1` of `d1`.
fn prefix(name: &str) -> Option<&str> {
    let first = name.split('_').next()?;
    let mut chars = first.chars();
    let letter = chars.next()?.is_ascii_lowercase();
    let digits = chars.as_str();
    let number =
        !digits.is_empty() && digits.len() <= 2 && digits.bytes().all(|b| b.is_ascii_digit());
    (letter && number).then_some(first)
}

/// The ids that a test's name starts with.
fn ids(mut name: &str) -> Vec<String> {
    let mut ids = Vec::new();
    while let Some(id) = prefix(name) {
        ids.push(id.to_uppercase());
        name = name.get(id.len() + 1..).unwrap_or("");
    }
    ids
}

/// Names of test functions in a file, Rust or Python. In Rust a test has an attribute that says
/// so within the five lines above.
fn tests_in(text: &str, rust: bool) -> Vec<String> {
    let lines: Vec<&str> = text.lines().collect();
    let mut names = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let line = line.trim_start();
        let after = if rust {
            let line = line.strip_prefix("async ").unwrap_or(line);
            let marked = lines[at.saturating_sub(5)..at].iter().any(|l| {
                let l = l.trim_start();
                l.starts_with("#[") && l.contains("test") && !l.starts_with("#[cfg")
            });
            line.strip_prefix("fn ").filter(|_| marked)
        } else {
            line.strip_prefix("def test_")
        };
        if let Some(after) = after {
            names.push(after.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect());
        }
    }
    names
}

fn proofs() -> Result<BTreeMap<String, Vec<String>>, Problem> {
    let mut proofs: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (extension, rust) in [("rs", true), ("py", false)] {
        for file in tree::files_with(extension)? {
            let Some(text) = tree::text(&file)? else { continue };
            for name in tests_in(&text, rust) {
                for id in ids(&name) {
                    proofs.entry(id).or_default().push(format!("{} {name}", file.display()));
                }
            }
        }
    }
    Ok(proofs)
}

/// Rows claimed without a test, and tests of rows that do not exist.
fn findings(rows: &[Row], proofs: &BTreeMap<String, Vec<String>>) -> Vec<String> {
    let mut found = Vec::new();
    for row in rows {
        if row.claim != Claim::No && !proofs.contains_key(&row.id) {
            found.push(format!(
                "{} ({}) is claimed in {PAGE}, but no test's name starts with `{}_`",
                row.id,
                row.title,
                row.id.to_lowercase()
            ));
        }
    }
    for (id, tests) in proofs {
        if !rows.iter().any(|r| r.id == *id) {
            found.push(format!(
                "{id} is no promise of {PAGE}, but is named by {}",
                tests.join(", ")
            ));
        }
    }
    found
}

/// The command.
pub(crate) fn run() -> Outcome {
    let page = tree::text(PAGE.as_ref())?.unwrap_or_default();
    let (rows, proofs) = (rows(&page)?, proofs()?);
    for row in &rows {
        let tests = proofs.get(&row.id).map_or(&[][..], Vec::as_slice);
        let claim = match row.claim {
            Claim::Whole => "claimed",
            Claim::Part => "in part",
            Claim::No => "-",
        };
        println!("{:<4} {claim:<8} {:>3} tests  {}", row.id, tests.len(), row.title);
        for test in tests {
            println!("       {test}");
        }
    }
    let found = findings(&rows, &proofs);
    for line in &found {
        println!("{line}");
    }
    let claimed = rows.iter().filter(|r| r.claim != Claim::No).count();
    println!("promises: {claimed} of {} rows claimed, {} findings", rows.len(), found.len());
    if found.is_empty() { Ok(()) } else { Err(Problem(format!("{} findings", found.len()))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_claimed_promise_has_a_test() {
        let page = tree::text(PAGE.as_ref()).unwrap().unwrap();
        let found = findings(&rows(&page).unwrap(), &proofs().unwrap());
        assert!(found.is_empty(), "\n{}", found.join("\n"));
    }

    #[test]
    fn a_claim_without_a_test_and_a_test_without_a_promise_are_found() {
        let rows = rows("| D1 | kept | yes |\n| D2 | once | no |\n| x | y | z |").unwrap();
        let proofs = BTreeMap::from([("Q7".to_owned(), vec!["a.rs q7_x".to_owned()])]);
        let found = findings(&rows, &proofs);
        assert!(found[0].starts_with("D1 (kept) is claimed"));
        assert!(found[1].starts_with("Q7 is no promise"));
    }

    #[test]
    fn a_test_may_prove_several_rows_and_helpers_prove_none() {
        assert_eq!(ids("d1_e9_survives_it"), ["D1", "E9"]);
        assert!(ids("day_of_the_week").is_empty());
        let text = "#[test]\nfn d1_kept() {}\n\nfn a() {}\nfn b() {}\nfn c() {}\nfn d() {}\nfn d2_helper() {}\n";
        assert_eq!(tests_in(text, true)[0], "d1_kept");
        assert!(!tests_in(text, true).contains(&"d2_helper".to_owned()));
        assert_eq!(tests_in("    def test_l1_reads(self):\n", false), ["l1_reads"]);
    }
}
