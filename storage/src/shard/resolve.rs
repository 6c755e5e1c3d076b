//! Schema on write: fits a batch to its table, row by row.
//!
//! Owns: which rows are refused and why, which columns and series are new. Pure apart from the
//! dictionary, which only grows.
//! Rules (design, "Data model"): a value that widens without loss is widened; a row with one that
//! does not is refused alone; columns are only ever added; a name is a tag or a field, never both.

use millrace_protocol::{
    batch::{FieldColumn, Presence, Refusal, RefusalCode, TableBatch},
    ids::SeriesId,
    value::FieldValues,
};

use super::rejected::{Collector, Rejected};
use crate::{
    limits::EngineLimits,
    memtable::chunk::convert,
    schema::{FieldDef, RESERVED_NAMES, TableSchema, TagColumn},
    series::dictionary::SeriesDictionary,
};

/// Refused rows, listed up to a bound and all counted.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    pub(crate) listed: Vec<Refusal>,
    pub(crate) count: u64,
    /// The table whose rows are being judged.
    pub(crate) table: String,
    /// Where refused rows are recorded, if they are.
    pub(crate) collector: Option<Collector>,
}

impl Refusals {
    /// Listed refusals per write (what InfluxDB clients are shown).
    const LISTED_MAX: usize = 100;

    fn add(&mut self, line: u32, code: RefusalCode, reason: impl FnOnce() -> String) {
        self.count += 1;
        let lists = self.listed.len() < Self::LISTED_MAX;
        if !lists && self.collector.is_none() {
            return;
        }
        let reason = reason();
        if let Some(collector) = &mut self.collector {
            let (table, reason) = (Some(self.table.clone()), reason.clone());
            collector.add(Rejected { table, line, column: 0, code, reason });
        }
        if lists {
            self.listed.push(Refusal { line, column: 0, code, reason, raw: String::new() });
        }
    }
}

/// How many series a table may still make today.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NewSeries {
    /// Per table and day; 0 is no limit.
    pub(crate) per_day: u64,
    /// Made today before this batch.
    pub(crate) seen: u64,
}

/// A batch that fits its table.
#[derive(Debug)]
pub(crate) struct Resolved {
    pub(crate) batch: TableBatch,
    /// Parallel to `batch.fields`.
    pub(crate) field_ids: Vec<u32>,
    /// Parallel to `batch.series_keys`.
    pub(crate) sids: Vec<SeriesId>,
    /// Parallel to `batch.series_keys`.
    pub(crate) ordinals: Vec<u32>,
}

/// Fits `batch` to `schema` and `dictionary`; `None` if no row is left. Rows in `batch` whose
/// number (`line`) is below `first_line` are known already and dropped without a refusal.
#[expect(clippy::too_many_arguments, reason = "one step of the writer, pure, apart for its length")]
pub(crate) fn resolve(
    mut batch: TableBatch,
    schema: &mut TableSchema,
    dictionary: &SeriesDictionary,
    limits: &EngineLimits,
    today: NewSeries,
    now_ns: i64,
    first_line: u32,
    oldest_ns: i64,
    refusals: &mut Refusals,
) -> Option<Resolved> {
    let mut keep = Keep::new(batch.rows());
    for (row, line) in batch.line.iter().enumerate() {
        if *line < first_line {
            keep.drop_silently(row);
        }
    }
    let latest = now_ns.saturating_add(limits.future_ns);
    for (row, time) in batch.time.iter().enumerate() {
        if *time > latest {
            keep.refuse(row, RefusalCode::OutOfWindow, || {
                format!(
                    "time {time} ns is more than {} s in the future; check the sender's clock and the precision parameter",
                    limits.future_ns / 1_000_000_000
                )
            }, &batch.line, refusals);
        }
    }
    for (row, time) in batch.time.iter().enumerate().filter(|(_, time)| **time < oldest_ns) {
        keep.refuse(row, RefusalCode::OutOfRetention, || {
            format!(
                "time {time} ns is before what the plan of this tenant keeps of table `{}` (from {oldest_ns} ns on); nothing was stored, ask for a longer plan or send newer rows",
                schema.name
            )
        }, &batch.line, refusals);
    }
    let (sids, ordinals) =
        resolve_series(&batch, schema, dictionary, limits, today, &mut keep, refusals);
    let (fields, field_ids) = resolve_fields(&mut batch, schema, limits, &mut keep, refusals);
    batch.fields = fields;
    let mut out = Resolved { batch, field_ids, sids, ordinals };
    if keep.dropped > 0 {
        if keep.dropped == keep.rows.len() {
            return None;
        }
        retain(&mut out.batch, &keep.rows);
    }
    // A column whose rows were all refused carries nothing.
    let present: Vec<bool> = out.batch.fields.iter().map(|f| f.present.count() > 0).collect();
    let mut it = present.iter();
    out.batch.fields.retain(|_| it.next().copied().unwrap_or(true));
    let mut it = present.iter();
    out.field_ids.retain(|_| it.next().copied().unwrap_or(true));
    Some(out)
}

/// Why no tag and no field of table `table` may be called `name`, if so.
fn reserved(name: &str, table: &str) -> Option<(RefusalCode, String)> {
    RESERVED_NAMES.contains(&name).then(|| {
        let reason = format!(
            "`{name}` is a column that every table has, so table `{table}` cannot have a tag or field of that name; rename it"
        );
        (RefusalCode::BadName, reason)
    })
}

struct Keep {
    rows: Vec<bool>,
    dropped: usize,
}

impl Keep {
    fn new(rows: usize) -> Self {
        Self { rows: vec![true; rows], dropped: 0 }
    }

    fn has(&self, row: usize) -> bool {
        self.rows.get(row).copied().unwrap_or(false)
    }

    fn drop_silently(&mut self, row: usize) {
        if let Some(keep) = self.rows.get_mut(row)
            && std::mem::replace(keep, false)
        {
            self.dropped += 1;
        }
    }

    fn refuse(
        &mut self,
        row: usize,
        code: RefusalCode,
        reason: impl FnOnce() -> String,
        lines: &[u32],
        refusals: &mut Refusals,
    ) {
        if self.has(row) {
            self.drop_silently(row);
            refusals.add(lines.get(row).copied().unwrap_or(0), code, reason);
        }
    }
}

fn resolve_series(
    batch: &TableBatch,
    schema: &mut TableSchema,
    dictionary: &SeriesDictionary,
    limits: &EngineLimits,
    mut today: NewSeries,
    keep: &mut Keep,
    refusals: &mut Refusals,
) -> (Vec<SeriesId>, Vec<u32>) {
    // One pass over the rows, not one per series: a batch may be all new series.
    let mut wanted = vec![false; batch.series_keys.len()];
    for (row, series) in batch.series.iter().enumerate() {
        if let Some(wanted) = wanted.get_mut(*series as usize).filter(|_| keep.has(row)) {
            *wanted = true;
        }
    }
    let mut problems: Vec<Option<(RefusalCode, String)>> = vec![None; batch.series_keys.len()];
    let mut sids = Vec::with_capacity(batch.series_keys.len());
    let mut ordinals = Vec::with_capacity(batch.series_keys.len());
    for (index, key) in batch.series_keys.iter().enumerate() {
        let guess = ordinals.last().map_or(0, |last: &u32| last.wrapping_add(1));
        if let Some((ordinal, sid)) = dictionary.find(key, guess) {
            sids.push(sid);
            ordinals.push(ordinal);
            continue;
        }
        // Series whose rows are all dropped already must not enter the dictionary.
        let wanted = wanted.get(index).copied().unwrap_or(false);
        let problem = wanted.then(|| new_series_problem(key, schema, dictionary, limits, today));
        let problem = problem.flatten();
        if problem.is_some() || !wanted {
            if let Some(at) = problems.get_mut(index) {
                *at = problem;
            }
            sids.push(SeriesId(0));
            ordinals.push(u32::MAX);
            continue;
        }
        today.seen += 1;
        for (name, _) in key.tags() {
            if schema.tag(name).is_none() {
                let id = schema.next_column_id();
                schema.tags.push(TagColumn { id, name: name.to_owned() });
                schema.version += 1;
            }
        }
        let (ordinal, sid) = dictionary.add(key, &schema.tags);
        sids.push(sid);
        ordinals.push(ordinal);
    }
    for (row, series) in batch.series.iter().enumerate() {
        if let Some(Some((code, reason))) = problems.get(*series as usize) {
            keep.refuse(row, *code, || reason.clone(), &batch.line, refusals);
        }
    }
    (sids, ordinals)
}

fn new_series_problem(
    key: &millrace_protocol::batch::SeriesKey,
    schema: &TableSchema,
    dictionary: &SeriesDictionary,
    limits: &EngineLimits,
    today: NewSeries,
) -> Option<(RefusalCode, String)> {
    if today.per_day > 0 && today.seen >= today.per_day {
        return Some((
            RefusalCode::Quota,
            format!(
                "table `{}` has had {} new series today (UTC), its limit; rows of series that it knows are taken, so look for a tag whose values never repeat, or ask the operator for a higher limit",
                schema.name, today.per_day
            ),
        ));
    }
    if dictionary.len() >= limits.series_per_table {
        return Some((
            RefusalCode::Quota,
            format!(
                "table `{}` already has {} series, its limit; use fewer distinct tag values or ask the operator for a higher quota",
                schema.name, limits.series_per_table
            ),
        ));
    }
    let mut new_tags = 0;
    for (name, _) in key.tags() {
        if let Some(problem) = reserved(name, &schema.name) {
            return Some(problem);
        }
        if let Some(field) = schema.field(name) {
            return Some((
                RefusalCode::TypeConflict,
                format!(
                    "`{name}` is a tag in this line but a {} field in table `{}`; rename one of them",
                    field.ty.name(),
                    schema.name
                ),
            ));
        }
        new_tags += usize::from(schema.tag(name).is_none());
    }
    if schema.tags.len() + new_tags > limits.tags_per_table {
        return Some((
            RefusalCode::Quota,
            format!(
                "table `{}` would have more than {} tags; put measured values into fields",
                schema.name, limits.tags_per_table
            ),
        ));
    }
    None
}

fn resolve_fields(
    batch: &mut TableBatch,
    schema: &mut TableSchema,
    limits: &EngineLimits,
    keep: &mut Keep,
    refusals: &mut Refusals,
) -> (Vec<FieldColumn>, Vec<u32>) {
    let mut fields: Vec<FieldColumn> = Vec::with_capacity(batch.fields.len());
    let mut ids: Vec<u32> = Vec::with_capacity(batch.fields.len());
    for mut column in std::mem::take(&mut batch.fields) {
        let from = column.values.field_type();
        let refuse_all = |code, reason: String, keep: &mut Keep, refusals: &mut Refusals| {
            for row in 0..column.present.len() {
                if column.present.get(row) {
                    keep.refuse(row, code, || reason.clone(), &batch.line, refusals);
                }
            }
        };
        if let Some((code, reason)) = reserved(&column.name, &schema.name) {
            refuse_all(code, reason, keep, refusals);
            continue;
        }
        if schema.tag(&column.name).is_some() {
            let reason = format!(
                "`{}` is a field in this line but a tag in table `{}`; rename one of them",
                column.name, schema.name
            );
            refuse_all(RefusalCode::TypeConflict, reason, keep, refusals);
            continue;
        }
        let def = match schema.field(&column.name) {
            Some(def) => def.clone(),
            None => {
                if schema.fields.len() >= limits.fields_per_table {
                    let reason = format!(
                        "table `{}` already has {} fields, its limit; `{}` cannot be added",
                        schema.name, limits.fields_per_table, column.name
                    );
                    refuse_all(RefusalCode::Quota, reason, keep, refusals);
                    continue;
                }
                if !(0..column.present.len()).any(|row| column.present.get(row) && keep.has(row)) {
                    continue;
                }
                let def =
                    FieldDef { id: schema.next_column_id(), name: column.name.clone(), ty: from };
                schema.fields.push(def.clone());
                schema.version += 1;
                def
            }
        };
        if def.ty != from {
            let conflict = format!(
                "field `{}` of table `{}` is a {}; this {} value cannot be stored in it without loss",
                def.name,
                schema.name,
                def.ty.name(),
                from.name()
            );
            let Some((values, refused)) = convert(&column.values, &column.present, def.ty) else {
                refuse_all(RefusalCode::TypeConflict, conflict, keep, refusals);
                continue;
            };
            for row in refused {
                keep.refuse(
                    row,
                    RefusalCode::TypeConflict,
                    || conflict.clone(),
                    &batch.line,
                    refusals,
                );
            }
            column.values = values;
        }
        match ids.iter().position(|id| *id == def.id) {
            None => {
                ids.push(def.id);
                fields.push(column);
            }
            Some(at) => {
                if let Some(into) = fields.get_mut(at) {
                    overlay(into, &column);
                }
            }
        }
    }
    (fields, ids)
}

/// Puts the present values of `from` over `into`; both have the same type and length.
fn overlay(into: &mut FieldColumn, from: &FieldColumn) {
    let mut merged = FieldColumn::new(into.name.clone(), into.values.field_type());
    for row in 0..into.present.len() {
        let source = if from.present.get(row) { from } else { &*into };
        push_row(&mut merged, source, row);
    }
    *into = merged;
}

fn push_row(out: &mut FieldColumn, from: &FieldColumn, row: usize) {
    match (&mut out.values, &from.values) {
        (FieldValues::F64(a), FieldValues::F64(b)) => a.push(b.get(row).copied().unwrap_or(0.0)),
        (FieldValues::I64(a), FieldValues::I64(b)) => a.push(b.get(row).copied().unwrap_or(0)),
        (FieldValues::U64(a), FieldValues::U64(b)) => a.push(b.get(row).copied().unwrap_or(0)),
        (FieldValues::Bool(a), FieldValues::Bool(b)) => {
            a.push(b.get(row).copied().unwrap_or(false));
        }
        (FieldValues::Utf8(a), FieldValues::Utf8(b)) => a.push(b.get(row)),
        (a, _) => a.push_absent(),
    }
    out.present.push(from.present.get(row));
}

/// Keeps the rows marked true.
fn retain(batch: &mut TableBatch, keep: &[bool]) {
    fn filter<T: Copy>(values: &mut Vec<T>, keep: &[bool]) {
        let mut it = keep.iter();
        values.retain(|_| it.next().copied().unwrap_or(false));
    }
    filter(&mut batch.time, keep);
    filter(&mut batch.series, keep);
    filter(&mut batch.line, keep);
    for field in &mut batch.fields {
        match &mut field.values {
            FieldValues::F64(v) => filter(v, keep),
            FieldValues::I64(v) => filter(v, keep),
            FieldValues::U64(v) => filter(v, keep),
            FieldValues::Bool(v) => filter(v, keep),
            FieldValues::Utf8(texts) => {
                let mut out = millrace_protocol::value::Texts::default();
                for (row, _) in keep.iter().enumerate().filter(|(_, k)| **k) {
                    out.push(texts.get(row));
                }
                *texts = out;
            }
        }
        let mut present = Presence::default();
        for (row, _) in keep.iter().enumerate().filter(|(_, k)| **k) {
            present.push(field.present.get(row));
        }
        field.present = present;
    }
}

/// Drops rows whose number is below `first_line`: replay of a frame that is partly known.
pub(super) fn drop_lines_below(batch: &mut TableBatch, first_line: u32) {
    let keep: Vec<bool> = batch.line.iter().map(|line| *line >= first_line).collect();
    if keep.contains(&false) {
        retain(batch, &keep);
    }
}
