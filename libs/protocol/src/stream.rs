//! stream: to come.
