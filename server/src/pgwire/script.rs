//! Texts with several statements, and statements that concern the connection alone.
//!
//! Owns: where one statement ends, and which ones never reach the query engine: transactions
//! (there is nothing to commit), settings, and what a pool sends to clean up. Never: looks inside
//! quotes, or decides what may be queried.

/// What a statement is to the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    /// Nothing but white space and comments.
    Empty,
    /// For the query engine.
    Query,
    Begin,
    Commit,
    Rollback,
    /// `SET name = value`
    Set {
        name: String,
        value: String,
    },
    /// `SHOW name`
    Show(String),
    /// Done by doing nothing; how it is answered.
    Nothing(&'static str),
    /// Forgets one prepared statement, or all.
    Deallocate(Option<String>),
    DiscardAll,
    /// What only PostgreSQL does.
    NotOffered,
}

/// The length of what stands at the start of `text` and has no `;` that counts: a quoted text, a
/// comment, or one character.
fn token(text: &str) -> usize {
    let rest = text.as_bytes();
    let until = |end: &str, from: usize| {
        let found = text.get(from..).and_then(|t| t.find(end));
        found.map_or(text.len(), |at| from + at + end.len())
    };
    match rest {
        [b'\'', ..] => quoted(text, b'\'', false),
        [b'e' | b'E', b'\'', ..] => 1 + text.get(1..).map_or(0, |t| quoted(t, b'\'', true)),
        [b'"', ..] => quoted(text, b'"', false),
        [b'-', b'-', ..] => until("\n", 2),
        [b'/', b'*', ..] => comment(rest),
        [b'$', ..] => {
            let name = text.get(1..).and_then(|t| {
                let end = t.find('$')?;
                let name = t.get(..end)?;
                let word = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
                let first = name.bytes().next().is_none_or(|b| !b.is_ascii_digit());
                (word && first).then_some(name)
            });
            name.map_or(1, |name| until(&format!("${name}$"), name.len() + 2))
        }
        // A word is one token, so that the `e` that ends one opens no text.
        [first, ..] if first.is_ascii_alphanumeric() || *first == b'_' => {
            let word = rest.iter().take_while(|b| b.is_ascii_alphanumeric() || **b == b'_').count();
            word.max(1)
        }
        _ => text.chars().next().map_or(0, char::len_utf8),
    }
}

fn quoted(text: &str, quote: u8, escapes: bool) -> usize {
    let mut bytes = text.bytes().enumerate().skip(1);
    while let Some((at, byte)) = bytes.next() {
        if byte == b'\\' && escapes {
            bytes.next();
        } else if byte == quote {
            // A doubled quote is one inside; the next token begins with its second half.
            return at + 1;
        }
    }
    text.len()
}

fn comment(text: &[u8]) -> usize {
    let (mut at, mut depth) = (0, 0usize);
    loop {
        match text.get(at..at + 2) {
            Some(b"/*") => (at, depth) = (at + 2, depth + 1),
            Some(b"*/") => {
                (at, depth) = (at + 2, depth - 1);
                if depth == 0 {
                    return at;
                }
            }
            Some(_) => at += 1,
            None => return text.len(),
        }
    }
}

/// The statements of a text.
pub(super) fn split(text: &str) -> Vec<&str> {
    let mut out = Vec::new();
    let (mut start, mut at) = (0, 0);
    while let Some(rest) = text.get(at..).filter(|r| !r.is_empty()) {
        if rest.starts_with(';') {
            out.extend(text.get(start..at));
            start = at + 1;
        }
        at += token(rest).max(1);
    }
    out.extend(text.get(start..));
    out.retain(|s| kind(s) != Kind::Empty);
    out
}

/// The words of a statement's beginning, without comments.
fn words(text: &str, most: usize) -> Vec<&str> {
    let (mut out, mut at) = (Vec::new(), 0);
    while out.len() < most
        && let Some(rest) = text.get(at..).filter(|r| !r.is_empty())
    {
        let length = token(rest).max(1);
        let blank = rest.starts_with("--")
            || rest.starts_with("/*")
            || rest.starts_with(|c: char| c.is_whitespace());
        if !blank {
            out.extend(rest.get(..length));
        }
        at += length;
    }
    out
}

fn unquoted(text: &str) -> String {
    let inner = |q: char| text.strip_prefix(q).and_then(|t| t.strip_suffix(q));
    match inner('\'').or_else(|| inner('"')) {
        Some(inside) => inside.to_owned(),
        None => text.to_lowercase(),
    }
}

/// What a statement is.
pub(super) fn kind(text: &str) -> Kind {
    let words = words(text, 8);
    let upper: Vec<String> = words.iter().map(|w| w.to_uppercase()).collect();
    let upper: Vec<&str> = upper.iter().map(String::as_str).collect();
    match upper.as_slice() {
        [] => Kind::Empty,
        ["BEGIN", ..] | ["START", "TRANSACTION", ..] => Kind::Begin,
        ["COMMIT" | "END", ..] => Kind::Commit,
        ["ROLLBACK", "TO", ..] => Kind::Nothing("ROLLBACK"),
        ["ROLLBACK" | "ABORT", ..] => Kind::Rollback,
        ["SAVEPOINT", ..] => Kind::Nothing("SAVEPOINT"),
        ["RELEASE", ..] => Kind::Nothing("RELEASE"),
        ["RESET", ..] => Kind::Nothing("RESET"),
        ["UNLISTEN", ..] => Kind::Nothing("UNLISTEN"),
        ["CLOSE", "ALL", ..] => Kind::Nothing("CLOSE CURSOR ALL"),
        [
            "COPY" | "DECLARE" | "FETCH" | "MOVE" | "CLOSE" | "LISTEN" | "NOTIFY" | "CALL" | "DO",
            ..,
        ]
        | ["LOCK" | "PREPARE" | "EXECUTE", ..] => Kind::NotOffered,
        ["DISCARD", "ALL", ..] => Kind::DiscardAll,
        ["DISCARD", ..] => Kind::Nothing("DISCARD"),
        ["DEALLOCATE", "PREPARE", ..] => Kind::Deallocate(words.get(2).map(|n| unquoted(n))),
        ["DEALLOCATE", "ALL", ..] => Kind::Deallocate(None),
        ["DEALLOCATE", ..] => Kind::Deallocate(words.get(1).map(|n| unquoted(n))),
        ["SET", "SESSION" | "LOCAL", "CHARACTERISTICS" | "TRANSACTION", ..]
        | ["SET", "TRANSACTION" | "CONSTRAINTS" | "ROLE", ..] => Kind::Nothing("SET"),
        ["SET", "SESSION" | "LOCAL", _, "=" | "TO", ..] => set(&words, 2, 4),
        ["SET", "TIME", "ZONE", ..] => Kind::Nothing("SET"),
        ["SET", "SCHEMA", ..] => match words.get(2) {
            Some(value) => Kind::Set { name: "search_path".to_owned(), value: unquoted(value) },
            None => Kind::Query,
        },
        ["SET", _, "=" | "TO", ..] => set(&words, 1, 3),
        ["SET", ..] => Kind::Nothing("SET"),
        ["SHOW", "TABLES" | "COLUMNS" | "DATABASES" | "SCHEMAS" | "FUNCTIONS", ..] => Kind::Query,
        ["SHOW", "TIME", "ZONE", ..] => Kind::Show("timezone".to_owned()),
        ["SHOW", "TRANSACTION", "ISOLATION", "LEVEL", ..] => {
            Kind::Show("transaction_isolation".to_owned())
        }
        ["SHOW", _] | ["SHOW", _, ";"] => {
            Kind::Show(words.get(1).map_or_else(String::new, |n| unquoted(n)))
        }
        _ => Kind::Query,
    }
}

fn set(words: &[&str], name: usize, value: usize) -> Kind {
    match (words.get(name), words.get(value)) {
        (Some(name), Some(value)) => Kind::Set { name: unquoted(name), value: unquoted(value) },
        _ => Kind::Nothing("SET"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_end_where_no_quote_or_comment_is_open() {
        for (text, expected) in [
            ("", vec![]),
            (" ; -- nothing\n;", vec![]),
            ("SELECT 1", vec!["SELECT 1"]),
            ("SELECT 1; SELECT 2;", vec!["SELECT 1", " SELECT 2"]),
            ("SELECT ';', 'it''s; so'; x", vec!["SELECT ';', 'it''s; so'", " x"]),
            ("SELECT E'\\';' ; x", vec!["SELECT E'\\';' ", " x"]),
            (
                "SELECT \";\" -- ;\n, /* ; /* ; */ ; */ 1; x",
                vec!["SELECT \";\" -- ;\n, /* ; /* ; */ ; */ 1", " x"],
            ),
            ("SELECT $a$;$a$, $1; x", vec!["SELECT $a$;$a$, $1", " x"]),
            ("SELECT a.name'x;'", vec!["SELECT a.name'x;'"]),
            ("SELECT 'open ; ", vec!["SELECT 'open ; "]),
            ("SELECT /* open ; ", vec!["SELECT /* open ; "]),
        ] {
            assert_eq!(split(text), expected, "{text}");
        }
    }

    #[test]
    fn what_concerns_the_connection_alone_is_known() {
        let set = |name: &str, value: &str| Kind::Set { name: name.into(), value: value.into() };
        for (text, expected) in [
            ("/* a */ begin", Kind::Begin),
            ("BEGIN READ ONLY", Kind::Begin),
            ("start transaction isolation level serializable", Kind::Begin),
            ("COMMIT", Kind::Commit),
            ("END;", Kind::Commit),
            ("ROLLBACK", Kind::Rollback),
            ("ROLLBACK TO SAVEPOINT a", Kind::Nothing("ROLLBACK")),
            ("SET extra_float_digits = 3", set("extra_float_digits", "3")),
            ("SET SESSION search_path TO \"Factory\"", set("search_path", "Factory")),
            ("SET TIME ZONE 'UTC'", Kind::Nothing("SET")),
            ("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", Kind::Nothing("SET")),
            ("SHOW server_version", Kind::Show("server_version".into())),
            ("SHOW TRANSACTION ISOLATION LEVEL", Kind::Show("transaction_isolation".into())),
            ("SHOW TABLES", Kind::Query),
            ("SHOW COLUMNS FROM cpu", Kind::Query),
            ("DEALLOCATE \"S_1\"", Kind::Deallocate(Some("S_1".into()))),
            ("DISCARD ALL", Kind::DiscardAll),
            ("COPY cpu TO STDOUT", Kind::NotOffered),
            ("SELECT 'BEGIN'", Kind::Query),
            ("DROP TABLE cpu", Kind::Query),
            (" -- only a comment", Kind::Empty),
        ] {
            assert_eq!(kind(text), expected, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic_or_lose_a_character(text in "[-a-eE'\"$;/*\\\\ é\n]{0,60}") {
            let parts: usize = split(&text).iter().map(|p| p.len()).sum();
            proptest::prop_assert!(parts <= text.len());
        }
    }
}
