//! millrace-edge.
