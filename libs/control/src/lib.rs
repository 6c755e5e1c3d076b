//! millrace-control.
