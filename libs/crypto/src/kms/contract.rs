//! What every key provider must do.

use super::{KeyProvider, KmsError, WrapContext};
use crate::key::Key256;

pub(super) fn check(provider: &dyn KeyProvider) {
    let (a, b) = (provider.create().unwrap(), provider.create().unwrap());
    assert_ne!(a, b);
    let key = Key256::new([7; 32]);
    let context = WrapContext { purpose: "tenant-key", tenant: [1; 16], version: 3 };
    let wrapped = provider.wrap(&a, &key, &context).unwrap();
    assert!(!wrapped.bytes.windows(32).any(|w| w == key.expose()), "a wrap hides the key");
    assert_eq!(provider.unwrap(&wrapped, &context).unwrap().expose(), key.expose());
    let again = provider.wrap(&a, &key, &context).unwrap();
    assert_ne!(again.bytes, wrapped.bytes, "each wrap is fresh");
    for other in [
        WrapContext { purpose: "ledger", ..context },
        WrapContext { tenant: [2; 16], ..context },
        WrapContext { version: 4, ..context },
    ] {
        assert!(matches!(provider.unwrap(&wrapped, &other), Err(KmsError::Forged)));
    }
    for at in 0..wrapped.bytes.len() {
        let mut changed = wrapped.clone();
        changed.bytes[at] ^= 1;
        assert!(provider.unwrap(&changed, &context).is_err(), "byte {at} changed");
    }
    let mut moved = wrapped.clone();
    moved.root = b.clone();
    assert!(provider.unwrap(&moved, &context).is_err());
    provider.destroy(&a).unwrap();
    provider.destroy(&a).unwrap();
    assert!(provider.is_destroyed(&a).unwrap() && !provider.is_destroyed(&b).unwrap());
    assert!(matches!(provider.unwrap(&wrapped, &context), Err(KmsError::Gone(_))));
    assert!(matches!(provider.wrap(&a, &key, &context), Err(KmsError::Gone(_))));
}
