//! The words that a crash test is told in.
//!
//! ```
//! use millrace_sim::{LogAndStore, World};
//!
//! let mut w = World::<LogAndStore>::seeded(7);
//! w.start()?;
//! assert!(w.store(100));
//! w.cut_power_after(3);
//! w.flush();
//! w.power_comes_back();
//! w.start()?;
//! assert_eq!(w.acked(), 100);
//! # Ok::<(), millrace_sim::Violation>(())
//! ```

use millrace_platform::sim::disk::Faults;

use crate::{
    bug::Bug,
    ledger::{Ledger, Violation},
    stage::{Stage, Stop, System},
};

/// One system on one machine, with its ledger.
pub struct World<S: System> {
    /// The machine.
    pub stage: Stage,
    ledger: Ledger,
    system: Option<S>,
    faults: Faults,
}

impl<S: System> World<S> {
    /// A new machine and no system yet.
    pub fn seeded(seed: u64) -> Self {
        Self::with_bug(seed, None)
    }

    /// A new machine with a bug planted.
    pub fn with_bug(seed: u64, bug: Option<Bug>) -> Self {
        let faults = Faults {
            skip_sync: bug == Some(Bug::SyncSkipped),
            skip_sync_dir: bug == Some(Bug::DirectorySyncSkipped),
            ..Faults::default()
        };
        let stage = Stage::seeded(seed, bug);
        stage.sim.set_faults(faults);
        Self { stage, ledger: Ledger::default(), system: None, faults }
    }

    /// The same world with a disk of its own, as it is now, and no process running.
    pub fn fork(&self) -> Self {
        let stage = self.stage.fork();
        stage.sim.set_faults(self.faults);
        Self { stage, ledger: self.ledger.clone(), system: None, faults: self.faults }
    }

    /// Starts the system; what it holds is compared with the ledger and must stay from now on.
    /// A system that cannot start because the disk fails is not a violation: see [`Self::runs`].
    pub fn start(&mut self) -> Result<(), Violation> {
        self.system = None;
        match S::start(&self.stage) {
            Ok((system, found)) => {
                self.ledger.settle(&found, "at the start")?;
                self.system = Some(system);
                Ok(())
            }
            Err(Stop::Disk(_)) => Ok(()),
            Err(Stop::Refused(why)) => Err(Violation::Refused { why, when: "at the start".into() }),
            Err(Stop::Changed(what)) => {
                Err(Violation::Changed { what, when: "at the start".into() })
            }
        }
    }

    /// Whether the system runs.
    pub fn runs(&self) -> bool {
        self.system.is_some()
    }

    /// Submits `count` new items as one group; whether they were acknowledged.
    pub fn store(&mut self, count: u64) -> bool {
        let items = self.ledger.submit(count);
        let Some(system) = self.system.as_mut() else { return false };
        let stored = system.store(&self.stage, &items).is_ok();
        if stored {
            self.ledger.ack(&items);
        }
        stored
    }

    /// Flushes; whether it worked.
    pub fn flush(&mut self) -> bool {
        self.system.as_mut().is_some_and(|system| system.flush(&self.stage).is_ok())
    }

    /// Items acknowledged so far.
    pub fn acked(&self) -> usize {
        self.ledger.acked().len()
    }

    /// Compares what readers see with the ledger.
    pub fn check(&mut self, when: &str) -> Result<(), Violation> {
        let times = self.stage.keys.repeated();
        if times > 0 {
            return Err(Violation::NonceReused { times, when: when.into() });
        }
        let Some(system) = self.system.as_mut() else { return Ok(()) };
        match system.held(&self.stage) {
            Ok(held) => self.ledger.check(&held, when),
            Err(Stop::Disk(_)) => Ok(()),
            Err(Stop::Refused(why)) => Err(Violation::Refused { why, when: when.into() }),
            Err(Stop::Changed(what)) => Err(Violation::Changed { what, when: when.into() }),
        }
    }

    /// The power will fail when `operations` more disk operations are done.
    pub fn cut_power_after(&mut self, operations: u64) {
        let at = self.stage.sim.ops() + operations;
        self.stage.sim.set_faults(Faults { cut_after: Some(at), ..self.faults });
    }

    /// The `nth` disk operation from now (1 is the next) will fail, once.
    pub fn fail_operation(&mut self, nth: u64) {
        let at = self.stage.sim.ops() + nth;
        self.stage.sim.set_faults(Faults { fail_op: Some(at), ..self.faults });
    }

    /// The disk has room for this many bytes; `None` for enough.
    pub fn limit_disk(&mut self, bytes: Option<u64>) {
        self.stage.sim.set_faults(Faults { capacity: bytes, ..self.faults });
    }

    /// The power is cut, if it was not yet, and comes back; unsynced writes are lost, kept or torn.
    pub fn power_comes_back(&mut self) {
        self.system = None;
        self.stage.sim.power_cycle(&self.stage.dice);
        self.stage.sim.set_faults(self.faults);
    }

    /// The process dies, the machine goes on.
    pub fn kill(&mut self) {
        self.system = None;
        self.stage.sim.kill_process();
        self.stage.sim.set_faults(self.faults);
    }

    /// Disk operations so far.
    pub fn operations(&self) -> u64 {
        self.stage.sim.ops()
    }
}
