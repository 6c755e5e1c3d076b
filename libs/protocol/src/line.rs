//! line: to come.
