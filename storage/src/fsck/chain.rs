//! The manifest: every record and checkpoint that is there, and whether they tell one story.

use std::collections::BTreeMap;

use millrace_crypto::sealed_file::SealError;

use super::{Code, FsckError, Place, Walk};
use crate::manifest::{
    Manifest, ManifestError, TenantDelta, TenantManifest,
    record::{self, Head, RecordError},
    store::{apply, fetch, load_all, numbers, record_name, root_name},
};

/// A state of the manifest on the walk, and the digest that the next record must name.
struct Story {
    manifest: Manifest,
    digest: record::Digest,
}

impl Walk<'_> {
    /// Reads the chain; `None` if the server could not start with it either.
    pub(super) async fn chain(&mut self, shard: u32) -> Result<Option<Manifest>, FsckError> {
        let loaded = load_all(self.store.as_ref(), self.keys.as_ref(), shard).await;
        let manifest = match loaded {
            Ok(manifest) => Some(manifest),
            Err(e) => {
                self.unloaded(e)?;
                None
            }
        };
        self.older(shard, manifest.is_none()).await?;
        Ok(manifest)
    }

    fn unloaded(&mut self, e: ManifestError) -> Result<(), FsckError> {
        let detail = e.to_string();
        let (code, name) = match e {
            ManifestError::Record { name, source } => {
                if let RecordError::Key(e) | RecordError::Seal(SealError::Key(e)) = source
                    && super::is_unreachable(&e)
                {
                    return Err(FsckError::Keys(e));
                }
                (Code::ManifestRecord, Some(name))
            }
            ManifestError::Chain { name, .. } => (Code::ManifestChain, Some(name)),
            ManifestError::Store(e) => return Err(e.into()),
            ManifestError::Contended | ManifestError::Fence(_) => (Code::ManifestChain, None),
        };
        self.find(&Place { file: name, ..Place::default() }, code, detail);
        Ok(())
    }

    /// Walks from the oldest checkpoint, which a start does not look at, and compares each later
    /// checkpoint with what the records say.
    async fn older(&mut self, shard: u32, damaged: bool) -> Result<(), FsckError> {
        let roots = numbers(self.store.as_ref(), &format!("shard/{shard}/c")).await?;
        let records = numbers(self.store.as_ref(), &format!("shard/{shard}/m")).await?;
        let mut story = None;
        let oldest = roots.first().copied().unwrap_or(0);
        if oldest == 0 {
            story = Some(Story { manifest: Manifest::default(), digest: [0; 32] });
        }
        let mut steps: Vec<(u64, bool)> = records.iter().map(|n| (*n, false)).collect();
        steps.extend(roots.iter().map(|n| (*n, true)));
        // A checkpoint stands behind the record of its number.
        steps.sort_unstable();
        for (number, is_root) in steps.into_iter().filter(|(n, is_root)| *n > oldest || *is_root) {
            self.report.records += 1;
            if is_root {
                story = self.root(shard, number, story, damaged).await?;
            } else if let Some(now) = story.take() {
                story = self.record(shard, number, now, damaged).await?;
            }
        }
        Ok(())
    }

    async fn record(
        &mut self,
        shard: u32,
        number: u64,
        now: Story,
        damaged: bool,
    ) -> Result<Option<Story>, FsckError> {
        let name = record_name(shard, number);
        let at = Place { file: Some(name.clone()), ..Place::default() };
        let bytes = fetch(self.store.as_ref(), &name).await?;
        let decoded: Result<(Head, BTreeMap<_, TenantDelta>), _> =
            record::decode(&name, &bytes, self.keys.as_ref());
        let problem = match &decoded {
            Err(e) => Some((Code::ManifestRecord, e.to_string())),
            Ok(_) if number != now.manifest.number + 1 => {
                let missing = now.manifest.number + 1;
                Some((Code::ManifestChain, format!("record {missing} is missing before it")))
            }
            Ok((head, _)) if head.previous != now.digest || head.epoch < now.manifest.epoch => {
                Some((Code::ManifestChain, "it does not follow the record before it".into()))
            }
            Ok(_) => None,
        };
        if let Some((code, detail)) = problem {
            // The first such finding was made by the load already.
            if !damaged {
                self.find(&at, code, detail);
            }
            return Ok(None);
        }
        Ok(decoded.ok().map(|(head, tenants)| Story {
            manifest: apply(&now.manifest, &head, &tenants),
            digest: record::digest_of(&bytes),
        }))
    }

    async fn root(
        &mut self,
        shard: u32,
        number: u64,
        before: Option<Story>,
        damaged: bool,
    ) -> Result<Option<Story>, FsckError> {
        let name = root_name(shard, number);
        let at = Place { file: Some(name.clone()), ..Place::default() };
        let bytes = fetch(self.store.as_ref(), &name).await?;
        let decoded: Result<(Head, BTreeMap<_, TenantManifest>), _> =
            record::decode(&name, &bytes, self.keys.as_ref());
        let (head, tenants) = match decoded {
            Ok(decoded) => decoded,
            Err(e) => {
                if !damaged {
                    self.find(&at, Code::ManifestRecord, e.to_string());
                }
                return Ok(before);
            }
        };
        let manifest = Manifest {
            number: head.number,
            epoch: head.epoch,
            flushed_lsn: head.flushed_lsn,
            tenants: tenants.into_iter().map(|(id, t)| (id, t.into())).collect(),
        };
        if let Some(before) = before {
            let last = before.manifest.number;
            if last != number {
                let detail = format!("records {} to {number} are missing before it", last + 1);
                self.find(&at, Code::ManifestChain, detail);
            } else if before.manifest != manifest || before.digest != head.previous {
                let detail = "it differs from what the records up to it say";
                self.find(&at, Code::ManifestCheckpoint, detail);
            }
        }
        Ok(Some(Story { manifest, digest: head.previous }))
    }
}
