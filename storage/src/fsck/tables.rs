//! Tables: columns, series and every row of every file, recomputed.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use futures::StreamExt;
use millrace_crypto::{key::TenantKeys, sealed_store::SealedReader};
use millrace_protocol::{
    batch::SeriesKey,
    ids::{SeriesId, TenantId},
    value::FieldType,
};

use super::{Code, FsckError, Place, Walk, is_unreachable};
use crate::{
    column_file::{
        bundle::{SectionRef, object_path},
        reader::{ColumnFile, ColumnFileError, read_section},
    },
    erase::Tombstone,
    manifest::{FileEntry, Manifest, SeriesSection, TableManifest},
    merge,
    run::SeriesSpan,
    scan::{ReadError, ranked},
    schema::{RESERVED_NAMES, TableSchema},
    series::{dictionary::SeriesDictionary, id, section},
};

/// Salts that an id may have been made with: a collision takes the next, and a second one is
/// already a matter of 2^64.
const SALTS: u64 = 16;
/// Plaintext bytes of a section read at a time.
const READ_BYTES: u64 = 4 << 20;

/// The series of each table, for the log's check.
pub(super) type Known = BTreeMap<(TenantId, u64), SeriesDictionary>;

fn object_name(section: &SectionRef) -> Option<String> {
    Some(object_path(&section.object).to_string())
}

impl Walk<'_> {
    pub(super) async fn tables(&mut self, manifest: &Manifest) -> Result<Known, FsckError> {
        let mut known = Known::new();
        for (tenant, all) in &manifest.tenants {
            let keys = match self.keys.current(&tenant.0) {
                Ok(keys) => keys,
                Err(e) if is_unreachable(&e) => return Err(FsckError::Keys(e)),
                // Destroyed since the manifest was read: nothing of it can be read any more.
                Err(_) => continue,
            };
            let mut ids = BTreeSet::new();
            for (id, table) in &all.tables {
                self.report.tables += 1;
                let name = (table.database.clone(), table.schema.name.clone());
                let at = Place { tenant: Some(*tenant), table: Some(name), file: None };
                self.schema(&at, &table.schema);
                let dictionary = self.series(&at, *tenant, table, &keys).await?;
                self.tombstones(&at, table, manifest, &dictionary);
                for file in &table.files {
                    let file_at = Place { file: object_name(&file.parquet), ..at.clone() };
                    if !ids.insert(file.id) {
                        let detail = format!("file id {} is there twice", hex::encode(file.id));
                        self.find(&file_at, Code::FileTwice, detail);
                    }
                    self.entry(&file_at, file, manifest.flushed_lsn);
                    self.file(&file_at, *tenant, file, table, &dictionary).await?;
                }
                self.order(&at, &table.files);
                known.insert((*tenant, *id), dictionary);
            }
        }
        Ok(known)
    }

    /// Tombstones are of the past, of series that there are, and each is another.
    fn tombstones(
        &mut self,
        at: &Place,
        table: &TableManifest,
        manifest: &Manifest,
        dictionary: &SeriesDictionary,
    ) {
        let view = dictionary.view();
        let mut ids = BTreeSet::new();
        for stone in &table.tombstones {
            let series = stone.series.iter().flatten();
            let unknown = series.filter(|sid| view.ordinal(**sid).is_none()).count();
            let sane = ids.insert(stone.id)
                && stone.id <= manifest.number
                && stone.seq <= manifest.flushed_lsn
                && stone.t_min <= stone.t_max;
            if !sane || unknown > 0 {
                let (id, seq) = (stone.id, stone.seq);
                let detail =
                    format!("tombstone {id} at log position {seq}, {unknown} series unknown");
                self.find(at, Code::Tombstone, detail);
            }
        }
    }

    /// A file that says that it heeds a tombstone has no series of it that lies in its times.
    fn deleted(
        &mut self,
        at: &Place,
        file: &ColumnFile,
        entry: &FileEntry,
        tombstones: &[Arc<Tombstone>],
    ) {
        for stone in tombstones.iter().filter(|t| t.id <= entry.erased_to && entry.lsn_hi <= t.seq)
        {
            let inside = |s: &&SeriesSpan| s.t_min >= stone.t_min && s.t_max <= stone.t_max;
            let taken = |s: &&SeriesSpan| {
                stone.series.as_ref().is_none_or(|all| all.binary_search(&s.sid).is_ok())
            };
            if let Some(span) = file.directory().spans().iter().filter(inside).find(taken) {
                let detail = format!("series {} is deleted by tombstone {}", span.sid, stone.id);
                self.find(at, Code::DeletedRows, detail);
            }
        }
    }

    fn schema(&mut self, at: &Place, schema: &TableSchema) {
        let tags = schema.tags.iter().map(|t| (t.id, t.name.as_str()));
        let columns = tags.chain(schema.fields.iter().map(|f| (f.id, f.name.as_str())));
        let (mut ids, mut names) = (BTreeSet::from([1, 2]), BTreeSet::from(RESERVED_NAMES));
        for (id, name) in columns {
            if !ids.insert(id) || !names.insert(name) {
                self.find(at, Code::Schema, format!("column `{name}` (id {id}) is there twice"));
            }
        }
    }

    async fn series(
        &mut self,
        at: &Place,
        tenant: TenantId,
        table: &TableManifest,
        keys: &TenantKeys,
    ) -> Result<SeriesDictionary, FsckError> {
        let dictionary = SeriesDictionary::new(keys.series_secret());
        // A rotated tenant has series of earlier versions.
        let versions = (1..keys.version()).filter_map(|v| self.keys.version(&tenant.0, v).ok());
        let mut secrets: Vec<u64> = versions.map(|k| k.series_secret()).collect();
        secrets.push(keys.series_secret());
        for part in &table.series_sections {
            let at = Place { file: object_name(&part.section), ..at.clone() };
            let body = read_section(&self.store, &self.keys, tenant, &part.section).await;
            match body {
                Ok(body) => {
                    self.series_part(&at, part, &body, &table.schema, &dictionary, &secrets)
                }
                Err(e) => self.find_unread(&at, &e)?,
            }
            self.advance(part.section.len);
        }
        Ok(dictionary)
    }

    fn series_part(
        &mut self,
        at: &Place,
        part: &SeriesSection,
        body: &[u8],
        schema: &TableSchema,
        dictionary: &SeriesDictionary,
        secrets: &[u64],
    ) {
        let entries = match section::decode(body) {
            Ok(entries) => entries,
            Err(e) => return self.find(at, Code::SeriesSection, format!("{}: {e}", part.section)),
        };
        if entries.len() as u64 != part.count {
            let detail = format!("{} series, the manifest says {}", entries.len(), part.count);
            self.find(at, Code::SeriesCount, detail);
        }
        for (sid, key) in entries {
            self.report.series += 1;
            self.one_series(at, sid, &key, schema, dictionary, secrets);
        }
    }

    fn one_series(
        &mut self,
        at: &Place,
        sid: SeriesId,
        key: &SeriesKey,
        schema: &TableSchema,
        dictionary: &SeriesDictionary,
        secrets: &[u64],
    ) {
        let made = |secret: &u64| (0..SALTS).any(|n| id::series_id(*secret, key, n) == sid);
        if !secrets.iter().any(made) {
            self.find(at, Code::SeriesId, format!("{sid} is not the id of {key:?}"));
        }
        for (name, _) in key.tags().filter(|(name, _)| schema.tag(name).is_none()) {
            let detail = format!("series {sid} has the tag `{name}`, which the table has not");
            self.find(at, Code::SeriesTag, detail);
        }
        if dictionary.find(key, 0).is_some_and(|(_, other)| other != sid) {
            self.find(at, Code::SeriesTwice, format!("{key:?} has a second id, {sid}"));
        }
        if let Err(e) = dictionary.restore(sid, key, &schema.tags) {
            self.find(at, Code::SeriesTwice, e.to_string());
        }
    }

    /// What the entry says by itself.
    fn entry(&mut self, at: &Place, file: &FileEntry, flushed: u64) {
        if file.lsn_lo > file.lsn_hi || file.lsn_hi > flushed {
            let (lo, hi) = (file.lsn_lo, file.lsn_hi);
            let detail = format!("log positions {lo} to {hi}, flushed is {flushed}");
            self.find(at, Code::LsnBounds, detail);
        }
        if file.bytes != file.parquet.len + file.directory.len {
            let detail = format!("{} bytes, its sections have others", file.bytes);
            self.find(at, Code::FileSize, detail);
        }
    }

    async fn file(
        &mut self,
        at: &Place,
        tenant: TenantId,
        entry: &FileEntry,
        table: &TableManifest,
        dictionary: &SeriesDictionary,
    ) -> Result<(), FsckError> {
        self.report.files += 1;
        let whole = self.whole(tenant, &entry.parquet).await;
        let opened = match whole {
            Err(e) => Err(e),
            Ok(()) => {
                let (store, keys) = (Arc::clone(&self.store), Arc::clone(&self.keys));
                let sections = (entry.parquet.clone(), entry.directory.clone());
                ColumnFile::open(store, keys, tenant, sections.0, sections.1).await
            }
        };
        match opened {
            Ok(file) => {
                self.deleted(at, &file, entry, &table.tombstones);
                self.rows(at, &file, entry, &table.schema, dictionary).await?;
            }
            Err(e) => self.find_unread(at, &e)?,
        }
        self.advance(entry.parquet.len);
        self.advance(entry.directory.len);
        Ok(())
    }

    /// Opens every chunk of a section, those that no read would ask for too.
    async fn whole(&self, tenant: TenantId, at: &SectionRef) -> Result<(), ColumnFileError> {
        let failed = |e| match e {
            millrace_crypto::sealed_store::ReadError::Seal(source) => {
                ColumnFileError::Seal { section: at.to_string(), source }
            }
            millrace_crypto::sealed_store::ReadError::Store { source, .. } => {
                ColumnFileError::Store { section: at.to_string(), source }
            }
        };
        let sealed = at.sealed();
        let store = Arc::clone(&self.store);
        let reader = SealedReader::open(store, self.keys.as_ref(), &tenant.0, &sealed);
        let reader = reader.await.map_err(failed)?;
        let mut from = 0;
        while from < reader.len() {
            let to = (from + READ_BYTES).min(reader.len());
            reader.read(from..to).await.map_err(failed)?;
            from = to;
        }
        Ok(())
    }

    async fn rows(
        &mut self,
        at: &Place,
        file: &ColumnFile,
        entry: &FileEntry,
        schema: &TableSchema,
        dictionary: &SeriesDictionary,
    ) -> Result<(), FsckError> {
        let spans = file.directory().spans();
        let series = ranked(spans, &dictionary.view(), || file.place(), |_, _| true);
        if let Err(e @ (ReadError::UnknownSeries { .. } | ReadError::OutOfOrder { .. })) = series {
            self.find(at, Code::FileSeries, e.to_string());
        }
        for id in file.column_ids().filter(|id| *id > 2 && schema.field_by_id(*id).is_none()) {
            self.find(at, Code::FileColumns, format!("column {id} is none of the table's"));
        }
        let fields: Vec<(u32, FieldType)> = schema.fields.iter().map(|f| (f.id, f.ty)).collect();
        let all = 0..u32::try_from(file.directory().rows()).unwrap_or(u32::MAX);
        let mut batches = file.read(std::slice::from_ref(&all), &fields);
        let mut seen = Seen::new(spans);
        while let Some(batch) = batches.next().await {
            let batch = match batch {
                Ok(batch) => batch,
                Err(e) => return self.find_unread(at, &e),
            };
            let times = merge::times(&batch).unwrap_or_default();
            times.iter().for_each(|time| seen.row(*time));
        }
        self.report.rows += seen.rows;
        seen.end();
        for (code, detail) in std::mem::take(&mut seen.wrong) {
            self.find(at, code, detail);
        }
        if seen.rows != entry.rows {
            let detail = format!("{} rows, the manifest says {}", seen.rows, entry.rows);
            self.find(at, Code::Rows, detail);
        }
        let bounds = (entry.t_min, entry.t_max);
        if seen.bounds.is_some_and(|seen| seen != bounds) {
            let detail = format!("times {:?}, the manifest says {bounds:?}", seen.bounds);
            self.find(at, Code::TimeBounds, detail);
        }
        Ok(())
    }

    /// Of two files that overlap in time one must be newer.
    fn order(&mut self, at: &Place, files: &[Arc<FileEntry>]) {
        let mut files: Vec<&FileEntry> = files.iter().map(AsRef::as_ref).collect();
        files.sort_by_key(|f| f.t_min);
        let mut before: Vec<&FileEntry> = Vec::new();
        for file in files {
            before.retain(|other| other.t_max >= file.t_min);
            for other in &before {
                if other.lsn_lo <= file.lsn_hi && file.lsn_lo <= other.lsn_hi {
                    let at = Place { file: object_name(&file.parquet), ..at.clone() };
                    let names = (hex::encode(file.id), hex::encode(other.id));
                    let detail =
                        format!("file {} is neither older nor newer than {}", names.0, names.1);
                    self.find(&at, Code::LsnOrder, detail);
                }
            }
            before.push(file);
        }
    }
}

/// Rows as they pass, against the directory.
struct Seen<'a> {
    spans: std::slice::Iter<'a, SeriesSpan>,
    span: Option<&'a SeriesSpan>,
    left: u32,
    first: i64,
    last: Option<i64>,
    rows: u64,
    bounds: Option<(i64, i64)>,
    /// The first finding of each kind; one broken row brings many.
    wrong: Vec<(Code, String)>,
}

impl<'a> Seen<'a> {
    fn new(spans: &'a [SeriesSpan]) -> Self {
        Self {
            spans: spans.iter(),
            span: None,
            left: 0,
            first: 0,
            last: None,
            rows: 0,
            bounds: None,
            wrong: Vec::new(),
        }
    }

    fn find(&mut self, code: Code, detail: String) {
        if !self.wrong.iter().any(|(known, _)| *known == code) {
            self.wrong.push((code, detail));
        }
    }

    fn row(&mut self, time: i64) {
        if self.left == 0 {
            self.end();
            self.span = self.spans.next();
            self.left = self.span.map_or(0, |s| s.rows);
            self.first = time;
            self.last = None;
        }
        self.left = self.left.saturating_sub(1);
        if self.last.is_some_and(|last| last >= time) {
            let (row, last) = (self.rows, self.last.unwrap_or_default());
            let sid = self.span.map(|s| s.sid).unwrap_or_default();
            let detail = format!("row {row} of series {sid} has time {time} behind {last}");
            self.find(Code::RowOrder, detail);
        }
        self.last = Some(time);
        self.rows += 1;
        let (lo, hi) = self.bounds.unwrap_or((time, time));
        self.bounds = Some((lo.min(time), hi.max(time)));
    }

    /// The end of a series' rows.
    fn end(&mut self) {
        let (Some(span), Some(last)) = (self.span, self.last) else { return };
        if (self.first, last) != (span.t_min, span.t_max) {
            let detail = format!(
                "series {} has times {} to {last}, its directory says {} to {}",
                span.sid, self.first, span.t_min, span.t_max
            );
            self.find(Code::SpanBounds, detail);
        }
    }
}
