//! What a sealed object promises: nothing changed, cut, moved or substituted is ever returned as
//! data, and any range reads as the same slice of the plaintext.

mod format;
mod ranges;

use std::{collections::BTreeMap, sync::Arc};

use millrace_platform::sim::SimEntropy;

use super::*;

const A: [u8; 16] = [0xaa; 16];
const B: [u8; 16] = [0xbb; 16];
const OBJECT: [u8; 16] = [0x22; 16];
const CHUNK: usize = CHUNK_BYTES as usize;
const SEALED_CHUNK: usize = CHUNK + TAG_BYTES;

/// Keys by tenant and version; the highest version is current.
struct Ring(BTreeMap<([u8; 16], u32), Arc<TenantKeys>>);

impl Ring {
    fn of(keys: &[([u8; 16], u32, u8)]) -> Self {
        let make = |(tenant, version, byte): &([u8; 16], u32, u8)| {
            let keys = TenantKeys::new(*tenant, *version, Key256::new([*byte; 32]));
            ((*tenant, *version), Arc::new(keys))
        };
        Self(keys.iter().map(make).collect())
    }

    /// Two tenants with two key versions each, all different.
    fn usual() -> Self {
        Self::of(&[(A, 1, 1), (A, 2, 2), (B, 1, 3), (B, 2, 4)])
    }

    fn get(&self, tenant: [u8; 16], version: u32) -> &TenantKeys {
        &self.0[&(tenant, version)]
    }
}

impl TenantKeySource for Ring {
    fn current(&self, tenant: &[u8; 16]) -> Result<Arc<TenantKeys>, KeyError> {
        let last = self.0.range((*tenant, 0)..=(*tenant, u32::MAX)).next_back();
        last.map(|(_, k)| Arc::clone(k))
            .ok_or_else(|| KeyError::Gone { tenant: hex::encode(tenant) })
    }

    fn version(&self, tenant: &[u8; 16], version: u32) -> Result<Arc<TenantKeys>, KeyError> {
        self.0
            .get(&(*tenant, version))
            .map(Arc::clone)
            .ok_or_else(|| KeyError::UnknownVersion { tenant: hex::encode(tenant), version })
    }
}

/// Bytes that differ everywhere, so that a moved byte is seen.
fn plaintext(len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    SimEntropy::seeded(99).fill(&mut out);
    out
}

fn seal(ring: &Ring, seed: u64, object: [u8; 16], plain: &[u8]) -> Vec<u8> {
    seal_object(ring.get(A, 1), &SimEntropy::seeded(seed), object, plain)
}

fn open(ring: &Ring, sealed: &[u8]) -> Result<Bytes, SealError> {
    open_object(ring, &A, OBJECT, sealed)
}

fn refused(found: Result<Bytes, SealError>, what: &str) {
    match found {
        Err(SealError::NotSealed { .. } | SealError::Forged { .. }) => {}
        other => panic!("{what}: expected a refusal that blames the object, found {other:?}"),
    }
}

#[test]
fn d6_a_flip_of_any_bit_of_an_object_is_refused() {
    let ring = Ring::usual();
    for len in [0, 1, 33] {
        let plain = plaintext(len);
        let sealed = seal(&ring, 1, OBJECT, &plain);
        assert_eq!(sealed.len() as u64, sealed_len(len as u64));
        assert_eq!(open(&ring, &sealed).unwrap(), plain);
        let mut changed = sealed.clone();
        for bit in 0..sealed.len() * 8 {
            changed[bit / 8] ^= 1 << (bit % 8);
            refused(open(&ring, &changed), &format!("{len} bytes, bit {bit}"));
            changed[bit / 8] ^= 1 << (bit % 8);
        }
        assert_eq!(changed, sealed);
    }
}

#[test]
fn d6_a_flipped_byte_is_refused_by_every_range_that_touches_its_chunk_and_by_no_other() {
    let ring = Ring::usual();
    let plain = plaintext(2 * CHUNK + 100);
    let sealed = seal(&ring, 1, OBJECT, &plain);
    let opener = ObjectOpener::open(&ring, &A, OBJECT, &sealed).unwrap();
    let ranges = [10..20, CHUNK..CHUNK + 1, 2 * CHUNK + 99..2 * CHUNK + 100];
    for (chunk, at) in [(0, 0), (0, SEALED_CHUNK - 1), (1, SEALED_CHUNK), (2, 2 * SEALED_CHUNK)] {
        let mut changed = sealed.clone();
        changed[SEALED_HEADER_BYTES + at] ^= 0x80;
        for (reader, range) in ranges.iter().enumerate() {
            let range = range.start as u64..range.end as u64;
            let at = opener.ciphertext_range(range.clone()).unwrap();
            let bytes = changed[at.start as usize..at.end as usize].to_vec();
            let found = opener.decrypt_range(range.clone(), bytes);
            if reader == chunk {
                refused(found, &format!("chunk {chunk}, byte {at:?}"));
            } else {
                assert_eq!(found.unwrap(), plain[range.start as usize..range.end as usize]);
            }
        }
    }
}

#[test]
fn d6_an_object_cut_at_any_length_is_refused_and_so_is_a_longer_one() {
    let ring = Ring::usual();
    let sealed = seal(&ring, 1, OBJECT, &plaintext(40));
    for len in 0..sealed.len() {
        refused(open(&ring, &sealed[..len]), &format!("cut to {len}"));
    }
    refused(open(&ring, &[sealed.as_slice(), &[0]].concat()), "one byte more");
    // Where a cut could look whole: at the ends of chunks.
    let sealed = seal(&ring, 1, OBJECT, &plaintext(3 * CHUNK));
    for chunks in 0..3 {
        let end = SEALED_HEADER_BYTES + chunks * SEALED_CHUNK;
        refused(open(&ring, &sealed[..end]), &format!("cut to {chunks} chunks"));
    }
}

/// The chunks of `sealed` in another order, or from other objects, under its own header.
fn rebuilt(header: &[u8], chunks: &[&[u8]]) -> Vec<u8> {
    let mut out = header[..SEALED_HEADER_BYTES].to_vec();
    chunks.iter().for_each(|c| out.extend_from_slice(c));
    out
}

fn chunks(sealed: &[u8]) -> Vec<&[u8]> {
    sealed[SEALED_HEADER_BYTES..].chunks(SEALED_CHUNK).collect()
}

#[test]
fn d6_chunks_that_were_swapped_dropped_doubled_or_borrowed_are_refused() {
    let ring = Ring::usual();
    let sealed = seal(&ring, 1, OBJECT, &plaintext(3 * CHUNK));
    let other = seal(&ring, 2, [0x33; 16], &plaintext(3 * CHUNK));
    let twin = seal(&ring, 3, OBJECT, &plaintext(3 * CHUNK));
    let (own, foreign, second) = (chunks(&sealed), chunks(&other), chunks(&twin));
    assert_eq!(open(&ring, &rebuilt(&sealed, &own)).unwrap(), plaintext(3 * CHUNK));
    for (what, parts) in [
        ("two swapped", vec![own[1], own[0], own[2]]),
        ("the last swapped", vec![own[0], own[2], own[1]]),
        ("the first dropped", vec![own[1], own[2]]),
        ("the middle dropped", vec![own[0], own[2]]),
        ("the last dropped", vec![own[0], own[1]]),
        ("one doubled", vec![own[0], own[1], own[1], own[2]]),
        ("one doubled, one dropped", vec![own[0], own[0], own[2]]),
        ("one of another object", vec![own[0], foreign[1], own[2]]),
        ("all of another object", foreign.clone()),
        ("one of another write of the same object", vec![own[0], second[1], own[2]]),
    ] {
        refused(open(&ring, &rebuilt(&sealed, &parts)), what);
    }
}

#[test]
fn d6_a_header_that_says_another_length_does_not_hide_the_cut() {
    let ring = Ring::usual();
    let sealed = seal(&ring, 1, OBJECT, &plaintext(2 * CHUNK));
    let mut cut = rebuilt(&sealed, &chunks(&sealed)[..1]);
    cut[48..56].copy_from_slice(&CHUNK_BYTES.to_le_bytes());
    refused(open(&ring, &cut), "length and body cut alike");
}

#[test]
fn d6_an_object_under_another_id_tenant_or_key_version_is_refused() {
    let ring = Ring::usual();
    let plain = plaintext(100);
    let sealed = seal(&ring, 1, OBJECT, &plain);
    refused(open_object(&ring, &A, [0x23; 16], &sealed), "another object id asked");
    refused(open_object(&ring, &B, OBJECT, &sealed), "another tenant asks");
    let patched = |at: usize, bytes: &[u8]| {
        let mut out = sealed.clone();
        out[at..at + bytes.len()].copy_from_slice(bytes);
        out
    };
    refused(open_object(&ring, &B, OBJECT, &patched(8, &B)), "renamed to the tenant who asks");
    refused(open_object(&ring, &A, B, &patched(28, &B)), "renamed to the object asked");
    refused(open(&ring, &patched(24, &2u32.to_le_bytes())), "another version that exists");
    refused(open(&ring, &patched(24, &7u32.to_le_bytes())), "a version that never was");
    // The same names, but the key behind them is another.
    refused(open(&Ring::of(&[(A, 1, 9)]), &sealed), "another key of that name");
    // The same key bytes for another tenant: what is derived differs all the same.
    let shared = Ring::of(&[(A, 1, 1), (B, 1, 1)]);
    refused(open_object(&shared, &B, OBJECT, &patched(8, &B)), "another tenant, same key");
}

#[test]
fn d6_a_destroyed_key_is_said_as_such_and_not_as_damage() {
    struct Gone;
    impl TenantKeySource for Gone {
        fn current(&self, tenant: &[u8; 16]) -> Result<Arc<TenantKeys>, KeyError> {
            Err(KeyError::Gone { tenant: hex::encode(tenant) })
        }
        fn version(&self, tenant: &[u8; 16], _: u32) -> Result<Arc<TenantKeys>, KeyError> {
            self.current(tenant)
        }
    }
    let sealed = seal(&Ring::usual(), 1, OBJECT, b"x");
    let found = open_object(&Gone, &A, OBJECT, &sealed);
    assert!(matches!(found, Err(SealError::Key(KeyError::Gone { .. }))), "{found:?}");
}

#[test]
fn d6_a_plaintext_file_in_its_place_is_refused() {
    let ring = Ring::usual();
    let text = b"# Not sealed at all, and longer than a header.\n".repeat(8);
    let parquet = [b"PAR1".as_slice(), &plaintext(1000), b"PAR1"].concat();
    for plain in [&b""[..], b"MRS1", &text, &parquet, &[0; 500]] {
        let found = open(&ring, plain);
        assert!(matches!(found, Err(SealError::NotSealed { .. })), "{found:?}");
    }
}

#[test]
fn d6_an_object_made_for_two_keys_is_refused_by_its_commitment() {
    // Somebody who may wrap (a second data key, say) but did not write the object: GCM alone
    // would let one body open under two keys.
    let ring = Ring::usual();
    let mut sealed = seal(&ring, 1, OBJECT, b"the same body");
    let other = Key256::new([0x5a; 32]);
    let nonce = [7u8; 12];
    let mut wrapped = other.expose().to_vec();
    let tag = seal_in_place(
        &less_safe(ring.get(A, 1).object_wrap_key()),
        Nonce::assume_unique_for_key(nonce),
        &sealed[..WRAP_AT],
        &mut wrapped,
    );
    sealed[WRAP_AT..COMMIT_AT].copy_from_slice(&[&nonce[..], &wrapped, &tag].concat());
    match open(&ring, &sealed) {
        Err(SealError::Forged { what, .. }) => assert_eq!(what, "the key commitment"),
        found => panic!("expected a refusal by the commitment, found {found:?}"),
    }
}

#[test]
fn d6_two_seals_of_one_plaintext_share_no_nonce_and_no_ciphertext() {
    let ring = Ring::usual();
    let entropy = SimEntropy::seeded(5);
    let plain = vec![0u8; 2 * CHUNK + 64];
    let mut blocks = std::collections::BTreeSet::new();
    let mut heads = std::collections::BTreeSet::new();
    for _ in 0..3 {
        let sealed = seal_object(ring.get(A, 1), &entropy, OBJECT, &plain);
        assert!(heads.insert(sealed[WRAP_AT..WRAP_AT + 12].to_vec()), "a wrap nonce twice");
        assert!(heads.insert(sealed[COMMIT_AT..COMMIT_AT + 32].to_vec()), "a data key twice");
        for block in sealed[WRAP_AT..].chunks_exact(16) {
            assert!(blocks.insert(block.to_vec()), "16 bytes of ciphertext twice");
        }
    }
}

#[test]
fn d6_no_byte_of_the_plaintext_or_of_a_key_stands_in_the_object() {
    let ring = Ring::usual();
    let canary = b"canary-7f3a91c2e8";
    let sealed = seal(&ring, 1, OBJECT, &canary.repeat(20));
    assert!(!sealed.windows(8).any(|w| w == &canary[..8]));
    assert!(!sealed.windows(32).any(|w| w == [1u8; 32]));
}

#[test]
fn an_opener_shows_its_length_and_nothing_secret() {
    let ring = Ring::usual();
    let sealed = seal(&ring, 1, OBJECT, b"four");
    let opener = ObjectOpener::open(&ring, &A, OBJECT, &sealed).unwrap();
    assert_eq!(format!("{opener:?}"), "ObjectOpener { len: 4, .. }");
}
