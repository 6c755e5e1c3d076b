//! millrace-query.
