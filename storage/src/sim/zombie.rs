//! An owner that another one has replaced and that does not know it: it wakes at some moment and
//! goes on. Whatever it commits is refused, and nothing that the new owner acknowledged is lost,
//! doubled or removed.
//!
//! The log is not part of this: one process at a time may have its directory open, by a lock on
//! the data directory that the simulation leaves out on purpose.

use std::time::Duration;

use futures::executor::block_on;

use super::{
    model::Row,
    rows,
    world::{TENANT, World},
};
use crate::{FlushError, Origin, Shard, WriteError, WriteRequest, manifest::CommitError};

/// A row that only the zombie writes.
fn ghost(zombie: &mut Shard) -> Result<(), WriteError> {
    let row = Row { table: "cpu", host: "ghost".into(), time: 1, a: Some(1.0), b: None };
    let request = WriteRequest {
        tenant: TENANT,
        database: "default".into(),
        origin: Origin::Plain,
        tables: rows::batches(&[row]),
        sender: Default::default(),
    };
    zombie.write(vec![request]).remove(0).map(|_| ())
}

/// The zombie does all that an owner does; each step must be refused.
fn wake(zombie: &mut Shard, sweeps_first: bool, when: &str) {
    // Until it meets the manifest it cannot know, and takes rows that nobody else will see.
    ghost(zombie).unwrap_or_else(|e| panic!("{when}: the zombie's log is its own: {e}"));
    if sweeps_first {
        let swept = block_on(zombie.sweep(Duration::from_secs(1 << 20), Duration::ZERO));
        assert!(!matches!(swept, Ok(n) if n > 0), "{when}: the zombie removed objects");
    }
    let flushed = block_on(zombie.flush());
    assert!(
        matches!(flushed, Err(FlushError::Commit(CommitError::Fenced { .. }))),
        "{when}: the zombie's commit must be refused, it got {flushed:?}"
    );
    let again = block_on(zombie.flush());
    assert!(again.is_err(), "{when}: a fenced owner stays fenced");
    assert!(
        matches!(ghost(zombie), Err(WriteError::Stopped)),
        "{when}: an owner that knows of its successor acknowledges nothing"
    );
    let merged = block_on(zombie.compact_once());
    assert!(!matches!(merged, Ok(true)), "{when}: the zombie merged files");
    let swept = block_on(zombie.sweep(Duration::from_secs(1 << 21), Duration::ZERO));
    assert!(!matches!(swept, Ok(n) if n > 0), "{when}: the fenced zombie removed objects");
}

/// Sixty steps of a new owner beside an old one that wakes at one of them.
pub fn schedule(w: &mut World) {
    let seed = w.seed;
    w.open().unwrap();
    for _ in 0..w.dice.below(6) {
        let rows = w.some_rows(5);
        w.stream(rows);
        if w.dice.below(2) == 0 {
            w.flush();
        }
    }
    let mut zombie = w.shard.take().expect("the first owner");
    w.open().unwrap_or_else(|e| panic!("seed {seed}: the new owner does not start: {e}"));
    w.check("after the takeover");
    let wakes = w.dice.below(60);
    for step in 0..60 {
        if step == wakes {
            wake(&mut zombie, seed.is_multiple_of(2), &format!("seed {seed}, step {step}"));
        }
        match w.dice.below(8) {
            0 => {
                let rows = w.some_rows(4);
                assert!(w.write(rows), "seed {seed}: the new owner takes rows");
            }
            1 | 2 => {
                let rows = w.some_rows(4);
                assert!(w.stream(rows), "seed {seed}: the new owner takes rows");
            }
            3 => w.resend(),
            4 | 5 => assert!(w.flush(), "seed {seed}, step {step}: the new owner flushes"),
            6 => assert!(w.compact(), "seed {seed}, step {step}: the new owner merges"),
            _ => w.check(&format!("step {step}")),
        }
    }
    w.check("beside the zombie");
    drop(zombie);
    w.crash();
    w.open().unwrap_or_else(|e| panic!("seed {seed}: does not start after the zombie: {e}"));
    w.check("after the zombie");
}

#[test]
fn d1_d2_a_replaced_owner_is_refused_and_harms_nothing() {
    for seed in 500..540 {
        schedule(&mut World::seeded(seed));
    }
}

/// The old owner sleeps so long that the number it wants to write next has been removed: its
/// create succeeds, and only the claim tells it that it is an owner no more.
#[test]
fn d1_a_reused_manifest_number_does_not_let_an_old_owner_back_in() {
    let mut w = World::seeded(9);
    w.open().unwrap();
    let mut zombie = w.shard.take().expect("the first owner");
    w.open().unwrap();
    for _ in 0..12 {
        let rows = w.some_rows(4);
        assert!(w.stream(rows) && w.flush());
    }
    let second = std::path::Path::new("/data/shard/0/m/00000000000000000002");
    assert!(!w.disk.paths().iter().any(|p| p == second), "the number is free again");
    wake(&mut zombie, false, "after many commits");
    assert!(w.disk.paths().iter().any(|p| p == second), "its create went through");
    w.check("beside the zombie");
    for _ in 0..4 {
        let rows = w.some_rows(4);
        assert!(w.stream(rows) && w.flush());
    }
    w.crash();
    w.open().unwrap();
    w.check("after the zombie");
}
