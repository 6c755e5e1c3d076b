//! The log: every frame reads, none is missing from the flushed position on, and what they say
//! fits tables and watermarks.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use millrace_platform::disk::Disk;
use millrace_protocol::{
    ids::{SeqNo, TenantId},
    stream::StreamKey,
};
use millrace_wal::{Frame, Scanned, TenantSegmentKeys, WalError};

use super::{Code, FsckError, Place, Walk, tables::Known};
use crate::{
    manifest::Manifest,
    series::dictionary::SeriesDictionary,
    shard::{
        record::{Origin, Record},
        watermark::{Verdict, decide},
    },
};

/// What is known while the frames pass.
struct Frames<'a> {
    flushed: u64,
    marks: BTreeMap<(TenantId, StreamKey), SeqNo>,
    known: &'a mut Known,
    first: Option<u64>,
    last: u64,
    found: Vec<(Place, Code, String)>,
}

impl Walk<'_> {
    pub(super) fn log(
        &mut self,
        disk: &Arc<dyn Disk>,
        dir: &Path,
        manifest: &Manifest,
        known: &mut Known,
    ) -> Result<(), FsckError> {
        let flushed = manifest.flushed_lsn;
        let at = Place { file: Some("shard/0/wal".into()), ..Place::default() };
        let segments = disk.list(dir).unwrap_or_default();
        if !segments.iter().any(|s| s.name.ends_with(".wal")) {
            if flushed > 0 {
                let detail = format!("there is no segment, and {flushed} records were flushed");
                self.find(&at, Code::LogGap, detail);
            }
            return Ok(());
        }
        let marks = manifest.tenants.iter().flat_map(|(tenant, all)| {
            all.streams.iter().map(|(key, state)| ((*tenant, key.clone()), state.hi))
        });
        let marks = marks.collect();
        let mut frames = Frames { flushed, marks, known, first: None, last: 0, found: Vec::new() };
        let keys: Arc<dyn millrace_wal::SegmentKeys> =
            Arc::new(TenantSegmentKeys::new(Arc::clone(&self.keys)));
        let mut count = 0;
        millrace_wal::scan_quarantine(disk, dir, &keys, 0, &mut |scanned| {
            count += 1;
            frames.take(scanned);
            Ok::<(), FsckError>(())
        })?;
        self.report.frames += count;
        let (first, last) = (frames.first, frames.last);
        for (at, code, detail) in std::mem::take(&mut frames.found) {
            self.find(&at, code, detail);
        }
        // Numbers of failed writes are never used, so holes between frames are the log's to judge.
        let rest = millrace_wal::scan_quarantine(disk, dir, &keys, flushed + 1, &mut |_| {
            Ok::<(), WalError>(())
        });
        match rest {
            Err(e @ WalError::Trimmed { .. }) => self.find(&at, Code::LogGap, e.to_string()),
            other => other?,
        }
        if first.is_some() && last < flushed {
            let detail = format!("it ends at record {last}, files go on to {flushed}");
            self.find(&at, Code::LogGap, detail);
        }
        Ok(())
    }
}

impl Frames<'_> {
    fn take(&mut self, scanned: Scanned) {
        match scanned {
            Scanned::Frame(frame) => {
                self.pass(frame.lsn);
                self.frame(&frame);
            }
            Scanned::KeyGone { lsn, .. } => self.pass(lsn),
            Scanned::Damage(damage) => {
                let file = Some(format!("shard/0/wal/{:020}.wal", damage.segment));
                let at = Place { file, ..Place::default() };
                self.first.get_or_insert(damage.first_lsn);
                self.last = self.last.max(damage.last_lsn.unwrap_or(damage.first_lsn));
                self.found.push((at, Code::LogDamage, damage.to_string()));
            }
        }
    }

    fn pass(&mut self, lsn: u64) {
        self.first.get_or_insert(lsn);
        self.last = lsn;
    }

    fn frame(&mut self, frame: &Frame) {
        let tenant = TenantId(frame.key.owner);
        let at = Place {
            tenant: Some(tenant),
            table: None,
            file: Some(format!("shard/0/wal, record {}", frame.lsn)),
        };
        let record = match Record::decode(&frame.payload) {
            Ok(record) => record,
            Err(e) => return self.found.push((at, Code::LogRecord, e.to_string())),
        };
        // What is in files already has been compared there, and its marks are behind.
        if frame.lsn <= self.flushed {
            return;
        }
        if let Origin::Stream(header) = &record.origin {
            let mark = self.marks.entry((tenant, header.key.clone())).or_default();
            if matches!(decide(*mark, header), Verdict::Missing | Verdict::Invalid) {
                let detail = format!(
                    "stream `{}` goes on at row {}, and only rows up to {mark} are known",
                    header.key.stream, header.seq_lo
                );
                self.found.push((at.clone(), Code::Watermark, detail));
            }
            *mark = (*mark).max(header.seq_hi);
        }
        for part in &record.tables {
            let name = (record.database.clone(), part.batch.table.clone());
            let at = Place { table: Some(name), ..at.clone() };
            if let Err(e) = part.batch.check() {
                self.found.push((at.clone(), Code::LogRecord, e.to_string()));
            }
            let table = (tenant, part.table_id);
            let series = self.known.entry(table).or_insert_with(|| SeriesDictionary::new(0));
            for (sid, key) in part.sids.iter().zip(&part.batch.series_keys) {
                // Series of which no row was kept carry no id.
                if sid.0 != 0
                    && let Err(e) = series.restore(*sid, key, &part.tags)
                {
                    self.found.push((at.clone(), Code::LogRecord, e.to_string()));
                }
            }
        }
    }
}
