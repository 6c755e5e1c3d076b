//! Signatures against the published vectors, and everything that must not verify.

use std::{path::Path, sync::Arc};

use millrace_platform::{
    disk::Disk,
    sim::{SimDisk, SimEntropy},
};

use super::*;
use crate::kms::{KeyProvider, KmsError, WrapContext, local::LocalKeyFile};

const HEAD: SigningContext = SigningContext::MANIFEST_HEAD;
const OTHER: SigningContext = SigningContext::new("manifest tail");

fn bytes<const N: usize>(digits: &str) -> [u8; N] {
    hex::decode(digits).unwrap().try_into().unwrap()
}

fn refused(found: Result<(), SignError>, what: &str) {
    assert!(matches!(found, Err(SignError::Forged { .. })), "{what}: {found:?}");
}

/// RFC 8032, section 7.1, tests 1 to 3: secret key, public key, message, signature.
const RFC_8032: [[&str; 4]; 3] = [
    [
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ],
    [
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ],
    [
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
    ],
];

#[test]
fn the_vectors_of_rfc_8032_come_out() {
    for [secret, public, message, signature] in RFC_8032 {
        let key = SigningKey::from_seed(&Key256::new(bytes(secret)));
        let message = hex::decode(message).unwrap();
        let signature = Signature(bytes(signature));
        assert_eq!(key.verifying_key(), VerifyingKey(bytes(public)));
        assert_eq!(key.sign_framed(&message), signature);
        assert!(key.verifying_key().fits(&message, &signature));
    }
}

#[test]
fn a_signature_verifies_for_its_own_message_context_and_key_only() {
    let entropy = SimEntropy::seeded(1);
    let (key, stranger) = (SigningKey::random(&entropy), SigningKey::random(&entropy));
    let public = key.verifying_key();
    for message in [&b""[..], b"m", &[7; 5000]] {
        let signature = key.sign(HEAD, message);
        public.verify(HEAD, message, &signature).unwrap();
        assert_eq!(signature, key.sign(HEAD, message), "signing is deterministic");
        refused(public.verify(OTHER, message, &signature), "another context");
        refused(public.verify(HEAD, &[message, b"0"].concat(), &signature), "a longer message");
        refused(stranger.verifying_key().verify(HEAD, message, &signature), "another key");
        let plain = key.sign_framed(message);
        refused(public.verify(HEAD, message, &plain), "a signature without a context");
    }
}

#[test]
fn a_context_cannot_be_moved_into_the_message() {
    let key = SigningKey::random(&SimEntropy::seeded(2));
    let (short, long) = (SigningContext::new("head"), SigningContext::new("head of"));
    let signature = key.sign(short, b" of x");
    refused(key.verifying_key().verify(long, b" x", &signature), "the border moved");
    assert_ne!(short.framed(b" of x"), long.framed(b" x"));
}

#[test]
fn a_flip_of_any_bit_of_signature_message_or_key_is_refused() {
    let key = SigningKey::random(&SimEntropy::seeded(3));
    let (public, message) = (key.verifying_key(), *b"manifest 7 follows manifest 6");
    let signature = key.sign(HEAD, &message);
    for bit in 0..SIGNATURE_BYTES * 8 {
        let mut changed = signature;
        changed.0[bit / 8] ^= 1 << (bit % 8);
        refused(public.verify(HEAD, &message, &changed), &format!("signature bit {bit}"));
    }
    for bit in 0..message.len() * 8 {
        let mut changed = message;
        changed[bit / 8] ^= 1 << (bit % 8);
        refused(public.verify(HEAD, &changed, &signature), &format!("message bit {bit}"));
    }
    for bit in 0..VERIFYING_KEY_BYTES * 8 {
        let mut changed = public;
        changed.0[bit / 8] ^= 1 << (bit % 8);
        refused(changed.verify(HEAD, &message, &signature), &format!("key bit {bit}"));
    }
}

#[test]
fn a_second_form_of_a_signature_is_refused() {
    // S + L instead of S satisfies the same equation; RFC 8032 5.1.7 refuses it.
    const L: [u8; 32] = [
        0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde,
        0x14, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
    ];
    let key = SigningKey::random(&SimEntropy::seeded(4));
    let mut signature = key.sign(HEAD, b"m");
    let mut carry = 0u16;
    for (s, l) in signature.0[32..].iter_mut().zip(L) {
        carry += u16::from(*s) + u16::from(l);
        *s = carry as u8;
        carry >>= 8;
    }
    refused(key.verifying_key().verify(HEAD, b"m", &signature), "S + L");
}

#[test]
fn stored_forms_come_back_and_wrong_lengths_are_named() {
    let key = SigningKey::random(&SimEntropy::seeded(5));
    let signature = key.sign(HEAD, b"m");
    assert_eq!(Signature::from_bytes(&signature.to_bytes()), Ok(signature));
    let public = key.verifying_key();
    assert_eq!(VerifyingKey::from_bytes(&public.to_bytes()), Ok(public));
    let e = Signature::from_bytes(&[0; 63]).unwrap_err();
    assert_eq!(e.to_string(), "a signature has 64 bytes, not 63");
    let e = VerifyingKey::from_bytes(&[0; 33]).unwrap_err();
    assert_eq!(e.to_string(), "a verifying key has 32 bytes, not 33");
}

#[test]
fn d6_every_tenant_version_and_context_signs_with_a_key_of_its_own() {
    let keys =
        |tenant, version, byte| TenantKeys::new([tenant; 16], version, Key256::new([byte; 32]));
    let public = |keys: &TenantKeys, context| SigningKey::of(keys, context).verifying_key();
    let first = public(&keys(1, 1, 7), HEAD);
    assert_eq!(first, public(&keys(1, 1, 7), HEAD), "derived, so the same again");
    for (what, other) in [
        ("tenant", public(&keys(2, 1, 7), HEAD)),
        ("version", public(&keys(1, 2, 7), HEAD)),
        ("key", public(&keys(1, 1, 8), HEAD)),
        ("context", public(&keys(1, 1, 7), OTHER)),
    ] {
        assert_ne!(first, other, "another {what}");
    }
}

#[test]
fn d6_a_seed_is_kept_by_a_key_provider_and_opens_for_its_purpose_only() {
    let disk = SimDisk::new();
    disk.create_dir_all(Path::new("/k")).unwrap();
    let entropy = SimEntropy::seeded(6);
    let provider = LocalKeyFile::open(
        Arc::new(disk),
        Arc::new(SimEntropy::seeded(7)),
        Path::new("/k/root.key"),
    )
    .unwrap();
    let root = provider.create().unwrap();
    let seed = Key256::random(&entropy);
    let context = WrapContext { purpose: "signing-seed", tenant: [0; 16], version: 1 };
    let wrapped = provider.wrap(&root, &seed, &context).unwrap();
    let again = SigningKey::from_seed(&provider.unwrap(&wrapped, &context).unwrap());
    assert_eq!(again.verifying_key(), SigningKey::from_seed(&seed).verifying_key());
    let as_tenant_key = WrapContext { purpose: "tenant-key", ..context };
    assert!(matches!(provider.unwrap(&wrapped, &as_tenant_key), Err(KmsError::Forged)));
}
