//! millrace-storage.
