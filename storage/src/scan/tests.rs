//! Spans of files that lie about their series.

use millrace_protocol::batch::SeriesKey;

use super::*;
use crate::series::dictionary::SeriesDictionary;

/// A dictionary of hosts a, b and c, and a file's spans of the given ones.
fn spans_of(hosts: &[&str]) -> (Arc<SeriesView>, Vec<SeriesSpan>) {
    let tags = [crate::schema::TagColumn { id: 3, name: "host".into() }];
    let dictionary = SeriesDictionary::new(1);
    let key = |host: &str| SeriesKey::from_sorted([("host", host)]);
    for host in ["a", "b", "c"] {
        dictionary.add(&key(host), &tags);
    }
    let spans = hosts
        .iter()
        .zip(0..)
        .map(|(host, start)| {
            let sid = dictionary.find(&key(host), 0).map_or(SeriesId(999), |found| found.1);
            SeriesSpan { sid, start, rows: 1, t_min: 0, t_max: 0 }
        })
        .collect();
    (dictionary.view(), spans)
}

fn check(hosts: &[&str]) -> Result<Vec<u32>, String> {
    let (view, spans) = spans_of(hosts);
    ranked(&spans, &view, || "the file".to_owned(), |_, _| true)
        .map(|spans| spans.iter().map(|s| s.rank).collect())
        .map_err(|e| e.to_string())
}

#[test]
fn series_in_order_have_rising_ranks() {
    assert_eq!(check(&["a", "b", "c"]), Ok(vec![0, 1, 2]));
    assert_eq!(check(&["a", "c"]), Ok(vec![0, 2]));
}

#[test]
fn d2_series_out_of_order_twice_or_unknown_are_refused_by_file() {
    for (hosts, what) in [
        (&["b", "a"][..], "out of order"),
        (&["a", "b", "b"], "out of order"),
        (&["a", "c", "b"], "out of order"),
        (&["a", "x"], "does not have"),
    ] {
        let error = check(hosts).expect_err("it must be refused");
        assert!(error.starts_with("the file") && error.contains(what), "{hosts:?}: {error}");
    }
}
