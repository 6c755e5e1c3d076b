//! The walk over a body, row by row.
//!
//! Owns: the order of the grammar's parts, and the memory of series. A series is known by the
//! raw bytes before its row's first space. Senders repeat their series in one order, so each
//! remembers which came after it: mostly one comparison finds the table, the series and the end
//! of the prefix, else one hash of the prefix does. Field names are predicted by position.
//! Never: copies a byte of a row before all of its grammar before that byte was good.

use std::borrow::Cow;

use hashbrown::HashTable;
use memchr::{memchr, memchr_iter, memchr3};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::{
    LineOptions, Parsed,
    fault::{Fault, Kind, refusal},
    scan::{self, Value},
    table::Table,
};
use crate::{
    batch::{CELLS_MAX, ROWS_MAX, Refusal},
    name::{NameOf, check_name},
};

/// "No prefix yet."
const NONE: u32 = u32::MAX;

/// After so many rows, all of one table, the rest of the body is taken to be like them, and its
/// columns get their whole room at once. A field takes at least four bytes of text and eight of a
/// column, so that a body that goes on otherwise costs little more than its own size, until
/// `Table::finish` gives back what was not needed.
const SAMPLE_ROWS: usize = 16;

/// A known series.
#[derive(Debug)]
struct Prefix<'a> {
    /// `table,tag=value...` as it came.
    raw: &'a [u8],
    hash: u64,
    table: u32,
    series: u32,
    /// The prefix that came next the last time.
    next: u32,
}

/// A tag of a new series.
type Tag<'a> = (Cow<'a, str>, Cow<'a, str>);

/// Reads one body.
#[derive(Debug)]
pub(super) struct Parser<'a> {
    body: &'a [u8],
    options: LineOptions,
    seed: u64,
    tables: Vec<Table<'a>>,
    table_index: HashTable<u32>,
    prefixes: Vec<Prefix<'a>>,
    prefix_index: HashTable<u32>,
    /// The prefix of the row before.
    last: u32,
    /// Rows times columns of all tables.
    cells: usize,
    rows: usize,
    /// Rows tried.
    attempt: u32,
    refused: u64,
    refusals: Vec<Refusal>,
    /// The table that the row being read belongs to, and how many of its fields were written.
    open: Option<(u32, usize)>,
    /// Scratch for tags.
    values: Vec<&'a [u8]>,
    key: Vec<u8>,
}

/// A good row's rest: where the next line starts, and how many line feeds it held.
struct RowEnd {
    next: usize,
    line_feeds: u32,
}

impl<'a> Parser<'a> {
    pub(super) fn new(body: &'a [u8], options: &LineOptions, seed: u64) -> Self {
        Self {
            body,
            options: *options,
            seed,
            tables: Vec::new(),
            table_index: HashTable::new(),
            prefixes: Vec::new(),
            prefix_index: HashTable::new(),
            last: NONE,
            cells: 0,
            rows: 0,
            attempt: 0,
            refused: 0,
            refusals: Vec::new(),
            open: None,
            values: Vec::new(),
            key: Vec::new(),
        }
    }

    pub(super) fn run(mut self) -> Parsed {
        let (mut at, mut line) = (0usize, 1u32);
        if u32::try_from(self.body.len()).is_err() {
            // Offsets into columns of text are 32 bits.
            self.attempt = 1;
            self.refuse(0, 0, 1, Fault::new(0, Kind::LongBody));
            at = self.body.len();
        }
        let mut line_start = at;
        while let Some(b) = self.body.get(at) {
            match b {
                b'\n' => {
                    at += 1;
                    line += 1;
                    line_start = at;
                }
                b' ' | b'\t' => at += 1,
                b'\r' if matches!(self.body.get(at + 1), None | Some(b'\n')) => at += 1,
                b'#' => at = memchr(b'\n', self.rest(at)).map_or(self.body.len(), |i| at + i),
                _ => {
                    self.attempt += 1;
                    self.open = None;
                    match self.row(at, line) {
                        Ok(end) => {
                            at = end.next;
                            line += end.line_feeds;
                        }
                        Err(fault) => {
                            let end = scan::row_end(self.body, at);
                            self.refuse(line_start, end, line, fault);
                            let row = self.body.get(at..end).unwrap_or_default();
                            line += memchr_iter(b'\n', row).count() as u32 + 1;
                            at = end + 1;
                        }
                    }
                    line_start = at;
                }
            }
        }
        Parsed {
            tables: self.tables.into_iter().filter_map(Table::finish).collect(),
            refusals: self.refusals,
            refused: self.refused,
            lines: u64::from(self.attempt),
        }
    }

    fn rest(&self, at: usize) -> &'a [u8] {
        self.body.get(at..).unwrap_or_default()
    }

    /// Part of the body as text.
    fn text(&self, from: usize, to: usize) -> Result<&'a str, Fault> {
        std::str::from_utf8(self.body.get(from..to).unwrap_or_default())
            .map_err(|e| Fault::new(from + e.valid_up_to(), Kind::NotUtf8))
    }

    /// Refuses bytes that are no text. A row's prefix was checked when its series was new, so a
    /// row costs only what follows it, and that is in the nearest cache: checking the body as a
    /// whole first would read it from memory twice.
    #[inline]
    fn check_text(&self, from: usize, to: usize) -> Result<(), Fault> {
        if self.body.get(from..to).is_some_and(<[u8]>::is_ascii) {
            return Ok(());
        }
        self.text(from, to).map(|_| ())
    }

    #[cold]
    fn refuse(&mut self, line_start: usize, end: usize, line: u32, fault: Fault) {
        if let Some((table, fields)) = self.open.take()
            && let Some(table) = self.tables.get_mut(table as usize)
        {
            table.roll_back(fields);
        }
        self.refused += 1;
        if self.refusals.len() < self.options.refusals_max {
            // What is no text is refused as that, whatever else is wrong behind it.
            let fault = self.text(line_start, end).err().unwrap_or(fault);
            let limits = &self.options.limits;
            self.refusals.push(refusal(self.body, line_start, end, line, fault, limits));
        }
    }

    /// Reads the row at `start`.
    #[inline]
    fn row(&mut self, start: usize, line: u32) -> Result<RowEnd, Fault> {
        let (table_id, series, prefix_end) = self.prefix(start)?;
        self.open = Some((table_id, 0));
        let mut line_feeds = 0;
        let mut at = self.skip_spaces(prefix_end);
        let mut position = 0;
        loop {
            if let Some(table) = self.tables.get_mut(table_id as usize) {
                (position, at) = table.push_usual(self.body, position, at, self.attempt);
                self.open = Some((table_id, position));
            }
            if position > 0 {
                match self.body.get(at) {
                    Some(b',') => at += 1,
                    _ => break,
                }
            }
            at = self.field(table_id, series, position, at, &mut line_feeds)?;
            position += 1;
        }
        let (time, at) = self.time(at)?;
        let end = self.line_end(at)?;
        let at_most = self.options.limits.line_bytes;
        if end - start > at_most {
            return Err(Fault::new(start + at_most, Kind::LongLine));
        }
        self.check_text(prefix_end, end)?;
        let Some(table) = self.tables.get_mut(table_id as usize) else {
            return Err(Fault::new(start, Kind::NoTable));
        };
        let cells = self.cells + table.columns();
        if cells > CELLS_MAX || self.rows >= ROWS_MAX {
            return Err(Fault::new(start, Kind::ManyCells));
        }
        (self.cells, self.rows) = (cells, self.rows + 1);
        table.commit(time, series, line);
        if self.rows == SAMPLE_ROWS && table.rows() == SAMPLE_ROWS {
            let left = self.body.len().saturating_sub(end);
            table.expect_more(left.saturating_mul(SAMPLE_ROWS) / end.max(1));
        }
        let line_feed = self.body.get(end).is_some_and(|b| *b == b'\n');
        Ok(RowEnd {
            next: end + usize::from(line_feed),
            line_feeds: line_feeds + u32::from(line_feed),
        })
    }

    /// Reads and writes the field at `at`, whatever it is; where it ends.
    #[inline(never)]
    fn field(
        &mut self,
        table_id: u32,
        series: u32,
        position: usize,
        at: usize,
        line_feeds: &mut u32,
    ) -> Result<usize, Fault> {
        let limits = self.options.limits;
        if position >= limits.fields {
            return Err(Fault::new(at, Kind::ManyFields));
        }
        let (name, value_at) = self.field_name(table_id, position, at)?;
        let (value, end) = scan::value(self.body, value_at)?;
        if let Value::Text(text, _) = value {
            if text.len() > limits.text_bytes {
                return Err(Fault::new(value_at, Kind::LongText));
            }
            *line_feeds += memchr_iter(b'\n', text).count() as u32;
        }
        let Some(table) = self.tables.get_mut(table_id as usize) else {
            return Err(Fault::new(at, Kind::NoTable));
        };
        if table.series_has_tag(series, name) {
            return Err(Fault::new(at, Kind::TagAndField));
        }
        table
            .push(name, position, self.attempt, value, limits.fields, &mut self.cells)
            .map_err(|kind| Fault::new(at, kind))?;
        self.open = Some((table_id, position + 1));
        Ok(end)
    }

    fn skip_spaces(&self, mut at: usize) -> usize {
        while self.body.get(at) == Some(&b' ') {
            at += 1;
        }
        at
    }

    /// The time of a row that has none: rows in order, a step apart.
    fn default_time(&self) -> i64 {
        let step = self.options.default_time_step_ns.saturating_mul(i64::from(self.attempt));
        self.options.default_time_ns.saturating_add(step)
    }

    /// The time after the fields, and where it ends.
    #[inline]
    fn time(&self, at: usize) -> Result<(i64, usize), Fault> {
        let at = self.skip_spaces(at);
        match self.body.get(at) {
            None | Some(b'\n' | b'\r' | b'\t') => Ok((self.default_time(), at)),
            Some(_) => {
                let (time, end) = scan::time(self.body, at)?;
                let time = self.options.precision.to_ns(time);
                Ok((time.ok_or(Fault::new(at, Kind::TimeRange))?, end))
            }
        }
    }

    /// Where the line ends: the index of its line feed or of the body's end.
    #[inline]
    fn line_end(&self, mut at: usize) -> Result<usize, Fault> {
        loop {
            match (self.body.get(at), self.body.get(at + 1)) {
                (None | Some(b'\n'), _) => return Ok(at),
                (Some(b' ' | b'\t'), _) | (Some(b'\r'), None | Some(b'\n')) => at += 1,
                (Some(_), _) => return Err(Fault::new(at, Kind::AfterTime)),
            }
        }
    }

    /// The field name at `at`: its number, and where its value starts.
    #[inline]
    fn field_name(
        &mut self,
        table: u32,
        position: usize,
        at: usize,
    ) -> Result<(u32, usize), Fault> {
        let rest = self.body.get(at..).unwrap_or_default();
        let known = self.tables.get(table as usize).and_then(|t| t.predict(position, rest));
        match known {
            Some((name, len)) => Ok((name, at + len)),
            None => self.find_field_name(table, position, at),
        }
    }

    #[inline(never)]
    fn find_field_name(
        &mut self,
        table: u32,
        position: usize,
        at: usize,
    ) -> Result<(u32, usize), Fault> {
        let kind = match self.body.get(at) {
            None | Some(b'\n' | b'\r' | b' ' | b',') if position > 0 => Kind::FieldExpected,
            None | Some(b'\n' | b'\r') => Kind::NoFields,
            _ => Kind::FieldNoEquals,
        };
        let Some((end, escaped)) = scan::name_end(self.body, at) else {
            // A number in the place of the fields is a time, or a value without a name.
            let number = matches!(self.body.get(at), Some(b'0'..=b'9' | b'-'));
            let kind = if number && position == 0 { Kind::NoFields } else { kind };
            return Err(Fault::new(at, kind));
        };
        let raw = self.text(at, end)?;
        let name =
            if escaped { Cow::Owned(scan::unescape_name(raw, false)) } else { Cow::Borrowed(raw) };
        let spelling = self.body.get(at..=end).unwrap_or_default();
        let Some(table) = self.tables.get_mut(table as usize) else {
            return Err(Fault::new(at, Kind::NoTable));
        };
        if let Some(known) = table.known_name(&name) {
            return Ok((known, end + 1));
        }
        check_name(NameOf::Field, &name)
            .map_err(|why| Fault::new(at, Kind::Name(NameOf::Field, why)))?;
        Ok((table.add_name(&name, spelling), end + 1))
    }

    /// Table and series of the row at `start`, and where its prefix ends.
    #[inline]
    fn prefix(&mut self, start: usize) -> Result<(u32, u32, usize), Fault> {
        let rest = self.body.get(start..).unwrap_or_default();
        let next = self.prefixes.get(self.last as usize).map_or(NONE, |p| p.next);
        if let Some(p) = self.prefixes.get(next as usize)
            && rest.get(p.raw.len()) == Some(&b' ')
            && rest.get(..p.raw.len()) == Some(p.raw)
        {
            self.last = next;
            return Ok((p.table, p.series, start + p.raw.len()));
        }
        self.find_prefix(start)
    }

    #[inline(never)]
    fn find_prefix(&mut self, start: usize) -> Result<(u32, u32, usize), Fault> {
        let (end, escaped) = self.prefix_end(start)?;
        let raw = self.body.get(start..end).unwrap_or_default();
        let hash = xxh3_64_with_seed(raw, self.seed);
        let prefixes = &self.prefixes;
        let same =
            |id: &u32| prefixes.get(*id as usize).is_some_and(|p| p.hash == hash && p.raw == raw);
        let id = match self.prefix_index.find(hash, same) {
            Some(id) => *id,
            None => {
                let (table, series) = self.new_prefix(start, end, escaped)?;
                let id = self.prefixes.len() as u32;
                self.prefixes.push(Prefix { raw, hash, table, series, next: NONE });
                let prefixes = &self.prefixes;
                let rehash = |id: &u32| prefixes.get(*id as usize).map_or(0, |p| p.hash);
                self.prefix_index.insert_unique(hash, id, rehash);
                id
            }
        };
        if let Some(before) = self.prefixes.get_mut(self.last as usize) {
            before.next = id;
        }
        self.last = id;
        let Some(p) = self.prefixes.get(id as usize) else {
            return Err(Fault::new(start, Kind::NoTable));
        };
        Ok((p.table, p.series, end))
    }

    /// The first space that has no backslash before it, and whether there are escapes.
    fn prefix_end(&self, start: usize) -> Result<(usize, bool), Fault> {
        let (mut at, mut escaped) = (start, false);
        loop {
            at += memchr3(b' ', b'\\', b'\n', self.rest(at)).unwrap_or(self.rest(at).len());
            match (self.body.get(at), self.body.get(at + 1)) {
                (Some(b' '), _) => return Ok((at, escaped)),
                (Some(b'\\'), Some(next)) if *next != b'\n' => {
                    escaped = true;
                    at += 2;
                }
                _ => return Err(self.fault_without_space(start, at)),
            }
        }
    }

    /// What is wrong with a line that has no space at all: its tags, if they are, else that.
    #[cold]
    fn fault_without_space(&self, start: usize, end: usize) -> Fault {
        match self.body.get(start) {
            Some(b',') => Fault::new(start, Kind::NoTable),
            _ => {
                let carriage = self.body.get(start..end).is_some_and(|l| l.ends_with(b"\r"));
                Fault::new(end - usize::from(carriage), Kind::NoFields)
            }
        }
    }

    /// Table and series of a prefix that was not seen before.
    fn new_prefix(&mut self, start: usize, end: usize, escaped: bool) -> Result<(u32, u32), Fault> {
        let raw = self.body.get(start..end).unwrap_or_default();
        // A prefix that is not UTF-8 is read tag by tag, which finds where.
        if !escaped
            && self.check_text(start, end).is_ok()
            && let Some(comma) = memchr(b',', raw)
            && let Some((name, tags)) = raw.split_at_checked(comma)
            && let Some(id) = self.known_table(name)
            && let Some(table) = self.tables.get_mut(id as usize)
            && let Some(series) = table.series_of_shape(
                tags,
                self.options.limits.text_bytes,
                &mut self.values,
                &mut self.key,
            )
        {
            return Ok((id, series));
        }
        self.read_prefix(start, end)
    }

    /// Reads table and tags one by one.
    #[inline(never)]
    fn read_prefix(&mut self, start: usize, end: usize) -> Result<(u32, u32), Fault> {
        let (comma, name_escaped) = self.part_end(start, end);
        let raw = self.text(start, comma)?;
        if raw.is_empty() {
            return Err(Fault::new(start, Kind::NoTable));
        }
        let name = unescaped(raw, name_escaped, true);
        let (mut tags, tags_escaped) = self.read_tags(comma, end)?;
        let names: Vec<Cow<'a, str>> = tags.iter().map(|(name, _)| name.clone()).collect();
        let names: Vec<&str> = names.iter().map(|name| &**name).collect();
        tags.sort_by(|a, b| a.0.cmp(&b.0));
        if let Some([(name, _), _]) = tags.array_windows().find(|[a, b]| a.0 == b.0) {
            // The second of them is the one too many.
            let first = tag_at(self.body, comma, end, name);
            return Err(Fault::new(tag_at(self.body, first, end, name), Kind::TagTwice));
        }
        let id = self.table(start, &name)?;
        let Some(table) = self.tables.get_mut(id as usize) else {
            return Err(Fault::new(start, Kind::NoTable));
        };
        for name in &names {
            if !table.knows_tag(name) {
                check_name(NameOf::Tag, name).map_err(|why| {
                    Fault::new(tag_at(self.body, comma, end, name), Kind::Name(NameOf::Tag, why))
                })?;
                table.add_tag(name);
            }
        }
        let pairs = tags.iter().map(|(name, value)| (&**name, &**value));
        Ok((id, table.series_of_tags(&names, pairs, tags_escaped | name_escaped, &mut self.key)))
    }

    /// Where a table's name or a tag's value ends: at a comma without a backslash, or at `end`.
    fn part_end(&self, from: usize, end: usize) -> (usize, bool) {
        let mut escaped = false;
        let mut at = from;
        while at < end {
            match self.body.get(at) {
                Some(b',') => return (at, escaped),
                Some(b'\\') => {
                    escaped = true;
                    at += 2;
                }
                _ => at += 1,
            }
        }
        (end, escaped)
    }

    /// Reads `,name=value...`, and whether any has an escape.
    fn read_tags(&mut self, mut comma: usize, end: usize) -> Result<(Vec<Tag<'a>>, bool), Fault> {
        let mut tags = Vec::new();
        let limits = self.options.limits;
        let mut any_escaped = false;
        while comma < end {
            let name_at = comma + 1;
            if name_at == end {
                return Err(Fault::new(name_at, Kind::TagExpected));
            }
            if tags.len() >= limits.tags {
                return Err(Fault::new(name_at, Kind::ManyTags));
            }
            let (equals, name_escaped) =
                scan::name_end(self.body.get(..end).unwrap_or_default(), name_at)
                    .ok_or(Fault::new(name_at, Kind::TagNoEquals))?;
            let (value_end, value_escaped) = self.part_end(equals + 1, end);
            let name = self.text(name_at, equals)?;
            let value = self.text(equals + 1, value_end)?;
            if value.is_empty() {
                return Err(Fault::new(equals + 1, Kind::TagNoValue));
            }
            if value.len() > limits.text_bytes {
                return Err(Fault::new(equals + 1, Kind::LongTag));
            }
            tags.push((
                unescaped(name, name_escaped, false),
                unescaped(value, value_escaped, false),
            ));
            any_escaped |= name_escaped | value_escaped;
            comma = value_end;
        }
        Ok((tags, any_escaped))
    }

    /// The number of a table that was seen before; its name needs no escapes.
    fn known_table(&self, name: &[u8]) -> Option<u32> {
        let hash = xxh3_64_with_seed(name, self.seed);
        let named =
            |id: &u32| self.tables.get(*id as usize).is_some_and(|t| t.name.as_bytes() == name);
        self.table_index.find(hash, named).copied()
    }

    /// The number of a table.
    fn table(&mut self, start: usize, name: &str) -> Result<u32, Fault> {
        if let Some(id) = self.known_table(name.as_bytes()) {
            return Ok(id);
        }
        check_name(NameOf::Table, name)
            .map_err(|why| Fault::new(start, Kind::Name(NameOf::Table, why)))?;
        let id = self.tables.len() as u32;
        self.tables.push(Table::new(name.to_owned(), self.seed));
        let (seed, tables) = (self.seed, &self.tables);
        let rehash = |id: &u32| {
            tables.get(*id as usize).map_or(0, |t| xxh3_64_with_seed(t.name.as_bytes(), seed))
        };
        self.table_index.insert_unique(xxh3_64_with_seed(name.as_bytes(), seed), id, rehash);
        Ok(id)
    }
}

fn unescaped(raw: &str, escaped: bool, table: bool) -> Cow<'_, str> {
    if escaped { Cow::Owned(scan::unescape_name(raw, table)) } else { Cow::Borrowed(raw) }
}

/// Where the tag `name` is, at `comma` or after it; for refusals only.
#[cold]
fn tag_at(body: &[u8], comma: usize, end: usize, name: &str) -> usize {
    let body = body.get(..end).unwrap_or_default();
    let mut at = comma + 1;
    while let Some((equals, _)) = scan::name_end(body, at) {
        let raw = body.get(at..equals).and_then(|raw| std::str::from_utf8(raw).ok());
        if raw.is_some_and(|raw| scan::unescape_name(raw, false) == name) {
            return at;
        }
        // The next tag starts behind the next comma that has no backslash before it.
        at = equals;
        loop {
            match body.get(at) {
                None | Some(b' ') => return comma + 1,
                Some(b',') => break,
                Some(b'\\') => at += 2,
                Some(_) => at += 1,
            }
        }
        at += 1;
    }
    comma + 1
}
