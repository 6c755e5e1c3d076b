//! Secrets that are shown once: tokens and claim codes.
//!
//! Text of a token: `mrt_<id>_<secret>_<check>`: 64-bit id, 256-bit secret, CRC-32C of what is
//! before, all hex. The prefix and the check let scanners find a leaked one and let the server
//! refuse a mistyped one without a look-up. Stored: SHA-256 of the secret, compared in constant
//! time. A claim code has the same shape with prefix `mrc` and a 128-bit secret.

use aws_lc_rs::{constant_time, digest};
use millrace_platform::entropy::{Entropy, random_bytes};

/// A secret as text. Shown once; never logged.
pub struct Secret(String);

impl Secret {
    /// The text to hand to its owner.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

pub(crate) fn hash(secret: &[u8]) -> String {
    hex::encode(digest::digest(&digest::SHA256, secret))
}

/// Makes a secret of `BYTES` random bytes; returns its id, its text and its hash.
pub(crate) fn make<const BYTES: usize>(
    prefix: &str,
    entropy: &dyn Entropy,
) -> (String, Secret, String) {
    let id = hex::encode(random_bytes::<8>(entropy));
    let secret = hex::encode(random_bytes::<BYTES>(entropy));
    let body = format!("{prefix}_{id}_{secret}");
    let check = crc32c::crc32c(body.as_bytes());
    let hashed = hash(secret.as_bytes());
    (id, Secret(format!("{body}_{check:08x}")), hashed)
}

/// The id and secret of a well-formed text.
pub(crate) fn parse<'a>(prefix: &str, text: &'a str) -> Option<(&'a str, &'a str)> {
    let (body, check) = text.rsplit_once('_')?;
    if check.len() != 8 || u32::from_str_radix(check, 16).ok()? != crc32c::crc32c(body.as_bytes()) {
        return None;
    }
    let rest = body.strip_prefix(prefix)?.strip_prefix('_')?;
    rest.split_once('_')
}

/// Whether `secret` hashes to `stored`, in constant time.
pub(crate) fn matches(secret: &str, stored: &str) -> bool {
    let given = hash(secret.as_bytes());
    constant_time::verify_slices_are_equal(given.as_bytes(), stored.as_bytes()).is_ok()
}
