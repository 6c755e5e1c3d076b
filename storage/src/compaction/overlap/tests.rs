//! What counts as overlap, on cases small enough to see.

use super::*;
use crate::compaction::model::entry;

#[test]
fn overlap_counts_versions_over_one_point_and_bounds_are_inclusive() {
    let file = |id, time, lsn| Arc::new(entry(id, 0, time, (lsn, lsn), 1));
    assert_eq!(overlap(&[]), 0);
    let files = [file(1, (0, 10), 1), file(2, (10, 20), 2), file(3, (21, 30), 3)];
    assert_eq!(deepest(&files), (2, 10));
    // What one merge wrote side by side is one version.
    let parts = [file(1, (0, 10), 1), file(2, (5, 20), 1), file(3, (7, 8), 2)];
    assert_eq!(deepest(&parts), (2, 7));
}

#[test]
fn d2_a_merge_may_not_jump_over_a_file_that_one_of_its_inputs_meets() {
    let file = |id, time, lsn| entry(id, 0, time, lsn, 1);
    let (old, new) = (file(1, (0, 9), (1, 1)), file(2, (0, 9), (5, 5)));
    let between = file(3, (9, 20), (3, 3));
    assert!(!keeps_order(&[&old, &new], [&between]));
    assert!(keeps_order(&[&old, &new], [&file(3, (10, 20), (3, 3))]), "it meets neither");
    assert!(keeps_order(&[&old, &new], [&file(3, (0, 9), (6, 9))]), "newer than both");
    // Wholly newer than the only input that it meets, and still newer than the whole.
    let apart = file(4, (50, 60), (2, 2));
    assert!(keeps_order(&[&old, &apart], [&between]));
    // It ends with the newest input, and began before it: after the merge it would count as
    // older than the part that it is newer than.
    let left = file(5, (0, 9), (3, 9));
    let (a, b) = (file(6, (0, 9), (4, 5)), file(7, (90, 99), (4, 9)));
    assert!(!keeps_order(&[&a, &b], [&left]));
}
