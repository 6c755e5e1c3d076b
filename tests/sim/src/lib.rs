//! millrace-sim.
