//! Opening: what a start makes of the log and the state, whatever is left of them.
//!
//! Owns: the order of a start. Never: refuses to start over what it cannot read; goes on in an
//! epoch whose numbers may have been used without its knowing.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex},
};

use millrace_platform::{
    disk::Disk,
    durable,
    entropy::{Entropy, random_u64},
};
use millrace_protocol::ids::DeviceId;
use millrace_wal::{
    OnDamage, Options, Recovery, Scanned, SegmentKeys, TenantSegmentKeys, Wal, WalError,
};

use super::{
    Ground, Inner, Queue, QueueError, Sizes, payload,
    state::{self, State, StateFile},
};
use crate::{
    gap::{Cause, Gap},
    planted::{Bug, planted},
};

/// Opens the log. A last segment whose frames are whole but do not open (sealed under another key)
/// is put aside, under a name that the log does not know; says which were.
fn open_log(
    disk: &Arc<dyn Disk>,
    dir: &Path,
    keys: &Arc<dyn SegmentKeys>,
    entropy: &dyn Entropy,
    options: &Options,
) -> Result<(Wal, Recovery, Vec<String>), QueueError> {
    let mut aside = Vec::new();
    loop {
        let opened = Wal::open(Arc::clone(disk), dir, Arc::clone(keys), entropy, options.clone());
        let damage = match opened {
            Ok((wal, recovery)) => return Ok((wal, recovery, aside)),
            Err(WalError::Damaged(damage)) => damage,
            Err(e) => return Err(e.into()),
        };
        let name = format!("{:020}.wal", damage.segment);
        let (from, to) = (dir.join(&name), dir.join(format!("{name}.unreadable")));
        durable::publish(disk.as_ref(), &from, &to)
            .map_err(|e| QueueError::State { path: from, detail: e.to_string() })?;
        let what = format!("{damage}; the segment is kept as {name}.unreadable");
        tracing::error!(what, "a segment of the queue does not open");
        aside.push(what);
    }
}

impl Inner {
    /// A log that ends before what the state reflects has lost its end: log numbers start again
    /// behind what is left. `true` if so.
    fn fit(&mut self, recovery: &Recovery, now_ns: i64) -> bool {
        let (last, through) = (recovery.last_lsn(), self.state.through);
        if last >= through {
            return false;
        }
        let first = self.state.settled.max(last + 1);
        if first <= through {
            let what = "the log ends before what the state says";
            let gap = Gap::new("queue", Cause::Quarantine, now_ns, 0, what);
            self.note(gap.numbers(0, first, through));
        }
        self.state.settled = self.state.settled.min(recovery.next_lsn());
        self.state.split = self.state.split.min(recovery.next_lsn());
        self.state.through = last;
        self.last_lsn = last;
        true
    }
}

impl Queue {
    /// Opens the queue in `dir`, or makes it with a new epoch.
    pub fn open(
        ground: &Ground,
        device: DeviceId,
        dir: &Path,
        sizes: Sizes,
    ) -> Result<Self, QueueError> {
        let Ground { disk, entropy, clock, keys } = ground.clone();
        let file = StateFile::new(
            Arc::clone(&disk),
            Arc::clone(&entropy),
            Arc::clone(&keys),
            device.0,
            dir,
            sizes.reserve,
        );
        disk.create_dir_all(dir)
            .map_err(|e| QueueError::State { path: dir.to_path_buf(), detail: e.to_string() })?;
        let options = Options {
            segment_bytes: sizes.segment,
            on_damage: OnDamage::Quarantine,
            clock: Arc::clone(&clock),
            ..Options::default()
        };
        let loaded = file.load()?;
        let segment_keys: Arc<dyn SegmentKeys> = Arc::new(TenantSegmentKeys::new(keys));
        let (wal, recovery, aside) =
            open_log(&disk, dir, &segment_keys, entropy.as_ref(), &options)?;
        let fresh = || State {
            version: state::VERSION,
            epoch: if planted(Bug::EpochKept) { 7 } else { random_u64(entropy.as_ref()) },
            settled: recovery.first_lsn(),
            // Ids of gaps that a lost state gave are not given again.
            gap_id: random_u64(entropy.as_ref()) >> 8,
            through: recovery.first_lsn().saturating_sub(1),
            ..State::default()
        };
        let (state, lost) = match loaded {
            (Some(state), wrong) => (state, wrong),
            (None, Some(wrong)) => (fresh(), Some(wrong)),
            // Frames without a state: somebody removed it.
            (None, None) if recovery.last_lsn() > 0 => {
                (fresh(), Some("the queue has no state".to_owned()))
            }
            (None, None) => (fresh(), None),
        };
        let mut inner = Inner {
            last_lsn: state.through,
            stored: state.through,
            state,
            unsaved: 0,
            sendable: BTreeMap::new(),
            rows_queued: 0,
            gaps_sealed: 0,
        };
        if let Some(error) = &lost {
            tracing::error!(%error, "the queue's state does not read; a new epoch begins");
            let now = clock.now_ns();
            inner.note(Gap::new("queue", Cause::StateLost, now, 0, error));
        }
        for what in &aside {
            inner.note(Gap::new("queue", Cause::Quarantine, clock.now_ns(), 0, what));
        }
        let short = inner.fit(&recovery, clock.now_ns());
        let damaged = short | Self::catch_up(&mut inner, &recovery)?;
        if (damaged || lost.is_some() || !aside.is_empty()) && !planted(Bug::EpochKept) {
            // Numbers behind the damage may have been used: only a new epoch is safe.
            inner.state.epoch = random_u64(entropy.as_ref());
        }
        inner.sendable = inner.state.lanes.iter().map(|(k, l)| (k.clone(), l.end)).collect();
        let queue = Self { wal, file, clock, sizes, inner: Mutex::new(inner) };
        if lost.is_none() {
            super::aside::sweep(queue.file.disk.as_ref(), dir, &queue.lock().state);
        }
        queue.file.keep_reserve();
        // Frames say their epoch themselves, so a disk that is full now is no reason not to start:
        // delivery is what makes room.
        if let Err(error) = queue.save(&mut queue.lock()) {
            tracing::warn!(%error, "the queue's state could not be stored yet");
        }
        Ok(queue)
    }

    /// Takes the frames behind the stored state into account; `true` if some do not read.
    fn catch_up(inner: &mut Inner, recovery: &Recovery) -> Result<bool, QueueError> {
        let mut damaged = false;
        let from = inner.state.through + 1;
        recovery.scan(from, &mut |scanned| -> Result<(), QueueError> {
            let queued = match scanned {
                Scanned::Frame(frame) => payload::decode(frame.lsn, &frame.payload),
                Scanned::KeyGone { .. } | Scanned::Damage(_) => None,
            };
            let Some(queued) = queued else {
                damaged = true;
                return Ok(());
            };
            inner.stored(queued.lsn, &queued.source, queued.position.as_deref());
            for part in &queued.parts {
                if !planted(Bug::NumberReused) {
                    inner.numbered(&part.stream, part.epoch, part.seq_hi(), queued.lsn);
                }
                inner.rows_queued += part.batch.rows() as u64;
            }
            Ok(())
        })?;
        inner.last_lsn = inner.last_lsn.max(recovery.last_lsn());
        Ok(damaged)
    }
}
