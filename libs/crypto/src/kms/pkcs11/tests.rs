//! The provider over SoftHSM, each test with a token of its own in a process of its own: the
//! library reads where its tokens are from the environment of the process, once.

mod token;

use cryptoki::object::AttributeType;
use millrace_platform::{
    disk::{Disk, RealDisk},
    durable,
    entropy::OsEntropy,
    sim::{SimDisk, SimEntropy},
};

use self::token::{LABEL, PIN, library, on_a_token};
use super::*;
use crate::{
    key::{KeyError, TenantKeySource},
    kms::contract,
    ledger::KeyLedger,
};

const CONTEXT: WrapContext = WrapContext { purpose: "tenant-key", tenant: [1; 16], version: 1 };

#[test]
fn a_token_keeps_the_provider_contract() {
    on_a_token("a_token_keeps_the_provider_contract", |token| contract::check(&token.open()));
}

#[test]
fn d6_a_root_key_never_leaves_its_token() {
    on_a_token("d6_a_root_key_never_leaves_its_token", |token| {
        let provider = token.open();
        let id = provider.create().unwrap();
        let session = token.session();
        let objects = session.find_objects(&[Attribute::Label(id.0.into_bytes())]).unwrap();
        let asked = [
            AttributeType::Sensitive,
            AttributeType::Extractable,
            AttributeType::ValueLen,
            AttributeType::Modifiable,
        ];
        let found = session.get_attributes(objects[0], &asked).unwrap();
        for expected in [
            Attribute::Sensitive(true),
            Attribute::Extractable(false),
            Attribute::ValueLen(32.into()),
            Attribute::Modifiable(false),
        ] {
            assert!(found.contains(&expected), "{expected:?} is not among {found:?}");
        }
        let value = session.get_attributes(objects[0], &[AttributeType::Value]);
        let shown = value.map(|all| all.iter().any(|a| matches!(a, Attribute::Value(_))));
        assert!(!matches!(shown, Ok(true)), "the token gave the key's value");
        let loosened = session.update_attributes(objects[0], &[Attribute::Extractable(true)]);
        assert!(loosened.is_err(), "the key can be made extractable");
    });
}

#[test]
fn d6_a_key_that_could_be_read_out_is_not_taken_for_a_root_key() {
    on_a_token("d6_a_key_that_could_be_read_out_is_not_taken_for_a_root_key", |token| {
        let provider = token.open();
        let planted = [
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(KeyType::AES),
            Attribute::Label(b"pkcs11-planted".to_vec()),
            Attribute::Value(vec![7; 32]),
            Attribute::Token(true),
            Attribute::Private(true),
            Attribute::Sensitive(true),
            Attribute::Extractable(false),
            Attribute::Encrypt(true),
        ];
        token.session().create_object(&planted).unwrap();
        let found =
            provider.wrap(&RootKeyId("pkcs11-planted".to_owned()), &Key256::new([9; 32]), &CONTEXT);
        assert!(matches!(found, Err(KmsError::Gone(_))), "a key known outside was used");
    });
}

#[test]
fn keys_outlive_the_provider_and_a_ledger_stands_on_them() {
    on_a_token("keys_outlive_the_provider_and_a_ledger_stands_on_them", |token| {
        let disk = SimDisk::new();
        disk.create_dir_all(Path::new("/keys")).unwrap();
        let ledger = |seed| {
            KeyLedger::open(
                Arc::new(disk.clone()),
                Arc::new(SimEntropy::seeded(seed)),
                Arc::new(token.open()),
                Path::new("/keys/ledger.json"),
            )
        };
        let tenant = [5u8; 16];
        let first = ledger(1).unwrap();
        first.create(&tenant).unwrap();
        let secret = first.current(&tenant).unwrap().series_secret();
        drop(first);
        assert_eq!(ledger(2).unwrap().current(&tenant).unwrap().series_secret(), secret);
        // The token's owner destroys the root: nothing under it opens again.
        let session = token.session();
        let kept = token.open();
        let roots = session.find_objects(&[Attribute::Class(ObjectClass::SECRET_KEY)]).unwrap();
        assert_eq!(roots.len(), 1, "one ledger has one root");
        session.destroy_object(roots[0]).unwrap();
        drop((session, kept));
        let found = ledger(3).unwrap().current(&tenant).err();
        assert!(matches!(found, Some(KeyError::Unavailable(_))), "{found:?}");
    });
}

#[test]
fn a_token_that_was_away_is_used_again_when_it_is_back() {
    on_a_token("a_token_that_was_away_is_used_again_when_it_is_back", |token| {
        let provider = token.open();
        let id = provider.create().unwrap();
        let wrapped = provider.wrap(&id, &Key256::new([9; 32]), &CONTEXT).unwrap();
        for _ in 0..3 {
            token.restart();
            let key = provider.unwrap(&wrapped, &CONTEXT).unwrap();
            assert_eq!(key.expose(), &[9; 32]);
        }
        token.restart();
        assert!(!provider.is_destroyed(&id).unwrap(), "an absent token destroys no key");
        // A login belongs to the process: somebody else's logout ends ours.
        token.session().logout().unwrap();
        assert!(!provider.is_destroyed(&id).unwrap(), "a logout destroys no key");
        token.session().logout().unwrap();
        assert_eq!(provider.unwrap(&wrapped, &CONTEXT).unwrap().expose(), &[9; 32]);
    });
}

#[test]
fn d6_a_refused_pin_is_tried_once_and_never_shown() {
    on_a_token("d6_a_refused_pin_is_tried_once_and_never_shown", |token| {
        let wrong = "wrong-4711";
        let e = token.try_open(wrong).expect_err("a wrong PIN").to_string();
        assert!(e.contains(LABEL) && !e.contains(wrong), "{e}");
        // The PIN becomes wrong while the server runs: asked once, then no more.
        let provider = token.open();
        assert!(!format!("{provider:?}").contains(PIN));
        token.change_pin("another-one");
        token.restart();
        let id = RootKeyId("x".to_owned());
        let first = provider.is_destroyed(&id).unwrap_err().to_string();
        assert!(!first.contains(PIN) && !first.contains("not asked again"), "{first}");
        for _ in 0..20 {
            let later = provider.is_destroyed(&id).unwrap_err().to_string();
            assert!(later.contains("is not asked again"), "{later}");
        }
        assert!(!token.try_open("another-one").unwrap().create().unwrap().0.is_empty());
    });
}

#[test]
fn what_is_missing_is_named() {
    on_a_token("what_is_missing_is_named", |token| {
        let open = |library: &Path, label: &str| {
            let pin = Pin::new(Zeroizing::new(PIN.into()));
            Pkcs11Token::open(library, label, pin, Arc::new(OsEntropy)).unwrap_err().to_string()
        };
        let e = open(Path::new("/none/lib.so"), LABEL);
        assert!(e.contains("/none/lib.so does not load"), "{e}");
        let e = open(&token.library, "another");
        assert!(e.contains("token `another`") && e.contains(&format!("it knows `{LABEL}`")), "{e}");
    });
}

#[test]
fn d6_a_pin_file_is_private_and_holds_one_pin() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pin");
    let error = |found: Result<Pin, KmsError>| found.map(drop).unwrap_err();
    let read = || Pin::from_file(&RealDisk, &path);
    assert!(error(read()).to_string().contains("the PIN file"), "a missing file is named");
    for (text, pin) in [("1234", "1234"), ("12 34\n", "12 34"), ("1234\r\n", "1234")] {
        durable::replace(&RealDisk, &path, text.as_bytes()).unwrap();
        let found = read().unwrap_or_else(|e| panic!("{text:?}: {e}"));
        assert_eq!(found.bytes(), pin.as_bytes());
    }
    durable::replace(&RealDisk, &path, b"\n").unwrap();
    assert!(error(read()).to_string().contains("it is empty"));
    durable::replace(&RealDisk, &path, &[b'1'; 1025]).unwrap();
    assert!(matches!(error(read()), KmsError::Unavailable(_)));
    durable::replace(&RealDisk, &path, b"1234").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
    assert!(matches!(error(read()), KmsError::Loose { mode: 0o640, .. }));
}

#[test]
fn softhsm_is_there_to_test_against() {
    assert!(library().exists());
}
