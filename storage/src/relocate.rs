//! Moving series sections out of bundles of which nothing else is left, so that these can go.
//!
//! Owns: which sections move, and the move: copy -> one object -> one commit. A section is copied
//! as it is sealed, after its seal has been checked; its id, and so its key, stay.
//! Never: moves a section of an object that is mostly series already, so that moving ends.
//! Crash order: as a merge: an object without a commit is swept at the next start.

use std::collections::{BTreeMap, BTreeSet};

use futures::TryStreamExt;
use millrace_crypto::{key::KeyError, sealed_file::open_object};
use millrace_platform::entropy::random_bytes;
use millrace_protocol::ids::TenantId;
use object_store::{ObjectStoreExt, path::Path};

use crate::{
    column_file::bundle::{BundleWriter, SectionRef, object_path},
    flush::{FlushError, Maintenance},
    manifest::{
        CommitError, Delta, ManifestStore, SeriesSection, TableDelta, TenantDelta,
        parts::{ObjectUse, Objects},
        record::RecordError,
    },
};

/// Bytes copied by one move: the rest follows with the next.
const MOVE_BYTES: u64 = 32 << 20;

/// A section that should move.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stranded {
    tenant: TenantId,
    table_id: u64,
    section: SeriesSection,
}

/// Objects that hold series and no rows any more, and are mostly waste; `sizes` are their bytes.
fn wasteful(objects: &Objects, sizes: &BTreeMap<Path, u64>) -> BTreeSet<[u8; 16]> {
    let mostly_waste = |id: &[u8; 16], object: &ObjectUse| {
        sizes.get(&object_path(id)).is_some_and(|size| object.series_bytes < size / 2)
    };
    let bare = objects.iter().filter(|(_, object)| object.files == 0);
    bare.filter(|(id, object)| mostly_waste(id, object)).map(|(id, _)| *id).collect()
}

/// Sections of the tenants that stand in one of `objects`, as many as one move takes.
fn stranded(
    manifest: &ManifestStore,
    objects: &BTreeSet<[u8; 16]>,
) -> Result<Vec<Stranded>, RecordError> {
    let (mut room, mut out) = (MOVE_BYTES, Vec::new());
    // Whose they are nobody has to know but here, and it is seldom that there are any.
    for tenant in manifest.tenants().into_iter().filter(|_| !objects.is_empty()) {
        let Some(part) = manifest.tenant(&tenant)? else { continue };
        for (table_id, table) in &part.tables {
            let here = |s: &&SeriesSection| objects.contains(&s.section.object);
            for section in table.series_sections.iter().filter(here) {
                let Some(left) = room.checked_sub(section.section.len) else { return Ok(out) };
                room = left;
                out.push(Stranded { tenant, table_id: *table_id, section: section.clone() });
            }
        }
    }
    Ok(out)
}

impl Maintenance {
    /// Moves series sections as the module head says; returns how many.
    pub(crate) async fn relocate_series(&mut self) -> Result<usize, FlushError> {
        let prefix = Path::from("data");
        let listed = self.store.list(Some(&prefix)).map_ok(|m| (m.location, m.size));
        let sizes: BTreeMap<Path, u64> = listed.try_collect().await?;
        let stranded = stranded(&self.manifest, &wasteful(self.manifest.objects(), &sizes));
        let stranded = stranded.map_err(CommitError::Record)?;
        let mut bundle = BundleWriter::new(random_bytes(self.entropy.as_ref()));
        let mut tenants: BTreeMap<TenantId, TenantDelta> = BTreeMap::new();
        let mut moved = 0;
        for Stranded { tenant, table_id, section } in stranded {
            let Some(copied) = self.copy(tenant, &section.section, &mut bundle).await? else {
                continue;
            };
            let part = self.manifest.tenant(&tenant).map_err(CommitError::Record)?;
            let Some(table) = part.as_ref().and_then(|t| t.tables.get(&table_id)) else {
                continue;
            };
            let delta = tenants.entry(tenant).or_default();
            let change = delta
                .tables
                .entry(table_id)
                .or_insert_with(|| TableDelta::of(&table.database, &table.schema));
            change.removed_series.push(section.section);
            change.added_series.push(SeriesSection { section: copied, ..section });
            moved += 1;
        }
        if moved > 0 {
            self.put(bundle).await?;
            let moved_of: Vec<TenantId> = tenants.keys().copied().collect();
            let flushed_lsn = self.manifest.flushed_lsn();
            self.commit(Delta { flushed_lsn, tenants }).await?;
            // The parts of idle tenants are small again, and where they wake from.
            for id in moved_of.into_iter().filter(|id| self.shared.awake(*id).is_none()) {
                if let Some(part) = self.manifest.pack(&id).map_err(CommitError::Record)? {
                    // One that was woken meanwhile has its series already.
                    let _asleep = self.shared.moved(id, part);
                }
            }
        }
        Ok(moved)
    }

    /// Copies one section; `None` if its tenant's keys are destroyed or it does not open.
    async fn copy(
        &self,
        tenant: TenantId,
        from: &SectionRef,
        bundle: &mut BundleWriter,
    ) -> Result<Option<SectionRef>, FlushError> {
        match self.keys.current(&tenant.0) {
            Ok(_) => {}
            Err(KeyError::Gone { .. }) => return Ok(None),
            Err(e) => return Err(e.into()),
        }
        let path = object_path(&from.object);
        let sealed = self.store.get_range(&path, from.offset..from.offset + from.len).await?;
        // What does not open stays where it is: the copy would be all that is left of it.
        if let Err(error) = open_object(self.keys.as_ref(), &tenant.0, from.section_id, &sealed) {
            tracing::error!(%error, place = %from, "a series section does not open and is not moved");
            return Ok(None);
        }
        Ok(Some(bundle.copy(from.section_id, &sealed)))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        compaction::model::entry,
        manifest::{TableManifest, TenantManifest, parts::Parts},
        schema::TableSchema,
    };

    fn at(object: u8, len: u64) -> SectionRef {
        SectionRef { object: [object; 16], section_id: [object; 16], offset: 0, len }
    }

    #[test]
    fn only_series_of_objects_without_rows_and_with_much_waste_are_moved() {
        let mut file = entry(9, 0, (0, 1), (1, 1), 1);
        file.parquet = at(1, 500);
        file.directory = at(1, 10);
        let sections = [1, 2, 3].map(|o| SeriesSection { section: at(o, 100), count: 1, day: 0 });
        let table = TableManifest {
            database: "d".into(),
            schema: TableSchema::new(1, "t"),
            files: vec![Arc::new(file)],
            series_sections: sections.to_vec(),
            tombstones: Vec::new(),
        };
        let tenant =
            TenantManifest { tables: BTreeMap::from([(1, table)]), ..TenantManifest::default() };
        let mut parts = Parts::default();
        parts.put(TenantId([1; 16]), Arc::new(tenant.clone())).unwrap();
        // 1 has rows, 2 is mostly waste, 3 holds series alone.
        let sizes =
            [(1u8, 1000), (2, 1000), (3, 100)].map(|(o, size)| (object_path(&[o; 16]), size));
        let found = wasteful(parts.objects(), &sizes.into());
        assert_eq!(found, BTreeSet::from([[2; 16]]));
        // What leaves the manifest leaves the index.
        parts.put(TenantId([1; 16]), Arc::new(TenantManifest::default())).unwrap();
        assert!(parts.objects().is_empty());
        // And what is kept small is the same as before.
        parts.put(TenantId([1; 16]), Arc::new(tenant.clone())).unwrap();
        parts.pack(&TenantId([1; 16])).unwrap();
        assert_eq!(parts.get(&TenantId([1; 16])).unwrap().as_deref(), Some(&tenant));
    }
}
