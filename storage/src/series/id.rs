//! Series ids and the order of series.
//!
//! Owns: the hash (xxh3-64 under a secret of the tenant, so that ids tell nothing to others and
//! cannot be steered) and the sort key (tag tuple in the table's tag order, absent first).

use millrace_protocol::{batch::SeriesKey, ids::SeriesId};

use crate::{
    planted::{Bug, planted},
    schema::TagColumn,
};

/// The id that `key` gets when `collisions` earlier ids were taken by other tags.
pub(crate) fn series_id(secret: u64, key: &SeriesKey, collisions: u64) -> SeriesId {
    let seed = secret.wrapping_add(collisions.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let hash = xxhash_rust::xxh3::xxh3_64_with_seed(key.as_bytes(), seed);
    let few = planted(Bug::SeriesIdsFew) || planted(Bug::SeriesIdShared);
    SeriesId(if few { 32 | hash & 31 } else { hash })
}

/// Bytes whose plain comparison orders series by their tags in table order, absent before
/// present. Per tag: 0 if absent, else 1, the value with 0 escaped as `0 ff`, and the end `0 1`.
/// Trailing absent tags are left out, so that a tag added to the table later moves nothing.
pub(crate) fn sort_key(key: &SeriesKey, tags: &[TagColumn]) -> Box<[u8]> {
    let mut out = Vec::with_capacity(key.as_bytes().len());
    let mut used = 0;
    for tag in tags {
        match key.get(&tag.name) {
            None => out.push(0),
            Some(value) => {
                out.push(1);
                for byte in value.bytes() {
                    out.push(byte);
                    if byte == 0 {
                        out.push(0xff);
                    }
                }
                out.extend_from_slice(&[0, 1]);
                used = out.len();
            }
        }
    }
    out.truncate(used);
    out.into_boxed_slice()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tags(names: &[&str]) -> Vec<TagColumn> {
        names.iter().zip(1..).map(|(name, id)| TagColumn { id, name: (*name).to_owned() }).collect()
    }

    #[test]
    fn order_is_by_table_tags_with_absent_first_and_survives_a_new_tag() {
        let two = tags(&["host", "area"]);
        let three = tags(&["host", "area", "zone"]);
        let keys = [
            SeriesKey::from_sorted([]),
            SeriesKey::from_sorted([("area", "x")]),
            SeriesKey::from_sorted([("host", "a")]),
            SeriesKey::from_sorted([("area", "b"), ("host", "a")]),
            SeriesKey::from_sorted([("host", "a\0")]),
            SeriesKey::from_sorted([("host", "ab")]),
            SeriesKey::from_sorted([("area", "a"), ("host", "b")]),
        ];
        for order in [&two, &three] {
            for pair in keys.windows(2) {
                let [a, b] = pair else { continue };
                assert!(sort_key(a, order) < sort_key(b, order), "{a:?} before {b:?}");
            }
        }
    }

    #[test]
    fn ids_depend_on_the_secret_and_on_the_collision_count() {
        let key = SeriesKey::from_sorted([("host", "a")]);
        assert_ne!(series_id(1, &key, 0), series_id(2, &key, 0));
        assert_ne!(series_id(1, &key, 0), series_id(1, &key, 1));
        assert_eq!(series_id(1, &key, 0), series_id(1, &key, 0));
    }
}
