//! The way back from the log: applies records that the manifest does not cover.
//!
//! Owns: the same steps as the writer's publish, without the decisions that the record already
//! carries. Never: skips a record that cannot be read (a swallowed replay error is data loss).
//! Invariants: D2 a record whose numbers are known changes nothing; D1 every record above the
//! flushed position is applied or the start fails.

use std::{collections::BTreeMap, sync::Arc};

use millrace_crypto::key::{KeyError, TenantKeySource};
use millrace_protocol::{
    ids::{SeqNo, TenantId},
    stream::StreamKey,
};
use millrace_wal::Frame;

use super::{
    record::{Origin, Record, RecordError, RecordTable},
    table::TableHandle,
    watermark::{Verdict, decide, line_of},
    writer::into_chunk,
};
use crate::{
    idle::WakeError,
    planted::{Bug, planted},
    schema::{FieldDef, TableSchema},
    series::dictionary::{SeriesConflict, SeriesDictionary},
    shared::Shared,
};

/// A record that cannot be applied. The server does not start: going on would lose rows that
/// were acknowledged.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// It does not decode.
    #[error("log record {lsn}: {source}")]
    Record {
        /// Its position.
        lsn: u64,
        /// Why.
        source: RecordError,
    },
    /// Its series contradict the dictionary.
    #[error("log record {lsn}: {source}")]
    Series {
        /// Its position.
        lsn: u64,
        /// Why.
        source: SeriesConflict,
    },
    /// Rows of a stream are missing before it.
    #[error("log record {lsn} starts at row {seq_lo} of stream `{}`, but only rows up to {hi} are known; a log segment is missing, restore it or run from a backup", key.stream)]
    Missing {
        /// Its position.
        lsn: u64,
        /// The stream.
        key: Box<StreamKey>,
        /// The last known row.
        hi: SeqNo,
        /// The record's first row.
        seq_lo: SeqNo,
    },
    /// The tenant's keys cannot be had.
    #[error("log record {lsn}: {source}")]
    Keys {
        /// Its position.
        lsn: u64,
        /// Why.
        source: KeyError,
    },
    /// What its tenant has in files cannot be read.
    #[error("log record {lsn}: {source}")]
    Tenant {
        /// Its position.
        lsn: u64,
        /// Why.
        source: WakeError,
    },
    /// An internal rule was broken.
    #[error(transparent)]
    Broken(#[from] millrace_platform::invariant::Broken),
}

/// What replay did, for the log and for tests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReplayReport {
    /// Records applied.
    pub applied: u64,
    /// Records whose rows were known already.
    pub duplicates: u64,
    /// Records of tenants whose keys are destroyed.
    pub keys_gone: u64,
    /// Rows applied.
    pub rows: u64,
    /// Flushes on the way, because the rows of the log are more than memory may hold.
    pub flushes: u64,
}

/// Applies one frame to the shared state.
pub(crate) fn apply(
    frame: &Frame,
    shared: &Shared,
    keys: &dyn TenantKeySource,
    report: &mut ReplayReport,
) -> Result<(), ReplayError> {
    let lsn = frame.lsn;
    let record =
        Record::decode(&frame.payload).map_err(|source| ReplayError::Record { lsn, source })?;
    let tenant = shared
        .tenant_or_new(TenantId(frame.key.owner))
        .map_err(|source| ReplayError::Tenant { lsn, source })?;
    let mut first_line = 0;
    let mut mark = None;
    if let Origin::Stream(header) = &record.origin {
        let hi = tenant.durable(&header.key);
        match decide(hi, header) {
            Verdict::Duplicate => {
                report.duplicates += 1;
                shared.note_lsn(lsn);
                return Ok(());
            }
            Verdict::Take { from } => {
                first_line = line_of(header, from);
                mark = Some((header.key.clone(), header.seq_hi));
            }
            Verdict::Missing | Verdict::Invalid => {
                return Err(ReplayError::Missing {
                    lsn,
                    key: Box::new(header.key.clone()),
                    hi,
                    seq_lo: header.seq_lo,
                });
            }
        }
    }
    let secret = match keys.current(&frame.key.owner) {
        Ok(keys) => keys.series_secret(),
        Err(source) => return Err(ReplayError::Keys { lsn, source }),
    };
    for part in record.tables {
        apply_table(lsn, &record.database, part, first_line, secret, &tenant, shared, report)?;
    }
    if let Some((key, to)) = mark {
        tenant.advance_durable(&key, to)?;
    }
    report.applied += 1;
    shared.note_lsn(lsn);
    Ok(())
}

#[expect(clippy::too_many_arguments, reason = "one step of one loop, split for its length")]
fn apply_table(
    lsn: u64,
    database: &str,
    mut part: RecordTable,
    first_line: u32,
    secret: u64,
    tenant: &super::tenant::TenantHandle,
    shared: &Shared,
    report: &mut ReplayReport,
) -> Result<(), ReplayError> {
    if first_line > 0 {
        super::resolve::drop_lines_below(&mut part.batch, first_line);
    }
    if part.batch.rows() == 0 {
        // Before its series: one must not be known without the columns of its tags.
        return Ok(());
    }
    if tenant.dropped.contains(&part.table_id) {
        // Never acknowledged: what was, had been flushed before the table was dropped.
        return Ok(());
    }
    let name = (database.to_owned(), part.batch.table.clone());
    let known = tenant.tables().get(&name).cloned();
    let handle = known.unwrap_or_else(|| {
        let schema = TableSchema::new(part.table_id, &name.1);
        let dictionary = SeriesDictionary::new(secret);
        let handle =
            Arc::new(TableHandle::new(name.0.clone(), schema, dictionary, Vec::new(), false));
        tenant.add_table(&name.1, Arc::clone(&handle));
        handle
    });
    let schema = extended(&handle.current.load().schema, &part);
    let series_before = handle.dictionary.bytes();
    let mut by_key = Vec::with_capacity(part.sids.len());
    for (sid, key) in part.sids.iter().zip(&part.batch.series_keys) {
        // Series of which no row was kept carry no id.
        let used = sid.0 != 0;
        let ordinal = if used {
            handle
                .dictionary
                .restore(*sid, key, &schema.tags)
                .map_err(|source| ReplayError::Series { lsn, source })?
        } else {
            u32::MAX
        };
        by_key.push(ordinal);
    }
    shared.note_series(&handle, series_before);
    report.rows += part.batch.rows() as u64;
    let chunk = into_chunk(lsn, part.batch, &part.field_ids, &by_key);
    shared.publish(&handle, &schema, chunk);
    Ok(())
}

/// The table's schema with what the record adds.
fn extended(now: &Arc<TableSchema>, part: &RecordTable) -> Arc<TableSchema> {
    let known: BTreeMap<u32, ()> = now.fields.iter().map(|f| (f.id, ())).collect();
    let new_tags = part.tags.get(now.tags.len()..).unwrap_or_default();
    let new_fields: Vec<FieldDef> = part
        .field_ids
        .iter()
        .zip(&part.batch.fields)
        .filter(|(id, _)| !known.contains_key(id))
        .map(|(id, f)| FieldDef { id: *id, name: f.name.clone(), ty: f.values.field_type() })
        .collect();
    if new_tags.is_empty() && new_fields.is_empty() || planted(Bug::ColumnsLostOnReplay) {
        return Arc::clone(now);
    }
    let mut next = TableSchema::clone(now);
    next.version += (new_tags.len() + new_fields.len()) as u64;
    next.tags.extend_from_slice(new_tags);
    next.fields.extend(new_fields);
    Arc::new(next)
}
