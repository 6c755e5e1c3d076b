//! Sealed objects.
//!
//! Input: the first byte chooses one of three valid objects, two more a range, the rest is an edit
//! script (see [`crate::edit`]); or, with the highest bit set, the rest is the object as it is.
//! Properties: an object that was changed in any byte does not open; one that was not gives its
//! plaintext, whole and by range.

use std::sync::OnceLock;

use millrace_crypto::sealed_file::{ObjectOpener, SEALED_HEADER_BYTES, open_object, seal_object};
use millrace_platform::sim::SimEntropy;

use crate::{
    edit,
    keys::{self, FixedKeys, TENANT},
};

const OBJECT: [u8; 16] = [9; 16];
/// Empty, short, and of two chunks.
const SIZES: [usize; 3] = [0, 1_000, 70_000];

/// The valid objects and their plaintexts, made once.
fn objects() -> &'static [(Vec<u8>, Vec<u8>)] {
    static OBJECTS: OnceLock<Vec<(Vec<u8>, Vec<u8>)>> = OnceLock::new();
    OBJECTS.get_or_init(|| {
        let entropy = SimEntropy::seeded(1);
        let keys = keys::of(TENANT);
        let one = |len: &usize| {
            let plain: Vec<u8> = (0..*len).map(|n| (n % 251) as u8).collect();
            (seal_object(&keys, &entropy, OBJECT, &plain), plain)
        };
        SIZES.iter().map(one).collect()
    })
}

/// The target.
pub fn run(data: &[u8]) {
    let [choice, from, to, rest @ ..] = data else { return };
    if choice & 0x80 != 0 {
        assert!(open_object(&FixedKeys, &TENANT, OBJECT, rest).is_err(), "nobody sealed this");
        return;
    }
    let (sealed, plain) = &objects()[usize::from(*choice) % SIZES.len()];
    let mut bytes = sealed.clone();
    let changed = edit::apply(rest, &mut bytes);
    match open_object(&FixedKeys, &TENANT, OBJECT, &bytes) {
        Ok(opened) => {
            assert!(!changed, "a changed object opened");
            assert_eq!(opened, plain);
        }
        Err(_) => assert!(changed, "a good object did not open"),
    }
    let range = u64::from(*from) * 300..u64::from(*to) * 300;
    by_range(&bytes, plain, range);
}

/// A range that opens is what stands there, whatever was changed elsewhere.
fn by_range(bytes: &[u8], plain: &[u8], range: std::ops::Range<u64>) {
    let header = bytes.get(..SEALED_HEADER_BYTES.min(bytes.len())).unwrap_or_default();
    let Ok(opener) = ObjectOpener::open(&FixedKeys, &TENANT, OBJECT, header) else { return };
    let Ok(place) = opener.ciphertext_range(range.clone()) else { return };
    let Some(part) = bytes.get(place.start as usize..place.end as usize) else { return };
    if let Ok(opened) = opener.decrypt_range(range.clone(), part.to_vec()) {
        assert_eq!(opened, plain[range.start as usize..range.end as usize]);
    }
}

/// Whole objects, and one edit of each kind.
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let with = |head: [u8; 3], script: Vec<u8>| [head.to_vec(), script].concat();
    vec![
        ("whole", with([1, 0, 3], vec![])),
        ("empty", with([0, 0, 0], edit::one(0, 150, 1))),
        ("header", with([1, 0, 1], edit::one(0, 48, 1))),
        ("chunk", with([2, 220, 233], edit::one(0, 66_000, 0x80))),
        ("cut", with([2, 0, 1], edit::one(2, 65_700, 0))),
        ("moved", with([2, 0, 230], edit::one(3, 65_700, 10))),
        ("foreign", [vec![0x80, 0, 0], objects()[0].0[..64].to_vec()].concat()),
    ]
}
