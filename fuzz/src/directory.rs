//! Series directories of column files.
//!
//! Properties: what decodes is encoded to bytes that decode to the same; its spans cover the rows
//! from 0 without holes.

use millrace_protocol::ids::SeriesId;
use millrace_storage::{SeriesSpan, column_file::directory::SeriesDirectory};

/// The target.
pub fn run(data: &[u8]) {
    let Ok(directory) = SeriesDirectory::decode(data) else { return };
    let mut next = 0;
    for span in directory.spans() {
        assert_eq!(u64::from(span.start), next, "no hole");
        assert!(span.rows > 0 && span.t_min <= span.t_max);
        next += u64::from(span.rows);
    }
    assert_eq!(directory.rows(), next);
    let again = SeriesDirectory::decode(&directory.encode()).expect("what it wrote itself");
    assert_eq!(again, directory);
}

/// Directories of none, one and several series.
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let span = |sid, start, rows, t_min, t_max| SeriesSpan {
        sid: SeriesId(sid),
        start,
        rows,
        t_min,
        t_max,
    };
    let of = |spans| SeriesDirectory::new(spans).encode();
    let hour = 3_600_000_000_000;
    vec![
        ("none", of(vec![])),
        ("one", of(vec![span(42, 0, 3_600, hour, 2 * hour)])),
        (
            "several",
            of(vec![
                span(u64::MAX, 0, 1, i64::MIN / 2, i64::MIN / 2),
                span(1, 1, 127, -hour, hour),
                span(2, 128, 70_000, hour, hour + 1),
            ]),
        ),
    ]
}
