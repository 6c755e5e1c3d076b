//! The largest files and the longest functions: to look at, not to gate.
//!
//! Owns: counting. A long file may hold one long idea; a reader decides.

use crate::{report::Outcome, tree};

/// How many of each are printed.
const SHOWN: usize = 20;

/// Functions of one file: name and number of lines, by matching the indentation of `fn` and `}`.
fn functions(text: &str) -> Vec<(String, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let indent = line.len() - line.trim_start().len();
        let Some((before, after)) = line.split_once("fn ") else { continue };
        let words_only = before.chars().all(|c| c.is_ascii_alphanumeric() || " ()_\"".contains(c));
        let name: String =
            after.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
        if !words_only || name.is_empty() {
            continue;
        }
        let close = format!("{}}}", " ".repeat(indent));
        let end = lines[start..].iter().position(|l| {
            *l == close
                || l.trim_end().ends_with(';')
                    && l.starts_with(&" ".repeat(indent))
                    && !l.starts_with(&" ".repeat(indent + 1))
        });
        if let Some(end) = end {
            found.push((name, end + 1));
        }
    }
    found
}

/// The command.
pub(crate) fn run() -> Outcome {
    let mut files = Vec::new();
    let mut longest = Vec::new();
    for file in tree::files_with("rs")? {
        let Some(text) = tree::text(&file)? else { continue };
        files.push((text.lines().count(), file.display().to_string()));
        for (name, lines) in functions(&text) {
            longest.push((lines, format!("{} {name}", file.display())));
        }
    }
    let total: usize = files.iter().map(|f| f.0).sum();
    let middle = |mut sizes: Vec<usize>| {
        sizes.sort_unstable();
        sizes.get(sizes.len() / 2).copied().unwrap_or(0)
    };
    println!(
        "{total} lines of Rust in {} files; the median file has {}, the median function {}",
        files.len(),
        middle(files.iter().map(|f| f.0).collect()),
        middle(longest.iter().map(|f| f.0).collect())
    );
    for (title, mut list) in [("largest files", files), ("longest functions", longest)] {
        list.sort_by(|a, b| b.cmp(a));
        println!("\n{title}");
        for (lines, what) in list.into_iter().take(SHOWN) {
            println!("{lines:>6}  {what}");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_is_as_long_as_from_its_name_to_its_brace() {
        let text = "impl X {\n    pub fn a(&self) -> u8 {\n        1\n    }\n}\nfn b() {\n}\n";
        assert_eq!(functions(text), [("a".to_owned(), 3), ("b".to_owned(), 2)]);
    }
}
