//! Checks everything that a shard has stored, offline, and changes nothing.
//!
//! Owns: the findings and the order of the walk: manifest chain (fsck/chain.rs), series and column
//! files (fsck/tables.rs), log (fsck/log.rs), objects that nobody names.
//! Never: repairs, trims or sweeps; trusts a number that it can compute from the data; stops at
//! the first finding. The caller holds the lock of the data directory.

mod chain;
mod log;
mod tables;

use std::{path::PathBuf, sync::Arc};

use futures::TryStreamExt;
use millrace_crypto::{
    key::{KeyError, TenantKeySource},
    sealed_file::SealError,
};
use millrace_platform::{disk::Disk, entropy::Entropy};
use millrace_protocol::ids::TenantId;
use object_store::{ObjectStore, path::Path};

use crate::{column_file::reader::ColumnFileError, gc, object::local::DurableLocalStore};

/// What to check.
#[derive(Clone)]
pub struct FsckConfig {
    /// Where files live.
    pub disk: Arc<dyn Disk>,
    /// For names that are never used, because nothing is written.
    pub entropy: Arc<dyn Entropy>,
    /// The data directory.
    pub dir: PathBuf,
    /// Tenant keys.
    pub keys: Arc<dyn TenantKeySource>,
}

impl std::fmt::Debug for FsckConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FsckConfig").field("dir", &self.dir).finish_non_exhaustive()
    }
}

/// Why the check could not be done to its end. Says nothing about the data.
#[derive(Debug, thiserror::Error)]
pub enum FsckError {
    /// The directory cannot be read.
    #[error("{path} cannot be read: {source}; check the path and its permissions")]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Objects cannot be listed.
    #[error("stored objects cannot be listed: {0}; check the disk")]
    Store(#[from] object_store::Error),
    /// Keys cannot be had now; without them nothing can be checked.
    #[error("keys cannot be reached: {0}; run the check again when they can be")]
    Keys(KeyError),
    /// The log cannot be read at all.
    #[error("the log cannot be read: {0}")]
    Log(#[from] millrace_wal::WalError),
}

/// What kind of finding; its text is stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Code {
    /// A manifest record or checkpoint does not read.
    ManifestRecord,
    /// A manifest record is missing or does not follow the one before.
    ManifestChain,
    /// A checkpoint says something else than the records that it stands for.
    ManifestCheckpoint,
    /// A table's columns contradict each other.
    Schema,
    /// A series section does not read.
    SeriesSection,
    /// A series section holds another number of series than the manifest says.
    SeriesCount,
    /// Two tag sets have one id, or one tag set has two.
    SeriesTwice,
    /// An id is not the hash of its tags.
    SeriesId,
    /// A series has a tag that its table has not.
    SeriesTag,
    /// An object that the manifest names is not there.
    ObjectMissing,
    /// An object ends before a section of it does.
    ObjectShort,
    /// A section's seal does not open: bytes changed, or it belongs elsewhere.
    Seal,
    /// A section does not decode although its seal is whole.
    Decode,
    /// Row counts of manifest, directory and data differ.
    Rows,
    /// Time bounds of the manifest differ from the data.
    TimeBounds,
    /// Time bounds of a series in the directory differ from the data.
    SpanBounds,
    /// Rows are not sorted, or a series and time occurs twice.
    RowOrder,
    /// Series of a file are unknown or out of order.
    FileSeries,
    /// A file has columns that its table has not, or of another type.
    FileColumns,
    /// Sizes in the manifest contradict each other.
    FileSize,
    /// Two entries of the manifest have one file id.
    FileTwice,
    /// Log positions of a file are impossible or past the flushed position.
    LsnBounds,
    /// Files that overlap in time also overlap in log positions, so nobody knows which is newer.
    LsnOrder,
    /// A tombstone of the manifest cannot be.
    Tombstone,
    /// A file that was rewritten without deleted rows still has them.
    DeletedRows,
    /// The log has a hole, starts too late or ends too early.
    LogGap,
    /// Frames of the log cannot be read.
    LogDamage,
    /// A log record does not decode or contradicts the tables.
    LogRecord,
    /// A stream has numbers between watermark and log that are nowhere.
    Watermark,
    /// An object that nobody names. The next start removes it.
    Orphan,
}

impl Code {
    /// The stable text, for scripts.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ManifestRecord => "manifest.record",
            Self::ManifestChain => "manifest.chain",
            Self::ManifestCheckpoint => "manifest.checkpoint",
            Self::Schema => "table.schema",
            Self::SeriesSection => "series.section",
            Self::SeriesCount => "series.count",
            Self::SeriesTwice => "series.twice",
            Self::SeriesId => "series.id",
            Self::SeriesTag => "series.tag",
            Self::ObjectMissing => "object.missing",
            Self::ObjectShort => "object.short",
            Self::Seal => "section.seal",
            Self::Decode => "section.decode",
            Self::Rows => "file.rows",
            Self::TimeBounds => "file.time_bounds",
            Self::SpanBounds => "file.span_bounds",
            Self::RowOrder => "file.row_order",
            Self::FileSeries => "file.series",
            Self::FileColumns => "file.columns",
            Self::FileSize => "file.size",
            Self::FileTwice => "file.twice",
            Self::LsnBounds => "file.lsn_bounds",
            Self::LsnOrder => "file.lsn_order",
            Self::Tombstone => "table.tombstone",
            Self::DeletedRows => "file.deleted_rows",
            Self::LogGap => "log.gap",
            Self::LogDamage => "log.damage",
            Self::LogRecord => "log.record",
            Self::Watermark => "stream.watermark",
            Self::Orphan => "object.orphan",
        }
    }

    /// Whether it is damage. What is not is a notice: normal after a crash.
    pub const fn is_damage(self) -> bool {
        !matches!(self, Self::Orphan)
    }
}

/// One thing that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What kind.
    pub code: Code,
    /// Whose data, if it is somebody's.
    pub tenant: Option<TenantId>,
    /// Database and table, if it is in one.
    pub table: Option<(String, String)>,
    /// The file below the data directory, if there is one.
    pub file: Option<String>,
    /// What is wrong, in words, with the numbers.
    pub detail: String,
}

/// What was looked at and what was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Findings, in the order of the walk.
    pub findings: Vec<Finding>,
    /// Manifest records and checkpoints read.
    pub records: u64,
    /// Tables.
    pub tables: u64,
    /// Series.
    pub series: u64,
    /// Column files.
    pub files: u64,
    /// Rows in them, each read.
    pub rows: u64,
    /// Sealed bytes of sections, each read.
    pub bytes: u64,
    /// Frames of the log, each read.
    pub frames: u64,
}

impl Report {
    /// Whether nothing is damaged; notices do not count.
    pub fn is_clean(&self) -> bool {
        !self.findings.iter().any(|f| f.code.is_damage())
    }
}

/// How far the check is, in sections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Sections done.
    pub done: u64,
    /// Sections that the manifest names.
    pub total: u64,
}

/// Where in the data a check is, to name it in findings.
#[derive(Debug, Clone, Default)]
struct Place {
    tenant: Option<TenantId>,
    table: Option<(String, String)>,
    file: Option<String>,
}

/// The check in progress.
struct Walk<'a> {
    store: Arc<dyn ObjectStore>,
    keys: Arc<dyn TenantKeySource>,
    report: Report,
    done: u64,
    total: u64,
    progress: &'a mut (dyn FnMut(Progress) + Send),
}

impl Walk<'_> {
    fn find(&mut self, at: &Place, code: Code, detail: impl Into<String>) {
        let Place { tenant, table, file } = at.clone();
        self.report.findings.push(Finding { code, tenant, table, file, detail: detail.into() });
    }

    /// A section that could not be read.
    fn find_unread(&mut self, at: &Place, error: &ColumnFileError) -> Result<(), FsckError> {
        let code = match error {
            ColumnFileError::Seal { source, .. } => match source {
                SealError::Key(e) if is_unreachable(e) => {
                    return Err(FsckError::Keys(e.clone()));
                }
                _ => Code::Seal,
            },
            ColumnFileError::Store { source: object_store::Error::NotFound { .. }, .. } => {
                Code::ObjectMissing
            }
            ColumnFileError::Store { .. } => Code::ObjectShort,
            ColumnFileError::Rows { .. } => Code::Rows,
            ColumnFileError::Columns { .. } => Code::FileColumns,
            ColumnFileError::Parquet { .. }
            | ColumnFileError::Decoder { .. }
            | ColumnFileError::Directory { .. } => Code::Decode,
        };
        self.find(at, code, error.to_string());
        Ok(())
    }

    fn advance(&mut self, sealed_bytes: u64) {
        self.report.bytes += sealed_bytes;
        self.done += 1;
        (self.progress)(Progress { done: self.done, total: self.total });
    }
}

/// Whether keys cannot be had now, which says nothing about the data. A version that was never
/// made is damage of what names it.
fn is_unreachable(e: &KeyError) -> bool {
    !matches!(e, KeyError::Gone { .. } | KeyError::UnknownVersion { .. })
}

/// Checks a shard. Reads every byte once or twice, and needs memory for one file's batch of rows
/// and for the series of one table.
pub async fn run(
    config: FsckConfig,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<Report, FsckError> {
    let FsckConfig { disk, entropy, dir, keys } = config;
    let unreadable = |source| FsckError::Directory { path: dir.clone(), source };
    disk.list(&dir).map_err(unreadable)?;
    let store = DurableLocalStore::open(Arc::clone(&disk), &dir, entropy.as_ref());
    let store: Arc<dyn ObjectStore> = Arc::new(store.map_err(unreadable)?);
    let mut walk = Walk {
        store,
        keys: Arc::clone(&keys),
        report: Report::default(),
        done: 0,
        total: 0,
        progress,
    };
    let Some(manifest) = walk.chain(0).await? else { return Ok(walk.report) };
    let tables = manifest.tenants.values().flat_map(|t| t.tables.values());
    walk.total = tables.map(|t| (2 * t.files.len() + t.series_sections.len()) as u64).sum();
    let mut known = walk.tables(&manifest).await?;
    walk.orphans(&manifest).await?;
    walk.log(&disk, &dir.join("shard/0/wal"), &manifest, &mut known)?;
    Ok(walk.report)
}

impl Walk<'_> {
    async fn orphans(&mut self, manifest: &crate::manifest::Manifest) -> Result<(), FsckError> {
        let named = gc::named(manifest);
        let listed = self.store.list(Some(&Path::from("data")));
        let stored: Vec<_> = listed.try_collect().await?;
        for object in stored.into_iter().filter(|o| !named.contains(&o.location)) {
            let file = Some(object.location.to_string());
            let at = Place { file, ..Place::default() };
            let detail = format!(
                "{} bytes that no manifest names; the next start removes them",
                object.size
            );
            self.find(&at, Code::Orphan, detail);
        }
        Ok(())
    }
}
