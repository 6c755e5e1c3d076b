//! Removing objects that no manifest names.
//!
//! Owns: what is garbage (by reachability, never by a clock alone) and when it goes: at start,
//! when nobody can be reading, and later only after a grace in which running queries end, and
//! never while a snapshot still holds one of its files.
//! Never: removes an object that the current manifest names; removes anything once another owner
//! has claimed the shard, whose objects the manifest here does not know.
//! Order: list -> read the epoch claims -> remove. What a newer owner stored before the listing
//! was stored after its claim, which is seen; what it stores later is not in the list.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Weak},
    time::Duration,
};

use futures::TryStreamExt;
use object_store::{ObjectStore, ObjectStoreExt, path::Path};

use crate::{
    column_file::bundle::object_path,
    manifest::{
        CommitError, FileEntry, Manifest, ManifestStore,
        parts::{ObjectUse, Objects},
    },
    planted::{Bug, planted},
};

/// How long an object stays after the manifest stopped naming it: as long as the longest query.
pub(crate) const GRACE: Duration = Duration::from_secs(3600);

/// Why left-over objects were not removed. Nothing is lost: they only take space.
#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    /// The store.
    #[error("left-over objects cannot be removed: {0}")]
    Store(#[from] object_store::Error),
    /// This owner must not remove anything any more.
    #[error("left-over objects are not removed: {0}")]
    Owner(#[from] CommitError),
}

/// Objects seen to be unnamed, and since when (monotonic).
#[derive(Debug, Default)]
pub(crate) struct Garbage {
    since: BTreeMap<Path, Duration>,
    /// Files that left the manifest; alive while a snapshot holds them.
    left: Vec<(Path, Weak<FileEntry>)>,
}

/// What the manifest names, told from all of it.
pub(crate) fn named(manifest: &Manifest) -> BTreeSet<Path> {
    let mut out = BTreeSet::new();
    for table in manifest.tenants.values().flat_map(|t| t.tables.values()) {
        for file in &table.files {
            out.insert(object_path(&file.parquet.object));
            out.insert(object_path(&file.directory.object));
        }
        for section in &table.series_sections {
            out.insert(object_path(&section.section.object));
        }
    }
    out
}

impl Garbage {
    /// Notes files that a commit has removed from the manifest.
    pub(crate) fn file_left(&mut self, file: &Arc<FileEntry>) {
        for object in [&file.parquet.object, &file.directory.object] {
            self.left.push((object_path(object), Arc::downgrade(file)));
        }
    }

    /// Removes what has been garbage for the grace; `grace` zero removes all of it now that no
    /// snapshot holds. Returns how many objects went.
    pub(crate) async fn sweep(
        &mut self,
        store: &dyn ObjectStore,
        manifest: &mut ManifestStore,
        now: Duration,
        grace: Duration,
    ) -> Result<usize, SweepError> {
        let due = self.due(store, manifest.objects(), now, grace).await?;
        if due.is_empty() {
            return Ok(0);
        }
        manifest.check_owner().await?;
        for path in &due {
            store.delete(path).await?;
            self.since.remove(path);
        }
        Ok(due.len())
    }

    async fn due(
        &mut self,
        store: &dyn ObjectStore,
        objects: &Objects,
        now: Duration,
        grace: Duration,
    ) -> Result<Vec<Path>, object_store::Error> {
        let keeps = |object: &ObjectUse| object.files > 0 || !planted(Bug::SeriesAreGarbage);
        let kept = objects.iter().filter(|(_, object)| keeps(object));
        let named: BTreeSet<Path> = kept.map(|(id, _)| object_path(id)).collect();
        let stored: Vec<Path> =
            store.list(Some(&Path::from("data"))).map_ok(|m| m.location).try_collect().await?;
        let unnamed: BTreeSet<Path> = stored.into_iter().filter(|p| !named.contains(p)).collect();
        self.since.retain(|path, _| unnamed.contains(path));
        self.left.retain(|(_, file)| file.strong_count() > 0);
        let mut due = Vec::new();
        for path in unnamed {
            let first = *self.since.entry(path.clone()).or_insert(now);
            let held = !planted(Bug::PinIgnored) && self.left.iter().any(|(left, _)| *left == path);
            if !held && now.saturating_sub(first) >= grace {
                due.push(path);
            }
        }
        Ok(due)
    }
}
