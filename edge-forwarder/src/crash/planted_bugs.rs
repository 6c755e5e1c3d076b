//! The suite is worth what it catches: each planted bug must be found, and no bug must be.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{cuts, faults};
use crate::planted::{self, Bug};

/// Whether some history shows the bug: by a finding, or by a panic on the way.
fn is_caught(bug: Option<Bug>) -> bool {
    let histories: [fn(u64) -> Vec<String>; 9] = [
        faults::damaged,
        faults::forgotten,
        faults::stateless,
        faults::lost,
        faults::repeated,
        faults::full,
        faults::refused,
        faults::outages,
        |seed| cuts::findings(seed, 11),
    ];
    (0..12).any(|seed| {
        histories.iter().any(|history| {
            let played = AssertUnwindSafe(|| planted::with(bug, || history(seed)));
            catch_unwind(played).map_or(true, |wrong| !wrong.is_empty())
        })
    })
}

#[test]
fn e9_d2_every_planted_bug_is_caught_and_nothing_else() {
    assert!(!is_caught(None), "the suite finds something where nothing is planted");
    let bugs = [
        Bug::TrimBeforeAck,
        Bug::EpochKept,
        Bug::NumberReused,
        Bug::StateNotSynced,
        Bug::AckOfAnother,
        Bug::GapDropped,
        Bug::PositionEarly,
        Bug::ForkNotStored,
        Bug::VoidBelieved,
        Bug::LowerFloorIgnored,
        Bug::LiveSettlesAll,
        Bug::SplitKeepsEpoch,
        Bug::RefusedNotRead,
        Bug::RereadFromLast,
        Bug::RefusedNotRecorded,
        Bug::AsideKept,
    ];
    let missed: Vec<Bug> = bugs.into_iter().filter(|bug| !is_caught(Some(*bug))).collect();
    assert!(missed.is_empty(), "not caught: {missed:?}");
}
