//! Moving series sections out of bundles of which nothing else is left, so that these can go.
//!
//! Owns: which sections move, and the move: copy -> one object -> one commit. A section is copied
//! as it is sealed, after its seal has been checked; its id, and so its key, stay.
//! Never: moves a section of an object that is mostly series already, so that moving ends.
//! Crash order: as a merge: an object without a commit is swept at the next start.

use std::collections::BTreeMap;

use futures::TryStreamExt;
use millrace_crypto::{key::KeyError, sealed_file::open_object};
use millrace_platform::entropy::random_bytes;
use millrace_protocol::ids::TenantId;
use object_store::{ObjectStoreExt, path::Path};

use crate::{
    column_file::bundle::{BundleWriter, SectionRef, object_path},
    flush::{FlushError, Maintenance},
    manifest::{Delta, Manifest, SeriesSection, TableDelta, TenantDelta},
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

/// Series sections in objects (name and size) that hold no rows any more and are mostly waste.
fn stranded(manifest: &Manifest, objects: &BTreeMap<Path, u64>) -> Vec<Stranded> {
    let mut series: BTreeMap<Path, Vec<Stranded>> = BTreeMap::new();
    let mut with_rows = std::collections::BTreeSet::new();
    for (tenant, tables) in &manifest.tenants {
        for (table_id, table) in &tables.tables {
            for file in &table.files {
                with_rows.insert(object_path(&file.parquet.object));
                with_rows.insert(object_path(&file.directory.object));
            }
            for section in &table.series_sections {
                let (tenant, table_id, section) = (*tenant, *table_id, section.clone());
                let path = object_path(&section.section.object);
                series.entry(path).or_default().push(Stranded { tenant, table_id, section });
            }
        }
    }
    let mostly_waste = |path: &Path, sections: &[Stranded]| {
        let live: u64 = sections.iter().map(|s| s.section.section.len).sum();
        objects.get(path).is_some_and(|size| live < size / 2)
    };
    series.retain(|path, sections| !with_rows.contains(path) && mostly_waste(path, sections));
    let mut room = MOVE_BYTES;
    let mut out = Vec::new();
    for section in series.into_values().flatten() {
        let Some(left) = room.checked_sub(section.section.section.len) else { break };
        room = left;
        out.push(section);
    }
    out
}

impl Maintenance {
    /// Moves series sections as the module head says; returns how many.
    pub(crate) async fn relocate_series(&mut self) -> Result<usize, FlushError> {
        let prefix = Path::from("data");
        let listed = self.store.list(Some(&prefix)).map_ok(|m| (m.location, m.size));
        let objects: BTreeMap<Path, u64> = listed.try_collect().await?;
        let manifest = self.manifest.current();
        let mut bundle = BundleWriter::new(random_bytes(self.entropy.as_ref()));
        let mut tenants: BTreeMap<TenantId, TenantDelta> = BTreeMap::new();
        let mut moved = 0;
        for Stranded { tenant, table_id, section } in stranded(&manifest, &objects) {
            let Some(copied) = self.copy(tenant, &section.section, &mut bundle).await? else {
                continue;
            };
            let Some(table) = manifest.tenants.get(&tenant).and_then(|t| t.tables.get(&table_id))
            else {
                continue;
            };
            let delta = tenants.entry(tenant).or_default();
            let change = delta.tables.entry(table_id).or_insert_with(|| TableDelta {
                database: table.database.clone(),
                schema: table.schema.clone(),
                added_files: Vec::new(),
                removed_files: Vec::new(),
                added_series: Vec::new(),
                removed_series: Vec::new(),
            });
            change.removed_series.push(section.section);
            change.added_series.push(SeriesSection { section: copied, ..section });
            moved += 1;
        }
        if moved > 0 {
            self.put(bundle).await?;
            self.commit(Delta { flushed_lsn: manifest.flushed_lsn, tenants }).await?;
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
        manifest::{TableManifest, TenantManifest},
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
        };
        let tenant =
            TenantManifest { tables: BTreeMap::from([(1, table)]), ..TenantManifest::default() };
        let tenants = BTreeMap::from([(TenantId([1; 16]), Arc::new(tenant))]);
        let manifest = Manifest { tenants, ..Manifest::default() };
        // 1 has rows, 2 is mostly waste, 3 holds series alone.
        let objects =
            [(1u8, 1000), (2, 1000), (3, 100)].map(|(o, size)| (object_path(&[o; 16]), size));
        let found = stranded(&manifest, &objects.into());
        assert_eq!(found.iter().map(|s| s.section.section.object[0]).collect::<Vec<_>>(), [2]);
    }
}
