//! Removing objects that no manifest names.
//!
//! Owns: what is garbage (by reachability, never by a clock alone) and when it goes: at start,
//! when nobody can be reading, and later only after a grace in which running queries end.
//! Never: removes an object that the current manifest names.

use std::{collections::BTreeSet, time::Duration};

use futures::TryStreamExt;
use object_store::{ObjectStore, ObjectStoreExt, path::Path};

use crate::{column_file::bundle::object_path, manifest::Manifest};

/// How long an object stays after the manifest stopped naming it: longer than any query.
pub(crate) const GRACE: Duration = Duration::from_secs(3600);

/// Objects seen to be unnamed, and since when (monotonic).
#[derive(Debug, Default)]
pub(crate) struct Garbage {
    since: Vec<(Path, Duration)>,
}

fn named(manifest: &Manifest) -> BTreeSet<Path> {
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
    /// Removes what has been garbage for the grace; `grace` zero removes all of it now. Returns
    /// how many objects went.
    pub(crate) async fn sweep(
        &mut self,
        store: &dyn ObjectStore,
        manifest: &Manifest,
        now: Duration,
        grace: Duration,
    ) -> Result<usize, object_store::Error> {
        let named = named(manifest);
        let stored: Vec<Path> =
            store.list(Some(&Path::from("data"))).map_ok(|m| m.location).try_collect().await?;
        let unnamed: BTreeSet<Path> = stored.into_iter().filter(|p| !named.contains(p)).collect();
        self.since.retain(|(path, _)| unnamed.contains(path));
        let mut removed = 0;
        for path in unnamed {
            let first = match self.since.iter().find(|(known, _)| *known == path) {
                Some((_, first)) => *first,
                None => {
                    self.since.push((path.clone(), now));
                    now
                }
            };
            if now.saturating_sub(first) >= grace {
                store.delete(&path).await?;
                self.since.retain(|(known, _)| *known != path);
                removed += 1;
            }
        }
        Ok(removed)
    }
}
