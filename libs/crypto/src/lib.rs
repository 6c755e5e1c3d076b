//! millrace-crypto.
