//! millrace.
