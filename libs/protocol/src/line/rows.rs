//! The text of single rows of a body, found by line number.
//!
//! Owns: a sparse index of lines, made at the first question: most bodies are never asked about.
//! Never: copies the body.

use std::sync::OnceLock;

use memchr::memchr_iter;

use super::scan::row_end;

/// Lines between two marks of the index.
const EVERY: usize = 64;

/// A body whose rows can be looked up.
#[derive(Debug, Default)]
pub struct RowTexts<B> {
    body: B,
    /// Start of line `1 + i * EVERY`.
    marks: OnceLock<Vec<u32>>,
}

impl<B: AsRef<[u8]>> RowTexts<B> {
    /// Takes a body of at most 4 GiB, as the parser does.
    pub fn new(body: B) -> Self {
        Self { body, marks: OnceLock::new() }
    }

    /// The row that starts on line `line` (from 1), without its line end; a quoted text may hold
    /// line feeds. Empty if there is no such line.
    pub fn row(&self, line: u32) -> &[u8] {
        let body = self.body.as_ref();
        let marks = self.marks.get_or_init(|| marks(body));
        let wanted = line.saturating_sub(1) as usize;
        let Some(mark) = marks.get(wanted / EVERY) else { return &[] };
        let mut start = *mark as usize;
        let rest = body.get(start..).unwrap_or_default();
        if let skip @ 1.. = wanted % EVERY {
            let Some(line_feed) = memchr_iter(b'\n', rest).nth(skip - 1) else { return &[] };
            start += line_feed + 1;
        }
        let row = body.get(start..row_end(body, start)).unwrap_or_default();
        row.strip_suffix(b"\r").unwrap_or(row)
    }
}

fn marks(body: &[u8]) -> Vec<u32> {
    let feeds = memchr_iter(b'\n', body).skip(EVERY - 1).step_by(EVERY);
    // The parser refuses bodies whose offsets do not fit.
    [0].into_iter().chain(feeds.map(|at| u32::try_from(at + 1).unwrap_or(u32::MAX))).collect()
}

/// The table that a refused row names, as far as it can be read: its bytes before the first comma
/// or space, without escapes. `None` if they are no table's name.
pub fn table_of(row: &[u8]) -> Option<String> {
    let mut name = Vec::new();
    let mut bytes = row.iter().skip_while(|b| matches!(b, b' ' | b'\t')).copied().peekable();
    while let Some(b) = bytes.next() {
        match b {
            b',' | b' ' | b'\n' => break,
            b'\\' if matches!(bytes.peek(), Some(b',' | b' ' | b'\\' | b'=')) => {
                name.extend(bytes.next());
            }
            other => name.push(other),
        }
        if name.len() > crate::name::NAME_BYTES_MAX {
            return None;
        }
    }
    let name = String::from_utf8(name).ok()?;
    crate::name::check_name(crate::name::NameOf::Table, &name).ok()?;
    Some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_a_body_is_found() {
        let lines: Vec<String> = (1..=1000).map(|n| format!("m,n=a{n} v={n}i {n}")).collect();
        for end in ["\n", "\r\n"] {
            let texts = RowTexts::new(lines.join(end));
            for (line, n) in lines.iter().zip(1..) {
                assert_eq!(texts.row(n), line.as_bytes(), "line {n}");
            }
            assert_eq!(texts.row(1001), b"");
            assert_eq!(texts.row(u32::MAX), b"");
        }
        assert_eq!(RowTexts::new("").row(1), b"");
    }

    #[test]
    fn a_row_whose_text_holds_line_feeds_is_whole() {
        let texts = RowTexts::new("m v=1\nm s=\"a\nb\",w=2 5\nm v=3\n");
        assert_eq!(texts.row(2), b"m s=\"a\nb\",w=2 5");
        assert_eq!(texts.row(4), b"m v=3");
    }

    #[test]
    fn the_table_of_a_broken_row_is_read_if_it_can_be() {
        for (row, table) in [
            ("cpu,host=a v=", Some("cpu")),
            (" cpu", Some("cpu")),
            ("a\\ b\\,c v=1", Some("a b,c")),
            ("C:\\x v=1", Some("C:\\x")),
            ("_rejected v=1", None),
            (",a=b v=1", None),
            ("", None),
        ] {
            assert_eq!(table_of(row.as_bytes()).as_deref(), table, "{row}");
        }
        assert_eq!(table_of(b"\xff v=1"), None);
    }
}
