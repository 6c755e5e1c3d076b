//! millrace-tests.
