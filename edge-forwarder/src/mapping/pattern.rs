//! Patterns over item paths, and texts with holes that captures fill.
//!
//! Owns: `a/{x}/+/{rest*}` and `line-{x}`. Never: goes back and forth over a path: a match costs
//! one look per segment, whatever a source sends.

use std::borrow::Cow;

/// One segment of a pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Segment {
    /// Exactly this.
    Text(String),
    /// Any one segment that begins and ends so; what is between has a name.
    Part { before: String, name: Option<String>, after: String },
    /// All that is left, also nothing.
    Rest(Option<String>),
}

/// A pattern over paths of the form `a/b/c`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(Vec<Segment>);

/// Names and what they stand for.
pub type Captures<'a> = Vec<(&'a str, &'a str)>;

fn named(name: &str) -> Result<String, String> {
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    if name.is_empty() || !name.chars().all(fine) {
        return Err(format!("`{{{name}}}`: a name is letters, digits, _ and -"));
    }
    Ok(name.to_owned())
}

fn segment(text: &str) -> Result<Segment, String> {
    match text {
        "+" => {
            return Ok(Segment::Part { before: String::new(), name: None, after: String::new() });
        }
        "#" => return Ok(Segment::Rest(None)),
        _ => {}
    }
    let Some((before, rest)) = text.split_once('{') else {
        return Ok(Segment::Text(text.to_owned()));
    };
    let (name, after) =
        rest.split_once('}').ok_or_else(|| format!("`{text}`: `{{` has no `}}`"))?;
    if after.contains('{') {
        return Err(format!("`{text}`: one `{{name}}` in each part between slashes"));
    }
    match name.strip_suffix('*') {
        Some(name) if before.is_empty() && after.is_empty() => {
            Ok(Segment::Rest(Some(named(name)?)))
        }
        Some(_) => Err(format!("`{text}`: `{{name*}}` stands alone")),
        None => Ok(Segment::Part {
            before: before.to_owned(),
            name: Some(named(name)?),
            after: after.to_owned(),
        }),
    }
}

impl Pattern {
    /// Reads a pattern, or says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let segments: Vec<Segment> = text.split('/').map(segment).collect::<Result<_, _>>()?;
        let last = segments.len().saturating_sub(1);
        if segments.iter().take(last).any(|s| matches!(s, Segment::Rest(_))) {
            return Err(format!("`{text}`: `#` and `{{name*}}` can only be last"));
        }
        Ok(Self(segments))
    }

    /// The names that it captures.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|s| match s {
            Segment::Part { name, .. } | Segment::Rest(name) => name.as_deref(),
            Segment::Text(_) => None,
        })
    }

    /// What it captures of a path; `None` if the path is not of its kind.
    pub fn captures<'a>(&'a self, path: &'a str) -> Option<Captures<'a>> {
        let mut out = Captures::new();
        let mut rest = Some(path);
        for segment in &self.0 {
            if let Segment::Rest(name) = segment {
                out.extend(name.as_deref().map(|n| (n, rest.unwrap_or_default())));
                return Some(out);
            }
            let (head, tail) = match rest?.split_once('/') {
                Some((head, tail)) => (head, Some(tail)),
                None => (rest?, None),
            };
            match segment {
                Segment::Text(text) if text == head => {}
                Segment::Part { before, name, after } => {
                    let inner = head.strip_prefix(before.as_str())?.strip_suffix(after.as_str())?;
                    out.extend(name.as_deref().map(|n| (n, inner)));
                }
                _ => return None,
            }
            rest = tail;
        }
        rest.is_none().then_some(out)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    Hole(String),
}

/// A text with holes: `press-{line}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template(Vec<Piece>);

impl Template {
    /// Reads a template, or says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some((before, tail)) = rest.split_once('{') {
            let (name, tail) =
                tail.split_once('}').ok_or_else(|| format!("`{text}`: `{{` has no `}}`"))?;
            if !before.is_empty() {
                pieces.push(Piece::Text(before.to_owned()));
            }
            pieces.push(Piece::Hole(name.to_owned()));
            rest = tail;
        }
        if !rest.is_empty() {
            pieces.push(Piece::Text(rest.to_owned()));
        }
        Ok(Self(pieces))
    }

    /// The names of its holes.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|p| match p {
            Piece::Hole(name) => Some(name.as_str()),
            Piece::Text(_) => None,
        })
    }

    /// The text; `Err` with the name of the first hole that nothing fills.
    pub fn fill<'a>(
        &'a self,
        of: &dyn Fn(&str) -> Option<Cow<'a, str>>,
    ) -> Result<Cow<'a, str>, &'a str> {
        if let [one] = self.0.as_slice() {
            return match one {
                Piece::Text(text) => Ok(Cow::Borrowed(text)),
                Piece::Hole(name) => of(name).ok_or(name.as_str()),
            };
        }
        let mut out = String::new();
        for piece in &self.0 {
            match piece {
                Piece::Text(text) => out.push_str(text),
                Piece::Hole(name) => out.push_str(&of(name).ok_or(name.as_str())?),
            }
        }
        Ok(Cow::Owned(out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(pattern: &str, path: &str, expected: Option<&[(&str, &str)]>) {
        let parsed = Pattern::parse(pattern).unwrap();
        assert_eq!(parsed.captures(path).as_deref(), expected, "{pattern} on {path}");
    }

    #[test]
    fn a_pattern_takes_paths_apart() {
        check("a/b", "a/b", Some(&[]));
        check("a/b", "a/b/c", None);
        check("a/b/c", "a/b", None);
        check("a/+/c", "a/x/c", Some(&[]));
        check("a/{x}/c", "a/1/c", Some(&[("x", "1")]));
        check("cell-{n}/v", "cell-7/v", Some(&[("n", "7")]));
        check("cell-{n}/v", "sell-7/v", None);
        check("a/{rest*}", "a/b/c", Some(&[("rest", "b/c")]));
        check("a/{rest*}", "a", Some(&[("rest", "")]));
        check("#", "anything/at/all", Some(&[]));
        check("a/+", "a/", Some(&[]));
        check("{x}aa", "aa", Some(&[("x", "")]));
        check("aa{x}aa", "aaa", None);
    }

    #[test]
    fn what_cannot_be_a_pattern_is_said() {
        for (text, expected) in [
            ("a/#/b", "last"),
            ("{x*}/b", "last"),
            ("a/{x", "has no"),
            ("a/{}", "a name is"),
            ("{a}{b}", "one"),
            ("p{x*}", "alone"),
        ] {
            let said = Pattern::parse(text).unwrap_err();
            assert!(said.contains(expected), "{text}: {said}");
        }
        assert!(Template::parse("{x").is_err());
    }

    #[test]
    fn holes_are_filled_or_named() {
        let fill = |text: &str| {
            let template = Template::parse(text).unwrap();
            let of = |name: &str| (name == "x").then_some(Cow::Borrowed("1"));
            let filled = template.fill(&of).map(Cow::into_owned);
            filled.map_err(str::to_owned)
        };
        assert_eq!(fill("a-{x}-b").unwrap(), "a-1-b");
        assert_eq!(fill("{x}").unwrap(), "1");
        assert_eq!(fill("plain").unwrap(), "plain");
        assert_eq!(fill("").unwrap(), "");
        assert_eq!(fill("{x}{y}").unwrap_err(), "y");
    }
}
