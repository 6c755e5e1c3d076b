//! Schedules of disasters, for any [`System`]. Each is exhaustive over the operations of a
//! reference trace, for one seed, and says where a promise broke.
//!
//! Owns: the trace and the disasters. Never: prints; a caller prints the seed.

use millrace_platform::{
    disk::{Disk, OpenMode},
    sim::SimEntropy,
};

use crate::{bug::Bug, ledger::Violation, stage::System, world::World};

/// A broken promise and how to see it again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("seed {seed}, {schedule}: {violation}")]
pub struct Broken {
    /// The seed.
    pub seed: u64,
    /// The schedule and the operation.
    pub schedule: String,
    /// What broke.
    pub violation: Violation,
}

/// Stores, flushes and restarts. `stubborn` goes on after errors; otherwise the first ends it.
fn trace<S: System>(w: &mut World<S>, stubborn: bool) -> Result<(), Violation> {
    for round in 0..12u64 {
        let count = 1 + w.stage.dice.below(4);
        if !w.store(count) && !stubborn {
            return Ok(());
        }
        if round % 4 == 3 && !w.flush() && !stubborn {
            return Ok(());
        }
        if round % 6 == 4 {
            w.check("while it runs")?;
            w.start()?;
            if !w.runs() {
                if !stubborn {
                    return Ok(());
                }
                w.start()?;
            }
        }
    }
    w.check("at the end of the trace")
}

fn at<T>(
    seed: u64,
    schedule: impl FnOnce() -> String,
    result: Result<T, Violation>,
) -> Result<T, Broken> {
    result.map_err(|violation| Broken { seed, schedule: schedule(), violation })
}

fn length<S: System>(seed: u64, bug: Option<Bug>) -> Result<u64, Violation> {
    let mut w = World::<S>::with_bug(seed, bug);
    w.start()?;
    let before = w.operations();
    trace(&mut w, false)?;
    Ok(w.operations() - before)
}

fn goes_on<S: System>(w: &mut World<S>) -> Result<(), Violation> {
    for _ in 0..2 {
        if !w.store(2) {
            let why = "does not store on a disk that works".into();
            return Err(Violation::Refused { why, when: "after the crash".into() });
        }
    }
    w.check("after the crash")
}

/// The power fails after every operation; then twice more, after a few more writes and after a
/// flush.
pub fn power_cuts<S: System>(seed: u64, bug: Option<Bug>) -> Result<u64, Broken> {
    let operations = at(seed, || "nothing fails".into(), length::<S>(seed, bug))?;
    for cut in 0..=operations {
        let run = || -> Result<(), Violation> {
            let mut w = World::<S>::with_bug(seed, bug);
            w.start()?;
            w.cut_power_after(cut);
            trace(&mut w, false)?;
            w.power_comes_back();
            w.start()?;
            goes_on(&mut w)?;
            w.power_comes_back();
            w.start()?;
            w.flush();
            goes_on(&mut w)?;
            w.power_comes_back();
            w.start()?;
            w.check("after three power cuts")
        };
        at(seed, || format!("power cut after operation {cut} of {operations}"), run())?;
    }
    Ok(operations + 1)
}

/// Every operation fails once; the system goes on, then the process dies, then the power fails.
pub fn failing_operations<S: System>(seed: u64, bug: Option<Bug>) -> Result<u64, Broken> {
    let operations = at(seed, || "nothing fails".into(), length::<S>(seed, bug))?;
    for op in 1..=operations {
        let run = || -> Result<(), Violation> {
            let mut w = World::<S>::with_bug(seed, bug);
            w.start()?;
            w.fail_operation(op);
            trace(&mut w, true)?;
            goes_on(&mut w)?;
            w.kill();
            w.start()?;
            w.check("after the process died")?;
            w.power_comes_back();
            w.start()?;
            goes_on(&mut w)
        };
        at(seed, || format!("operation {op} of {operations} fails"), run())?;
    }
    Ok(operations)
}

/// The power fails during every operation of a start.
pub fn power_cuts_of_starts<S: System>(seed: u64, bug: Option<Bug>) -> Result<u64, Broken> {
    let operations = at(seed, || "nothing fails".into(), length::<S>(seed, bug))?;
    for cut in 0..24 {
        let run = || -> Result<(), Violation> {
            let mut w = World::<S>::with_bug(seed, bug);
            w.start()?;
            w.cut_power_after(operations * (1 + seed % 5) / 6);
            trace(&mut w, false)?;
            w.power_comes_back();
            w.cut_power_after(cut);
            w.start()?;
            w.power_comes_back();
            w.start()?;
            goes_on(&mut w)
        };
        at(seed, || format!("power cut after operation {cut} of a start"), run())?;
    }
    Ok(24)
}

/// The disk fills up, is written to all the same, and gets room again.
pub fn full_disks<S: System>(seed: u64, bug: Option<Bug>) -> Result<u64, Broken> {
    for kib in (24..120).step_by(8) {
        let run = || -> Result<(), Violation> {
            let mut w = World::<S>::with_bug(seed, bug);
            w.start()?;
            w.limit_disk(Some(kib << 10));
            trace(&mut w, true)?;
            w.limit_disk(None);
            if !w.runs() {
                w.start()?;
            }
            goes_on(&mut w)?;
            w.power_comes_back();
            w.start()?;
            w.check("after a full disk and a power cut")
        };
        at(seed, || format!("room for {kib} KiB"), run())?;
    }
    Ok(12)
}

/// `count` single bits flip in files whose name ends in `suffix`. The system may refuse; it may
/// not hold other items than before without saying so.
pub fn bit_flips<S: System>(
    seed: u64,
    bug: Option<Bug>,
    suffix: &str,
    count: u64,
) -> Result<u64, Broken> {
    let dice = SimEntropy::seeded(seed ^ 0x0b17);
    let built = || -> Result<World<S>, Violation> {
        let mut w = World::<S>::with_bug(seed, bug);
        w.start()?;
        trace(&mut w, false)?;
        // Several segments and starts that nothing was flushed of.
        for _ in 0..3 {
            for _ in 0..4 {
                w.store(3);
            }
            w.start()?;
        }
        w.kill();
        Ok(w)
    };
    let w = at(seed, || "nothing fails".into(), built())?;
    let is_target = |p: &std::path::PathBuf| p.to_string_lossy().ends_with(suffix);
    let paths: Vec<_> = w.stage.sim.paths().into_iter().filter(is_target).collect();
    for _ in 0..count {
        let Some(path) = paths.get(dice.below(paths.len().max(1) as u64) as usize) else { break };
        let len = w.stage.sim.open(path, OpenMode::Read).and_then(|f| f.len()).unwrap_or_default();
        let near = if dice.below(2) == 0 { len } else { len.min(7000) };
        let (byte, bit) = (dice.below(near.max(1)), dice.below(8) as u8);
        let mut flipped = w.fork();
        if flipped.stage.sim.flip_bit(path, byte, bit).is_err() {
            continue;
        }
        let place = || format!("bit {bit} of byte {byte} of {} flips", path.display());
        match flipped.start() {
            Ok(()) | Err(Violation::Refused { .. }) => {}
            Err(violation) => return at(seed, place, Err(violation)),
        }
    }
    Ok(count)
}
