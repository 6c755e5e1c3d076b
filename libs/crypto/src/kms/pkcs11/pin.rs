//! The PIN of a token: from a file or a value that erases itself, never shown.
//!
//! ```
//! fn named<T>() {}
//! named::<millrace_crypto::kms::pkcs11::Pin>();
//! ```
//! ```compile_fail
//! fn shown<T: std::fmt::Debug>() {}
//! shown::<millrace_crypto::kms::pkcs11::Pin>();
//! ```
//! ```compile_fail
//! fn copied<T: Clone>() {}
//! copied::<millrace_crypto::kms::pkcs11::Pin>();
//! ```

use std::path::Path;

use cryptoki::types::RawAuthPin;
use millrace_platform::disk::{Disk, read_file};
use zeroize::Zeroizing;

use super::KmsError;

/// Far above what any token takes (PKCS#11 tokens say 4 to 255).
const PIN_BYTES_MAX: u64 = 1024;

/// See the module head.
pub struct Pin(Zeroizing<Vec<u8>>);

impl Pin {
    /// Takes over the value.
    pub fn new(pin: Zeroizing<Vec<u8>>) -> Self {
        Self(pin)
    }

    /// Reads the PIN's file, which only its owner may read (mode 0600 or tighter). One line end
    /// after the PIN is left out.
    pub fn from_file(disk: &dyn Disk, path: &Path) -> Result<Self, KmsError> {
        let fail = |what: String| {
            KmsError::Unavailable(format!("the PIN file {}: {what}", path.display()))
        };
        let mode = disk.mode(path).map_err(|e| fail(e.to_string()))?;
        if mode & 0o077 != 0 {
            return Err(KmsError::Loose { path: path.display().to_string(), mode });
        }
        let bytes = read_file(disk, path, PIN_BYTES_MAX).map_err(|e| fail(e.to_string()))?;
        let mut pin = Zeroizing::new(bytes);
        for end in [b'\n', b'\r'] {
            if pin.last() == Some(&end) {
                pin.pop();
            }
        }
        if pin.is_empty() {
            return Err(fail("it is empty; write the token's user PIN into it".to_owned()));
        }
        Ok(Self::new(pin))
    }

    /// A copy for one login; it erases itself too.
    pub(super) fn for_login(&self) -> RawAuthPin {
        RawAuthPin::new(Box::new(self.0.to_vec()))
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }
}
