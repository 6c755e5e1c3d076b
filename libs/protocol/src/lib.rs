//! millrace-protocol.
