//! Ranges: any of them equals the slice, whatever the length, and none reaches outside.

use proptest::prelude::*;

use super::*;

/// Lengths where the arithmetic could be off by one: around every multiple of a chunk.
fn length() -> impl Strategy<Value = usize> {
    prop_oneof![
        Just(0),
        1..200usize,
        (0..4usize, 0..5usize).prop_map(|(n, off)| (n * CHUNK + off).saturating_sub(2)),
        0..4 * CHUNK,
    ]
}

/// Places worth asking for: anywhere, and around the ends of chunks.
fn place() -> impl Strategy<Value = (usize, usize)> {
    (0..=4usize, prop_oneof![0..3usize, CHUNK - 2..CHUNK, 0..CHUNK])
}

fn read(opener: &ObjectOpener, sealed: &[u8], plain: Range<u64>) -> Result<Bytes, SealError> {
    let at = opener.ciphertext_range(plain.clone())?;
    assert!(at.start >= SEALED_HEADER_BYTES as u64 && at.end <= sealed.len() as u64, "{at:?}");
    opener.decrypt_range(plain, sealed[at.start as usize..at.end as usize].to_vec())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn any_range_of_an_object_of_any_length_equals_the_slice(
        len in length(),
        asked in proptest::collection::vec((place(), place()), 1..6),
    ) {
        let ring = Ring::usual();
        let plain = plaintext(len);
        let sealed = seal(&ring, len as u64, OBJECT, &plain);
        let opener = ObjectOpener::open(&ring, &A, OBJECT, &sealed).unwrap();
        prop_assert_eq!(opener.plaintext_len(), len as u64);
        prop_assert_eq!(opener.sealed_len(), sealed.len() as u64);
        prop_assert_eq!(plaintext_len(sealed.len() as u64), Some(len as u64));
        for ((a, b), (c, d)) in asked {
            let (one, two) = ((a * CHUNK + b).min(len), (c * CHUNK + d).min(len));
            let (from, to) = (one.min(two), one.max(two));
            let found = read(&opener, &sealed, from as u64..to as u64).unwrap();
            prop_assert_eq!(&found[..], &plain[from..to]);
        }
        prop_assert_eq!(&open(&ring, &sealed).unwrap()[..], &plain[..]);
    }

    #[test]
    fn a_range_outside_the_object_is_refused(len in length(), beyond in 1..100u64) {
        let ring = Ring::usual();
        let sealed = seal(&ring, 1, OBJECT, &plaintext(len));
        let opener = ObjectOpener::open(&ring, &A, OBJECT, &sealed).unwrap();
        let len = len as u64;
        for range in [
            0..len + beyond,
            len + beyond..len + beyond,
            0..u64::MAX,
            #[expect(clippy::reversed_empty_ranges, reason = "a backward range must be refused")]
            (1..0),
        ] {
            let found = read(&opener, &sealed, range.clone());
            prop_assert!(matches!(found, Err(SealError::OutOfRange { .. })), "{range:?}: {found:?}");
        }
    }

    #[test]
    fn only_a_length_that_a_seal_can_have_has_a_plaintext_length(sealed in 0..1_000_000u64) {
        match plaintext_len(sealed) {
            Some(plain) => prop_assert_eq!(sealed_len(plain), sealed),
            None => {
                let body = sealed.saturating_sub(SEALED_HEADER_BYTES as u64);
                let rest = body % (CHUNK_BYTES + TAG);
                prop_assert!(body < TAG || (1..=TAG).contains(&rest), "{sealed}");
            }
        }
    }
}

#[test]
fn fewer_or_more_bytes_than_the_range_needs_are_refused() {
    let ring = Ring::usual();
    let sealed = seal(&ring, 1, OBJECT, &plaintext(2 * CHUNK));
    let opener = ObjectOpener::open(&ring, &A, OBJECT, &sealed).unwrap();
    let at = opener.ciphertext_range(5..10).unwrap();
    let exact = sealed[at.start as usize..at.end as usize].to_vec();
    assert_eq!(opener.decrypt_range(5..10, exact.clone()).unwrap(), plaintext(2 * CHUNK)[5..10]);
    for wrong in [Vec::new(), exact[1..].to_vec(), [exact.as_slice(), &[0]].concat()] {
        refused(opener.decrypt_range(5..10, wrong), "another number of bytes");
    }
}
