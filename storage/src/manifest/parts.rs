//! The manifest as its owner keeps it: parts of tenants that work as they are, all others small.
//!
//! Owns: which part is kept how, and which objects are named by what, kept up to date with every
//! change so that nobody has to walk all tenants to know it.
//! Invariant: an object is in the index exactly while a file or a series section names it.

use std::{collections::BTreeMap, fmt, sync::Arc};

use millrace_protocol::ids::TenantId;
use serde::{Serialize, de::DeserializeOwned};

use super::{
    record::RecordError,
    state::{Manifest, TableManifest, TenantManifest},
};

/// How hard is tried to make a part small: more costs much more time for a few percent.
const LEVEL: i32 = 3;

/// Something serialised and compressed, for who wants it seldom.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Packed {
    bytes: Arc<[u8]>,
    /// Bytes when unpacked.
    plain: u32,
}

impl fmt::Debug for Packed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Packed({} bytes of {})", self.bytes.len(), self.plain)
    }
}

fn inside(e: impl fmt::Display) -> RecordError {
    RecordError::Inside(e.to_string())
}

impl Packed {
    pub(crate) fn pack<T: Serialize>(value: &T) -> Result<Self, RecordError> {
        Self::of_json(&serde_json::to_vec(value).map_err(inside)?)
    }

    pub(crate) fn of_json(json: &[u8]) -> Result<Self, RecordError> {
        let bytes = zstd::bulk::compress(json, LEVEL).map_err(inside)?.into();
        Ok(Self { bytes, plain: u32::try_from(json.len()).map_err(inside)? })
    }

    pub(crate) fn json(&self) -> Result<Vec<u8>, RecordError> {
        zstd::bulk::decompress(&self.bytes, self.plain as usize).map_err(inside)
    }

    pub(crate) fn open<T: DeserializeOwned>(&self) -> Result<T, RecordError> {
        serde_json::from_slice(&self.json()?).map_err(inside)
    }
}

/// What names one object.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct ObjectUse {
    /// Column files with a section in it.
    pub(crate) files: u32,
    /// Series sections in it.
    pub(crate) series: u32,
    /// Sealed bytes of these.
    pub(crate) series_bytes: u64,
}

/// Objects by their ids.
pub(crate) type Objects = BTreeMap<[u8; 16], ObjectUse>;

fn enter(objects: &mut Objects, table: &TableManifest) {
    for file in &table.files {
        objects.entry(file.parquet.object).or_default().files += 1;
        objects.entry(file.directory.object).or_default().files += 1;
    }
    for part in &table.series_sections {
        let object = objects.entry(part.section.object).or_default();
        object.series += 1;
        object.series_bytes += part.section.len;
    }
}

fn leave(objects: &mut Objects, table: &TableManifest) {
    let mut less = |id: &[u8; 16], by: ObjectUse| {
        if let Some(object) = objects.get_mut(id) {
            object.files = object.files.saturating_sub(by.files);
            object.series = object.series.saturating_sub(by.series);
            object.series_bytes = object.series_bytes.saturating_sub(by.series_bytes);
            if object.files == 0 && object.series == 0 {
                objects.remove(id);
            }
        }
    };
    let file = ObjectUse { files: 1, ..ObjectUse::default() };
    for entry in &table.files {
        less(&entry.parquet.object, file);
        less(&entry.directory.object, file);
    }
    for part in &table.series_sections {
        less(
            &part.section.object,
            ObjectUse { files: 0, series: 1, series_bytes: part.section.len },
        );
    }
}

#[derive(Debug, Clone)]
enum Part {
    Open(Arc<TenantManifest>),
    Packed(Packed),
}

impl Part {
    fn open(&self) -> Result<Arc<TenantManifest>, RecordError> {
        match self {
            Self::Open(part) => Ok(Arc::clone(part)),
            Self::Packed(packed) => packed.open().map(Arc::new),
        }
    }
}

/// See the module head.
#[derive(Debug, Clone, Default)]
pub(crate) struct Parts {
    parts: BTreeMap<TenantId, Part>,
    objects: Objects,
}

impl Parts {
    /// A tenant's part; `None` if it has none.
    pub(crate) fn get(&self, id: &TenantId) -> Result<Option<Arc<TenantManifest>>, RecordError> {
        self.parts.get(id).map(Part::open).transpose()
    }

    /// Tenants that have a part.
    pub(crate) fn ids(&self) -> impl Iterator<Item = &TenantId> {
        self.parts.keys()
    }

    /// Puts in a tenant's part in place of the one before.
    pub(crate) fn put(
        &mut self,
        id: TenantId,
        part: Arc<TenantManifest>,
    ) -> Result<(), RecordError> {
        if let Some(before) = self.get(&id)? {
            before.tables.values().for_each(|table| leave(&mut self.objects, table));
        }
        part.tables.values().for_each(|table| enter(&mut self.objects, table));
        self.parts.insert(id, Part::Open(part));
        Ok(())
    }

    /// Puts in the first part of a tenant, as its leaf says it, and keeps it small.
    pub(crate) fn put_leaf(&mut self, id: TenantId, json: &[u8]) -> Result<(), RecordError> {
        let part: TenantManifest = serde_json::from_slice(json).map_err(inside)?;
        part.tables.values().for_each(|table| enter(&mut self.objects, table));
        self.parts.insert(id, Part::Packed(Packed::of_json(json)?));
        Ok(())
    }

    /// Keeps a tenant's part small from now on.
    pub(crate) fn pack(&mut self, id: &TenantId) -> Result<Option<Packed>, RecordError> {
        let Some(part) = self.parts.get_mut(id) else { return Ok(None) };
        if let Part::Open(open) = part {
            *part = Part::Packed(Packed::pack(open.as_ref())?);
        }
        Ok(match part {
            Part::Packed(packed) => Some(packed.clone()),
            Part::Open(_) => None,
        })
    }

    /// The JSON of every part, one at a time.
    pub(crate) fn leaves(
        &self,
    ) -> impl DoubleEndedIterator<Item = (TenantId, Result<Vec<u8>, RecordError>)> {
        self.parts.iter().map(|(id, part)| {
            let json = match part {
                Part::Open(open) => serde_json::to_vec(open.as_ref()).map_err(inside),
                Part::Packed(packed) => packed.json(),
            };
            (*id, json)
        })
    }

    /// What names the objects in the store.
    pub(crate) fn objects(&self) -> &Objects {
        &self.objects
    }

    /// All of it, open: for who has to see everything, and may take the memory.
    pub(crate) fn into_manifest(
        self,
        (number, epoch, flushed_lsn): (u64, u64, u64),
    ) -> Result<Manifest, RecordError> {
        let mut tenants = BTreeMap::new();
        for (id, part) in self.parts {
            tenants.insert(id, part.open()?);
        }
        Ok(Manifest { number, epoch, flushed_lsn, tenants })
    }
}
