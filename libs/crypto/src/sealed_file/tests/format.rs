//! `docs/formats/sealed-object.md`, byte for byte, and a reader written from that page alone.

use aws_lc_rs::{
    aead::{AES_256_GCM, UnboundKey},
    hkdf,
};

use super::*;

const PAGE: &str = include_str!("../../../../../docs/formats/sealed-object.md");
const TEXT: &[u8] = b"cell,press=7 temp=21.5 1\n";
const TENANT_KEY: [u8; 32] = [7; 32];

/// The bytes of the page's hex block: everything before `|` on a line, in order.
fn example() -> Vec<u8> {
    let block = PAGE.split("```hex\n").nth(1).expect("the page has an example");
    let lines = block.split("```").next().unwrap_or_default().lines();
    let digits: String =
        lines.filter_map(|l| l.split('|').next()).flat_map(str::split_whitespace).collect();
    hex::decode(digits).expect("the example is hex")
}

#[test]
fn the_example_of_the_format_page_is_what_a_seal_writes() {
    let keys = TenantKeys::new([0x11; 16], 3, Key256::new(TENANT_KEY));
    let sealed = seal_object(&keys, &SimEntropy::seeded(2026), OBJECT, TEXT);
    assert_eq!(
        hex::encode(&sealed),
        hex::encode(example()),
        "the format page and the code disagree"
    );
}

fn derive(key: &[u8], salt: &[u8], info: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    let parts = [info];
    let prk = hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(key);
    let okm = prk.expand(&parts, hkdf::HKDF_SHA256).unwrap();
    okm.fill(&mut out).unwrap();
    out
}

fn unseal(key: &[u8; 32], nonce: &[u8], aad: &[u8], sealed: &[u8]) -> Vec<u8> {
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).unwrap());
    let mut body = sealed.to_vec();
    let nonce = Nonce::try_assume_unique_for_key(nonce).unwrap();
    key.open_in_place(nonce, Aad::from(aad), &mut body).unwrap().to_vec()
}

#[test]
fn a_reader_written_from_the_format_page_opens_the_example() {
    let o = example();
    assert_eq!(&o[..8], b"MRS1\x01\x10\0\0");
    let (owner, object, len) = (&o[8..24], &o[28..44], &o[48..56]);
    assert_eq!((&o[24..28], len), (&3u32.to_le_bytes()[..], &25u64.to_le_bytes()[..]));
    let wrap_key = derive(&TENANT_KEY, owner, b"millrace object wrap v1");
    let data_key: [u8; 32] =
        unseal(&wrap_key, &o[56..68], &o[..56], &o[68..116]).try_into().unwrap();
    assert_eq!(derive(&data_key, b"millrace", b"sealed object commitment v1"), o[116..148]);
    let nonce = [&o[44..48], &0u64.to_be_bytes()[..]].concat();
    let aad = [&[1], owner, object, &0u64.to_le_bytes()[..], &[1], len].concat();
    assert_eq!(aad.len(), 50);
    assert_eq!(unseal(&data_key, &nonce, &aad, &o[148..]), TEXT);
}
