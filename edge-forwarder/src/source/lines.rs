//! Where a text may be cut: at line ends only, and never inside a line that is too long.
//!
//! Owns: the rule for lines that never seem to end: all of such a line is dropped, and counted
//! once. Never: hands on the rest of a line whose beginning was dropped, which might read as a row.

/// Lines that one group holds at most.
pub const LINES_MAX: usize = 5_000;
/// Bytes of a line at most.
pub const LINE_BYTES_MAX: usize = 1 << 20;

/// What to do with the front of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cut {
    /// Bytes to drop first: the rest of a line that was too long.
    pub skip: usize,
    /// Bytes behind them that are whole lines.
    pub take: usize,
    /// Whether a line turned out to be too long.
    pub too_long: bool,
}

/// Where the last whole line ends within the first [`LINES_MAX`] lines.
fn whole(text: &[u8]) -> usize {
    let ends = text.iter().enumerate().filter(|(_, b)| **b == b'\n').map(|(at, _)| at + 1);
    ends.take(LINES_MAX).last().unwrap_or(0)
}

/// Looks at the front of a text. `skipping` says whether it continues a line that was too long;
/// `end` that nothing will follow.
pub fn cut(text: &[u8], skipping: &mut bool, end: bool) -> Cut {
    let mut cut = Cut::default();
    if *skipping {
        match text.iter().position(|b| *b == b'\n') {
            Some(at) => (cut.skip, *skipping) = (at + 1, false),
            None => {
                *skipping = !end;
                cut.skip = text.len();
                return cut;
            }
        }
    }
    let rest = text.get(cut.skip..).unwrap_or_default();
    cut.take = whole(rest);
    if cut.take == 0 && rest.len() >= LINE_BYTES_MAX {
        cut.skip = text.len();
        *skipping = !end;
        cut.too_long = true;
    } else if cut.take == 0 && end {
        cut.take = rest.len();
    }
    cut
}

/// An end of a line near the middle; `None` for a single line.
pub fn middle(text: &[u8]) -> Option<usize> {
    let body = text.strip_suffix(b"\n").unwrap_or(text);
    let (head, tail) = body.split_at_checked(body.len() / 2)?;
    let after = tail.iter().position(|b| *b == b'\n').map(|at| head.len() + at + 1);
    after.or_else(|| head.iter().rposition(|b| *b == b'\n').map(|at| at + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_lines_are_taken_and_no_more_than_a_group_of_them() {
        let mut skipping = false;
        assert_eq!(cut(b"a v=1\nb v", &mut skipping, false).take, 6);
        assert_eq!(cut(b"a v", &mut skipping, false), Cut::default());
        assert_eq!(cut(b"a v=1", &mut skipping, true).take, 5);
        let many = b"a v=1\n".repeat(LINES_MAX + 10);
        assert_eq!(cut(&many, &mut skipping, false).take, 6 * LINES_MAX);
    }

    #[test]
    fn no_part_of_a_line_that_is_too_long_is_taken_for_a_row() {
        let mut skipping = false;
        let huge = vec![b'x'; LINE_BYTES_MAX];
        let first = cut(&huge, &mut skipping, false);
        assert_eq!((first.skip, first.take, first.too_long), (huge.len(), 0, true));
        assert_eq!(cut(b"still it", &mut skipping, false).skip, 8);
        let last = cut(b"planted v=1 1\nb v=2 2\nc", &mut skipping, false);
        assert_eq!((last.skip, last.take, last.too_long), (14, 8, false));
        assert!(!skipping);
    }

    #[test]
    fn a_text_is_halved_at_line_ends_down_to_one_line() {
        assert_eq!(middle(b"a\nb\n"), Some(2));
        assert_eq!(middle(b"aaaaaaaa\nb\n"), Some(9));
        assert_eq!(middle(b"a\nbbbbbbbbbb\n"), Some(2));
        assert_eq!(middle(b"abc\n"), None);
        assert_eq!(middle(b""), None);
    }
}
